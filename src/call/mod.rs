//! What crosses the HTTP side: calls and their answers. How they fail: [`failure`](crate::failure).

mod attempt;
pub(crate) mod headers;
pub(crate) mod sign;

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use http::HeaderValue;
pub(crate) use http::{Method, StatusCode};
use tokio::time::Instant;

pub(crate) use self::attempt::{Attempt, Trial};
use self::{
    headers::{Header, Headers},
    sign::Sign,
};
use crate::{
    secrets::Secret,
    template::{self, BadHeader, BadSegment, Rendered, Template},
    traces::Span,
};

/// The content type of a body whose row names no other, and of what the gateway itself says.
pub(crate) const JSON: &str = "application/json";
/// The same as a header.
pub(crate) const CONTENT_TYPE_JSON: HeaderValue = HeaderValue::from_static(JSON);

/// When a call may be sent again after an attempt that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Retry {
    /// After any transient failure: delivery is at least once.
    #[default]
    Always,
    /// After any transient failure if the method is idempotent [RFC 9110, 9.2.2]; else only when
    /// the upstream cannot have acted on it.
    Idempotent,
    /// Never.
    Never,
}

/// One call, complete but for the gateway's own secrets: it can be sent again as it stands, with the secrets of then.
pub struct Call {
    /// The row that asked for it, a label in metrics and logs.
    pub name: Arc<str>,
    /// The device it speaks for; limits are kept per device.
    pub device: Arc<str>,
    /// HTTP method.
    pub method: Method,
    /// Path and query below the upstream's URL; every segment is encoded.
    pub path: Rendered,
    /// Headers that the configuration names.
    pub headers: Arc<[Header]>,
    /// How it is signed.
    pub sign: Option<Arc<Sign>>,
    /// Body.
    pub body: Option<Bytes>,
    /// What the body is.
    pub content_type: HeaderValue,
    /// What it carries so that the API lets it in.
    pub authorization: Authorization,
    /// When it may be sent again.
    pub retry: Retry,
    /// How long its message may take, all attempts. Only time in which the API is known to serve others counts.
    pub deadline: Duration,
    /// The reading of the row's clock at the message's arrival: the deadline runs from there. None for a call of a
    /// fetch: its deadline runs from its first failure.
    pub since: Option<Duration>,
    /// Statuses that are successes, besides 2xx.
    pub ok_on: Arc<[StatusCode]>,
    /// What its attempts know of each other.
    pub trial: Trial,
    /// The message's own expiry, outage or not.
    pub expires: Option<Instant>,
    /// How it may travel with others.
    pub batch: Option<Arc<Batch>>,
    /// The span that its attempts belong below, where traces are on.
    pub trace: Option<Span>,
}

impl Call {
    /// A call of this row for this device that carries nothing, and that no attempt has been made of.
    pub fn new(
        name: Arc<str>,
        device: Arc<str>,
        method: Method,
        path: Rendered,
        deadline: Duration,
    ) -> Self {
        Self {
            name,
            device,
            method,
            path,
            headers: Arc::default(),
            sign: None,
            body: None,
            content_type: CONTENT_TYPE_JSON,
            authorization: Authorization::None,
            retry: Retry::Always,
            deadline,
            since: None,
            ok_on: Arc::default(),
            trial: Trial::default(),
            expires: None,
            batch: None,
            trace: None,
        }
    }

    /// Whether an answer with this status is a success.
    pub fn accepts(&self, status: StatusCode) -> bool {
        status.is_success() || self.ok_on.contains(&status)
    }

    /// How much of its deadline has passed when the clock of its row shows `clock`.
    pub fn spent(&self, clock: Duration) -> Duration {
        let since = self.since.or_else(|| self.trial.since()).unwrap_or(clock);
        clock.saturating_sub(since).saturating_sub(self.trial.excused())
    }

    /// The secrets that it needs, the device's key among them if it goes where the row says.
    pub fn secrets(&self) -> impl Iterator<Item = &str> {
        let sign = self.sign.iter().flat_map(|sign| sign.secret.secrets());
        self.path.secrets().chain(self.headers.iter().flat_map(Header::secrets)).chain(sign)
    }

    /// Whether the row says where the device's key goes; else it goes into the upstream's `key_header`.
    pub fn places_key(&self) -> bool {
        self.secrets().any(|name| name == template::KEY)
    }
}

/// Without the body, which may hold keys.
impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} for {} of {}", self.method, self.path, self.name, self.device)
    }
}

/// How calls of one row travel as one.
#[derive(Debug)]
pub struct Batch {
    /// Most calls in it.
    pub max: usize,
    /// How long the first one waits for others.
    pub linger: Duration,
    /// What they become.
    pub form: BatchForm,
}

/// What calls that travel together become.
#[derive(Debug)]
pub enum BatchForm {
    /// A call of its own, with an entry for each device.
    Entries(Entries),
    /// The call that each of them is, with all their bodies as one.
    Joined(Join),
}

