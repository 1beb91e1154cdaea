//! One attempt: a call becomes one HTTP exchange, bounded in time and size.

use std::{
    error::Error,
    future::Future,
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{
    Request, Response,
    header::{CONTENT_TYPE, DATE, RETRY_AFTER},
};
use http_body_util::{BodyExt, Full};
use hyper::body::Body as _;
use tokio::time::{Instant, timeout_at};

use super::{
    ClientError, Settings,
    budget::{Budget, Reserved},
    coding::Coding,
    connection::{Body, SendError},
    connections::{Connections, Which},
    connector::{OpenError, Resolver},
    credentials::{Credentials, Shown},
    retry_after::retry_after,
};
use crate::{
    call::{Answer, Attempt, Call, Retry, SMALL_ANSWER, StatusCode},
    failure::{Failure, FailureKind, ProbeFailure, Transience},
    log::seconds,
    metrics::{self, AttemptResult, Metrics},
    tls,
    traces::{self, Span},
};

/// A call whose deadline has passed and whose device timed out last time gets the attempt's time divided by this.
const HURRIED: u32 = 10;

/// The errors of a machine that has no descriptor, memory or port left for a call: EMFILE, ENFILE, ENOMEM, ENOBUFS,
/// EADDRNOTAVAIL (as Linux numbers them).
const LOCAL_FAULTS: [i32; 5] = [24, 23, 12, 105, 99];

/// The HTTP client as a tower service.
#[derive(Clone)]
pub(super) struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    connections: Connections,
    attempt_timeout: Duration,
    max_response_bytes: usize,
    credentials: Credentials,
    budget: Budget,
    metrics: Arc<Metrics>,
}

