//! How a call can fail, and what each way means: one table (`FailureKind::row`), matched without a wildcard.

use std::time::Duration;

use http::StatusCode;

/// Why a call has no answer that counts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unanswered {
    /// It failed: its message ends with this.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// See [`Stopping`].
    #[error("the gateway stops")]
    Stopping,
}

/// The gateway stops before the next attempt: the message is left to the broker, as if it had not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stopping;

/// A call that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind}")]
pub(crate) struct Failure {
    /// What happened, at last.
    pub kind: FailureKind,
    /// How many attempts were made.
    pub attempts: u32,
}

/// Why the probe does not show that the API works.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ProbeFailure {
    /// It was answered with a status that says "not now".
    #[error("the API answers {0}")]
    Answered(StatusCode),
    /// It was not answered.
    #[error(transparent)]
    Failed(#[from] FailureKind),
}

/// The ways in which a call fails.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FailureKind {
    /// No connection: name resolution, TCP or TLS.
    #[error("the upstream cannot be reached: {0}")]
    Unreachable(String),
    /// This machine cannot make the attempt: no descriptor or no memory is left, for example.
    #[error("this machine cannot make the call: {0}")]
    Local(String),
    /// The exchange broke off half-way, or the answer is not HTTP.
    #[error("the exchange with the upstream broke off: {0}")]
    Broken(String),
    /// The server says that it has not handled the request: it is busy, or about to close the connection.
    #[error("the upstream turned the request away: {0}")]
    Unhandled(String),
    /// The answer has a content coding that is not understood.
    #[error("the answer has the content coding `{0}`, which is not understood")]
    Coding(String),
    /// The answer is larger than `max_response_bytes`.
    #[error("the answer is larger than {0} bytes")]
    AnswerTooLarge(usize),
    /// The attempt was cut short by `attempt_timeout`.
    #[error("the upstream did not answer in time")]
    AttemptTimeout,
    /// The message's `deadline` passed between two attempts; the last answer was a transient refusal.
    #[error("the deadline passed; the upstream last answered {0}")]
    Deadline(StatusCode),
    /// The message's own expiry passed [MQTT-3.3.2-6], before an attempt or during one.
    #[error("the message expired while it was held")]
    Expired,
    /// The API refuses what the gateway itself has to show, for everybody: a secret or a token.
    #[error("the upstream refuses our credentials: it answers {0}")]
    Barred(StatusCode),
    /// There is no token to show it.
    #[error("the token endpoint gives no token: {0}")]
    NoToken(String),
    /// A rate limit of the configuration, or the API's own `Retry-After`, leaves no turn before this time is over.
    #[error("the rate limit leaves no turn for another {} s", .0.as_secs() + 1)]
    Throttled(Duration),
}

/// Whether another attempt may end better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transience {
    /// No: it would end in the same way, or there is no time left.
    Final,
    /// It may, and the API may have acted on this one.
    Transient,
    /// It may, and the API has not acted on this one: nothing has reached it, or it says so (429, 503).
    Unprocessed,
    /// It may, and this one was no attempt at all, or the API has not let it in: even a call that must not be repeated
    /// can be made again.
    Unmade,
}

/// What the result of an attempt says about the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// It served the call (2xx): it works, for this row.
    Served,
    /// It refused the call for good: something answers, but that says nothing about other calls.
    Refused,
    /// It failed the call: it may be this message, it may be everybody.
    Failed,
    /// It failed the call by not answering before `attempt_timeout`.
    Hung,
    /// There was no connection, which no message can cause.
    Unreachable,
    /// The gateway's own credentials are refused, or not to be had: no message can cause that, and the probe, which
    /// carries none, cannot see it.
    Barred,
    /// Nothing: the attempt was not made, or the gateway cut it short for a reason of its own.
    Nothing,
}

/// What one kind of failure means.
struct Row {
    code: &'static str,
    status: u16,
    attempt: &'static str,
    transience: Transience,
    sign: Sign,
}

impl FailureKind {
    /// Every word that [`FailureKind::code`] has.
    pub const CODES: [&'static str; 7] = [
        "unreachable",
        "broken",
        "answer_too_large",
        "deadline",
        "expired",
        "credentials",
        "throttled",
    ];
    /// The words that [`FailureKind::attempt`] has for an exchange that was made.
    pub const ATTEMPTS: [&'static str; 7] =
        ["unreachable", "local", "broken", "unhandled", "answer_too_large", "timeout", "expired"];

    /// The table of failures.
    #[rustfmt::skip]
    fn row(&self) -> Row {
        use {Sign as S, Transience as T};
        let row = |code, status, attempt, transience, sign| Row { code, status, attempt, transience, sign };
        match self {
            //                             code, status        attempt in metrics    again?          sign
            Self::Unreachable(_)    => row("unreachable", 502, "unreachable",        T::Unprocessed, S::Unreachable),
            Self::Local(_)          => row("unreachable", 502, "local",              T::Unmade,      S::Nothing),
            Self::Broken(_)         => row("broken", 502,      "broken",             T::Transient,   S::Failed),
            Self::Unhandled(_)      => row("broken", 502,      "unhandled",          T::Unprocessed, S::Failed),
            Self::Coding(_)         => row("broken", 502,      "broken",             T::Final,       S::Refused),
            Self::AnswerTooLarge(_) => row("answer_too_large", 502, "answer_too_large", T::Final,    S::Refused),
            Self::AttemptTimeout    => row("deadline", 504,    "timeout",            T::Transient,   S::Hung),
            Self::Deadline(_)       => row("deadline", 504,    "deadline",           T::Final,       S::Nothing),
            Self::Expired           => row("expired", 504,     "expired",            T::Final,       S::Nothing),
            Self::Barred(_)         => row("credentials", 502, "credentials",        T::Unmade,      S::Barred),
            Self::NoToken(_)        => row("credentials", 502, "token",              T::Unmade,      S::Barred),
            Self::Throttled(_)      => row("throttled", 429,   "throttled",          T::Final,       S::Nothing),
        }
    }

    /// The word for programs: `code` of an error reply, `reason` of a dead letter, `outcome` in metrics.
    pub fn code(&self) -> &'static str {
        self.row().code
    }