/// A call whose body is an object with an entry for each device, which is that call's own body with the device's key as
/// one more member; so is its answer, with each call's own answer.
#[derive(Debug)]
pub struct Entries {
    /// The call for all of them.
    pub endpoint: Endpoint,
    /// The member of an entry that carries the device's key.
    pub key: Box<str>,
    /// The member of an answer's entry that says that this one failed.
    pub error: Box<str>,
}

/// Makes one body of several, of at most this many bytes, or says why it cannot.
type Joining = dyn Fn(Vec<Bytes>, usize) -> Result<Bytes, String> + Send + Sync;

/// How bodies become one.
pub struct Join {
    /// Whether a filter reads them.
    pub reads: bool,
    /// Joins them.
    pub join: Box<Joining>,
}

impl fmt::Debug for Join {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.reads { "Join(filter)" } else { "Join(lines)" })
    }
}

/// A method, a path and headers.
#[derive(Debug)]
pub struct Endpoint {
    /// HTTP method.
    pub method: Method,
    /// Path and query below the upstream's URL.
    pub path: Template,
    /// What else goes into the head of a request.
    pub headers: Headers,
    /// How a request is signed.
    pub sign: Option<Arc<Sign>>,
}

/// Why a message makes no request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Something cannot stand in its path.
    #[error(transparent)]
    Segment(#[from] BadSegment),
    /// Something cannot stand in one of its headers.
    #[error(transparent)]
    Header(#[from] BadHeader),
}

/// What a call carries so that the API lets it in. Who speaks is another matter, see
/// `identity::Speaker`: what the API says about something that is no key of the speaker's says
/// nothing about that key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authorization {
    /// The key of the device that the call speaks for: in the upstream's `key_header`, or in the body of a batch.
    SpeakersKey(Secret),
    /// Nothing.
    None,
}

impl Authorization {
    /// The key of the device that the call speaks for, if that is what it carries.
    pub fn speakers_key(&self) -> Option<&Secret> {
        match self {
            Self::SpeakersKey(key) => Some(key),
            Self::None => None,
        }
    }
}

/// How long a call may be tried.
#[derive(Debug, Clone, Copy)]
pub struct Lifetime {
    /// See [`Call::deadline`].
    pub deadline: Duration,
    /// See [`Call::expires`].
    pub expires: Option<Instant>,
    /// See [`Call::since`].
    pub since: Option<Duration>,
}

impl Endpoint {
    /// Its path and headers for a message; `value` gives what its names stand for, `key` is the device's.
    ///
    /// # Errors
    /// [`Unfit`] when something that goes into them may not stand there.
    pub fn request<'v>(
        &self,
        value: impl Fn(&str) -> Option<&'v str>,
        key: Option<&Secret>,
    ) -> Result<(Rendered, Arc<[Header]>), Unfit> {
        let path = self.path.path(&value)?;
        if let Some(key) = key
            && path.secrets().any(|name| name == template::KEY)
        {
            template::check_segment(template::KEY, key.expose())?;
        }
        Ok((path, self.headers.render(value)?))
    }

    /// Whether it says where the device's key goes.
    pub fn places_key(&self) -> bool {
        let mut secrets = self.templates().flat_map(|(_, template)| template.secrets());
        secrets.any(|name| **name == *template::KEY)
    }

    /// Everything in it that is a template, with the key of the configuration where it stands.
    pub fn templates(&self) -> impl Iterator<Item = (&'static str, &Template)> {
        let headers = self.headers.templates().map(|(_, template)| ("headers", template));
        [("call", &self.path)].into_iter().chain(headers)
    }

    /// Whether a request of this method may carry a body that its row makes; what it means to the API is the
    /// API's affair [RFC 9110, 9.3.5].
    pub fn may_have_body(&self) -> bool {
        self.takes_body() || self.method == Method::DELETE
    }

    /// Whether a request of this method carries the payload.
    pub fn takes_body(&self) -> bool {
        matches!(self.method, Method::POST | Method::PUT | Method::PATCH)
    }
}

/// What the upstream answered, whatever its status.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// HTTP status.
    pub status: StatusCode,
    /// `Content-Type` as answered.
    pub content_type: Option<Arc<str>>,
    /// The body, whole.
    pub body: Bytes,
    /// `Retry-After`, as the time left when it came [RFC 9110, 10.2.3].
    pub retry_after: Option<Duration>,
    /// How many attempts it took.
    pub attempts: u32,
}

/// Answers up to this size, in bytes, take no part of the memory that all answers share.
pub(crate) const SMALL_ANSWER: usize = 16 * 1024;

impl Answer {
    /// Whether its body takes a part of `max_held_response_bytes`.
    pub(crate) fn is_large(&self) -> bool {
        self.body.len() > SMALL_ANSWER
    }

    /// The answer as it may be kept while another call is made, which may have to wait for memory: if many
    /// messages kept a large answer meanwhile, none would go on.
    #[must_use]
    pub(crate) fn without_large_body(self) -> Self {
        if !self.is_large() {
            return self;
        }
        Self { body: Bytes::new(), content_type: None, ..self }
    }
}