impl Client {
    pub(super) fn new(
        settings: &Settings,
        resolver: Resolver,
        metrics: Arc<Metrics>,
    ) -> Result<Self, ClientError> {
        let shared = Shared {
            connections: Connections::new(settings, resolver)?,
            attempt_timeout: settings.attempt_timeout,
            max_response_bytes: settings.max_response_bytes,
            credentials: Credentials::new(settings, metrics.clone()),
            budget: Budget::new(settings.max_held_response_bytes, settings.max_response_bytes),
            metrics,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Asks whether the API works: any answer at this path shows that it does, unless its status says "not now".
    pub(super) async fn probe(&self, path: &str) -> Result<(), ProbeFailure> {
        match self.get(path).await? {
            status if Transience::of(status) == Transience::Final => Ok(()),
            status => Err(ProbeFailure::Answered(status)),
        }
    }

    /// One GET without credentials, on a connection of its own; its body is not read.
    pub(super) async fn get(&self, path: &str) -> Result<StatusCode, FailureKind> {
        let mut request = Request::new(Full::default());
        *request.uri_mut() = self.shared.connections.origin().uri(path)?;
        let clock = Clock { end: Instant::now() + self.shared.attempt_timeout, expires: None };
        let sent = pin!(self.shared.connections.send(&mut request, Which::Fresh));
        let response = clock.bound(sent).await?;
        response.map(|response| response.status()).map_err(|error| unsent(&error))
    }

    async fn attempt(&self, call: &Attempt) -> Result<Answer, Failure> {
        if let Some(queued) = call.queued {
            // Waiting for a place among those under way is our own limit.
            call.trial.excuse(queued.elapsed());
        }
        let time = self.shared.attempt_timeout;
        let time = if call.hurried { time / HURRIED } else { time };
        let Shared { credentials, connections, .. } = &*self.shared;
        let mut shown = credentials.next(call, connections).await?;
        let mut result = self.counted(call, &shown, time).await;
        let refused = |result: &Result<Answer, FailureKind>| {
            let status = result.as_ref().ok()?.status;
            credentials.are_refused(call, status).then_some(status)
        };
        if refused(&result).is_some() && credentials.can_show_others(call, &shown).await {
            shown = credentials.next(call, connections).await?;
            result = self.counted(call, &shown, time).await;
            if refused(&result).is_some() {
                credentials.forget(&shown).await;
            }
        }
        match refused(&result) {
            // Where a device's key went along it may be that key: one device is no outage.
            Some(status) if call.authorization.speakers_key().is_none() => {
                Err(FailureKind::Barred(status).into())
            }
            _ => result.map_err(Failure::from),
        }
    }

    /// One exchange, which is counted.
    async fn counted(
        &self,
        call: &Attempt,
        shown: &Shown,
        time: Duration,
    ) -> Result<Answer, FailureKind> {
        let began = Instant::now();
        let span = call.trace.as_ref().map(|trace| {
            let base = self.shared.connections.origin().url();
            let Call { name: row, method, path, .. } = &**call;
            trace.attempt(&traces::Attempt { row, method, base, path, earlier: call.earlier })
        });
        let result = self.exchange(call, shown, began + time, span.as_ref()).await;
        let ended = match &result {
            Ok(answer) => AttemptResult::Answered(answer.status.as_u16()),
            Err(kind) => AttemptResult::Failed(kind.attempt()),
        };
        if let Some(span) = span {
            match &result {
                Ok(answer) => span.answered(answer.status.as_u16()),
                Err(kind) => span.failed(kind.attempt(), kind.to_string()),
            }
        }
        self.shared.metrics.attempt(&metrics::Attempt {
            name: &call.name,
            ended,
            elapsed: began.elapsed(),
            is_retry: call.earlier > 0,
            sent: call.body.as_ref().map_or(0, Bytes::len),
            received: result.as_ref().map_or(0, |answer| answer.body.len()),
        });
        tracing::debug!(
            route = %call.name, device = %call.device, method = %call.method, %ended,
            elapsed_seconds = seconds(began.elapsed()), "attempt"
        );
        result
    }

    async fn exchange(
        &self,
        call: &Attempt,
        shown: &Shown,
        end: Instant,
        span: Option<&Span>,
    ) -> Result<Answer, FailureKind> {
        let clock = Clock { end, expires: call.expires };
        let response = self.send(call, shown, clock, span).await?;
        let (status, headers) = (response.status(), response.headers());
        let coding = Coding::of(headers)?;
        let content_type = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).map(Arc::from);
        let retry_after = headers.get(RETRY_AFTER).and_then(|v| retry_after(v, headers.get(DATE)));
        let body = self.body(response, coding, clock).await?;
        Ok(Answer { status, content_type, body, retry_after, attempts: 1 })
    }

    /// Makes the request, sends it, and waits for the head of the answer.
    async fn send(
        &self,
        call: &Attempt,
        shown: &Shown,
        clock: Clock,
        span: Option<&Span>,
    ) -> Result<Response<Body>, FailureKind> {
        let Shared { connections, credentials, .. } = &*self.shared;
        // A repetition goes to where the name points to now. What may not be sent twice must not meet
        // a connection that the server closes at that moment.
        let once = match call.retry {
            Retry::Always => false,
            Retry::Idempotent => !call.method.is_idempotent(),
            Retry::Never => true,
        };
        let which = if call.earlier > 0 || once { Which::Fresh } else { Which::Kept };
        let mut request = Request::new(Full::new(call.body.clone().unwrap_or_default()));
        *request.method_mut() = call.method.clone();
        *request.uri_mut() = connections.origin().uri(&credentials.path(call)?)?;
        let headers = request.headers_mut();
        credentials.put(call, shown, headers)?;
        if call.body.is_some() {
            headers.insert(CONTENT_TYPE, call.content_type.clone());
        }
        if let Some(sign) = &call.sign {
            credentials.sign(sign, call.body.as_deref().unwrap_or_default(), &mut request)?;
        }
        if let Some(span) = span {
            span.put_headers(request.headers_mut());
        }
        let sent = pin!(connections.send(&mut request, which));
        clock.bound(sent).await?.map_err(|error| unsent(&error))
    }

    async fn body(
        &self,
        response: Response<Body>,
        coding: Option<Coding>,
        mut clock: Clock,
    ) -> Result<Bytes, FailureKind> {
        let max = self.shared.max_response_bytes;
        let mut incoming = response.into_body();
        // What is larger is found out when it comes: it may not.
        let length = incoming.size_hint().exact();
        let length = length.map(|length| usize::try_from(length).unwrap_or(max).min(max));
        // Before anything of it is read: the client library reads ahead, up to 0.4 MiB at a time.
        let mut reserved = match length {
            // What it is decoded to may be as large as any answer, and stands beside it for a moment.
            _ if coding.is_some() => Some(self.reserve(2 * max, &mut clock).await),
            Some(length) if length > SMALL_ANSWER => Some(self.reserve(length, &mut clock).await),
            _ => None,
        };
        // Copied, since a chunk is a part of the connection's buffer: a reply that waits for the broker
        // would keep all of it, and the connection would need another.
        let mut body = Vec::with_capacity(length.unwrap_or_default());
        while let Some(frame) = clock.bound(pin!(incoming.frame())).await? {
            // Trailers say nothing that counts.
            let Ok(chunk) = frame.map_err(|error| classify(&error))?.into_data() else { continue };
            if body.len() + chunk.len() > max {
                return Err(FailureKind::AnswerTooLarge(max));
            }
            body.extend_from_slice(&chunk);
            drop(chunk);
            if body.len() > SMALL_ANSWER && reserved.is_none() {
                reserved = Some(self.reserve(max, &mut clock).await);
            }
        }
        if let Some(coding) = coding {
            body = coding.decode(&body, max)?;
        }
        // What it has grown by in vain is not counted.
        body.shrink_to_fit();
        Ok(match reserved {
            None => body.into(),
            Some(reserved) => reserved.tie_to(body),
        })
    }

    /// Waits for room for an answer, which is no fault of the API.
    async fn reserve(&self, bytes: usize, clock: &mut Clock) -> Reserved {
        let waits = Instant::now();
        let reserved = self.shared.budget.reserve(bytes).await;
        clock.end += waits.elapsed();
        reserved
    }
}

/// What bounds an attempt in time.
#[derive(Clone, Copy)]
struct Clock {
    end: Instant,
    expires: Option<Instant>,
}

impl Clock {
    /// The exchange stays where it is: it is large, and to move it is to copy it.
    async fn bound<F: Future>(&self, exchange: Pin<&mut F>) -> Result<F::Output, FailureKind> {
        let end = self.expires.map_or(self.end, |expires| expires.min(self.end));
        timeout_at(end, exchange).await.map_err(|_| {
            // An attempt that the message's own expiry cuts short says nothing about the API.
            if end < self.end { FailureKind::Expired } else { FailureKind::AttemptTimeout }
        })
    }
}

impl tower::Service<Attempt> for Client {
    type Response = Answer;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, Failure>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Attempt) -> Self::Future {
        let client = self.clone();
        Box::pin(async move { client.attempt(&call).await })
    }
}