    /// What the operator can do about it, in a sentence.
    #[rustfmt::skip]
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "See whether [upstream] url can be reached from here, and its certificate trusted (ca_file).",
            Self::Local(_) => "This machine is short of files, memory or ports: raise its limits.",
            Self::Broken(_) => "The API, or a proxy before it, ends exchanges half-way: see its log.",
            Self::Unhandled(_) => "The API, or a proxy before it, is too busy: let it have more room, or lower [upstream] max_in_flight.",
            Self::Coding(_) => "Have the API answer in no content coding, or in gzip.",
            Self::AnswerTooLarge(_) => "Raise [upstream] max_response_bytes, or have the API answer less.",
            Self::AttemptTimeout => "The API was too slow for this message: see why, or raise [upstream] attempt_timeout and deadline.",
            Self::Deadline(_) => "The API served others and put this message off until its time was up: see why in its log, or raise [upstream] deadline.",
            Self::Expired => "It expired before the API took it: see why that was slow, or have the sender let it live longer.",
            Self::Barred(_) => "Renew what the gateway shows the API: [secrets] or [upstream.auth].",
            Self::NoToken(_) => "See whether the token endpoint works, and takes the secret in [upstream.auth].",
            Self::Throttled(_) => "Let the device send less, or raise [upstream.rate] if the API allows it.",
        }
    }

    /// The HTTP-like status of the error reply.
    pub fn status(&self) -> u16 {
        self.row().status
    }

    /// The label of an attempt that failed in this way.
    pub fn attempt(&self) -> &'static str {
        self.row().attempt
    }

    /// The same for a device: without what lies behind the gateway.
    pub fn told(&self) -> String {
        match self {
            Self::Unreachable(_) => "the upstream cannot be reached".to_owned(),
            Self::Local(_) => "this machine cannot make the call".to_owned(),
            Self::Broken(_) => "the exchange with the upstream broke off".to_owned(),
            Self::Unhandled(_) => "the upstream turned the request away".to_owned(),
            Self::NoToken(_) => "the token endpoint gives no token".to_owned(),
            kind => kind.to_string(),
        }
    }

    /// Whether another attempt may end better.
    pub fn transience(&self) -> Transience {
        self.row().transience
    }

    /// What an attempt that failed in this way says about the API.
    pub fn sign(&self) -> Sign {
        self.row().sign
    }
}

impl Transience {
    /// What a status says about another attempt: "not now" or "no".
    pub fn of(status: StatusCode) -> Self {
        match status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Self::Unprocessed,
            StatusCode::REQUEST_TIMEOUT => Self::Transient,
            StatusCode::NOT_IMPLEMENTED => Self::Final,
            status if status.is_server_error() => Self::Transient,
            _ => Self::Final,
        }
    }
}

impl Sign {
    /// What an answer with this status says about the API.
    pub fn of(status: StatusCode) -> Self {
        match Transience::of(status) {
            Transience::Final if status.is_success() => Self::Served,
            Transience::Final => Self::Refused,
            Transience::Transient | Transience::Unprocessed | Transience::Unmade => Self::Failed,
        }
    }
}

/// An attempt that failed.
impl From<FailureKind> for Unanswered {
    fn from(kind: FailureKind) -> Self {
        Failure::from(kind).into()
    }
}

impl Failure {
    /// A call that ends before an attempt was made.
    pub(crate) fn unmade(kind: FailureKind) -> Self {
        Self { kind, attempts: 0 }
    }
}

/// An attempt that failed.
impl From<FailureKind> for Failure {
    fn from(kind: FailureKind) -> Self {
        Self { kind, attempts: 1 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_ways_of_being_cut_short_are_told_apart() {
        let deadline = FailureKind::Deadline(StatusCode::SERVICE_UNAVAILABLE);
        for (kind, code, attempt, sign) in [
            (FailureKind::AttemptTimeout, "deadline", "timeout", Sign::Hung),
            (deadline, "deadline", "deadline", Sign::Nothing),
            (FailureKind::Expired, "expired", "expired", Sign::Nothing),
        ] {
            let is = (kind.code(), kind.attempt(), kind.status(), kind.sign());
            assert_eq!(is, (code, attempt, 504, sign), "{kind:?}");
        }
    }

    #[test]
    fn a_status_says_no_or_not_now() {
        for status in [200, 302, 400, 401, 404, 422, 501] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(Transience::of(status), Transience::Final, "{status}");
            assert!(matches!(Sign::of(status), Sign::Served | Sign::Refused), "{status}");
        }
        for (status, transience) in [
            (408, Transience::Transient),
            (429, Transience::Unprocessed),
            (500, Transience::Transient),
            (503, Transience::Unprocessed),
            (504, Transience::Transient),
        ] {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!((Transience::of(status), Sign::of(status)), (transience, Sign::Failed));
        }
    }
}