/// Why a request has no answer.
pub(super) fn unsent(error: &SendError) -> FailureKind {
    // What a server holds against our certificate comes after the handshake.
    let unreachable =
        matches!(error, SendError::Connect(_)) || !tls::remedy(error, "upstream").is_empty();
    // What our own error says says nothing: its cause does.
    match classify(error.source().unwrap_or(error)) {
        FailureKind::Broken(text) if unreachable => FailureKind::Unreachable(text),
        kind => kind,
    }
}

/// What an error of the HTTP library means for the next attempt. The text names causes, never the request.
pub(super) fn classify(error: &(dyn Error + 'static)) -> FailureKind {
    let (mut text, mut system, mut key) = (String::new(), None, None);
    let (mut no_http, mut unhandled) = (false, false);
    let mut cause = Some(error);
    while let Some(error) = cause {
        text.push_str(if text.is_empty() { "" } else { ": " });
        text.push_str(&tls::plain(error));
        system = error.downcast_ref::<io::Error>().or(system);
        key = error.downcast_ref::<OpenError>().map(OpenError::key).or(key);
        unhandled |= error.downcast_ref::<h2::Error>().is_some_and(is_unhandled);
        no_http |= error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse);
        cause = error.source();
    }
    let remedy = tls::remedy(error, "upstream");
    if !remedy.is_empty() {
        text.push_str(&remedy);
    } else if let Some(key) = key {
        text.push_str(&tls::unreached(system, key));
    } else if no_http {
        text.push_str(
            "; this is no HTTP: is `[upstream] url` right, with `http://` or `https://`?",
        );
    }
    match system {
        Some(io) if io.raw_os_error().is_some_and(|code| LOCAL_FAULTS.contains(&code)) => {
            FailureKind::Local(text)
        }
        Some(io) if io.kind() == io::ErrorKind::TimedOut => FailureKind::AttemptTimeout,
        _ if unhandled => FailureKind::Unhandled(text),
        _ => FailureKind::Broken(text),
    }
}

/// Whether a server says over HTTP/2 that it has not handled the request [RFC 9113, 8.7].
fn is_unhandled(error: &h2::Error) -> bool {
    match error.reason() {
        Some(h2::Reason::REFUSED_STREAM) => true,
        Some(h2::Reason::NO_ERROR) => error.is_go_away() && error.is_remote(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_the_expiry_cuts_short_is_no_time_out() {
        let (now, second) = (Instant::now(), Duration::from_secs(1));
        let hang = std::future::pending::<()>;
        let own = Clock { end: now + 2 * second, expires: Some(now + second) };
        assert_eq!(own.bound(pin!(hang())).await, Err(FailureKind::Expired));
        assert_eq!(now.elapsed(), second);
        let attempt = Clock { expires: Some(now + 3 * second), ..own };
        assert_eq!(attempt.bound(pin!(hang())).await, Err(FailureKind::AttemptTimeout));
        assert_eq!(now.elapsed(), 2 * second);
    }
}
