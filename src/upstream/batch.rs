//! Calls of different devices that wait anyway travel as one.
//!
//! Batches form by back-pressure: while as many are under way as the upstream may have, what comes
//! waits, and goes with the next. What the answer does not settle with a success for a call, that call
//! does by itself afterwards, as if there were no batches: so one bad entry costs the others nothing, and
//! each failure has its own status.

use std::{
    collections::{HashMap, VecDeque},
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::FutureExt;
use serde_json::value::RawValue;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};
use tower::{Service, ServiceExt};

use crate::{
    call::{Answer, Authorization, Batch, Call, StatusCode},
    failure::{Failure, FailureKind},
    secret::Secret,
};

/// What bounds batches.
#[derive(Clone, Copy)]
pub(super) struct BatchLimits {
    /// Calls under way at once.
    pub(super) max_in_flight: usize,
    /// Bytes of bodies in a batch, unless one is larger.
    pub(super) max_bytes: usize,
}

/// A service whose calls may travel together.
#[derive(Clone)]
pub(super) struct Batches<S> {
    inner: S,
    limits: BatchLimits,
    /// By the row's name.
    queues: Arc<Mutex<HashMap<Arc<str>, Queue>>>,
}

impl<S> Batches<S> {
    pub(super) fn new(inner: S, limits: BatchLimits) -> Self {
        Self { inner, limits, queues: Arc::default() }
    }
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    /// Tasks that send batches.
    senders: usize,
}

struct Waiting {
    call: Call,
    /// The key that the call carries, in the body of the batch instead of a header.
    key: Secret,
    result: oneshot::Sender<Option<Result<Answer, Failure>>>,
}

impl<S> Service<Call> for Batches<S>
where
    S: Service<Call, Response = Answer, Error = Failure> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    type Response = Answer;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, Failure>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Call) -> Self::Future {
        let batch = call.batch.clone().filter(|_| call.body.as_deref().is_some_and(is_object));
        // An entry is authorised by its device's key, or not at all.
        let (Some(batch), Some(key)) = (batch, call.authorization.speakers_key().cloned()) else {
            return Box::pin(self.inner.clone().oneshot(call));
        };
        let batches = self.clone();
        Box::pin(async move {
            let (result, settled) = oneshot::channel();
            batches.enqueue(Waiting { call: call.clone(), key, result }, &batch);
            // A sender that is gone, by a defect, has settled nothing.
            match settled.await.ok().flatten() {
                Some(result) => result,
                None if is_expired(&call) => Err(Failure::unmade(FailureKind::Expired)),
                None => batches.inner.oneshot(call).await,
            }
        })
    }
}

impl<S> Batches<S>
where
    S: Service<Call, Response = Answer, Error = Failure> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    fn enqueue(&self, waiting: Waiting, batch: &Arc<Batch>) {
        let name = waiting.call.name.clone();
        let mut queues = self.queues();
        let queue = queues.entry(name.clone()).or_default();
        queue.waiting.push_back(waiting);
        if queue.senders < self.limits.max_in_flight.div_ceil(batch.max) {
            queue.senders += 1;
            tokio::spawn(self.clone().send(name, batch.clone()));
        }
    }

    /// Sends one batch after the other, as long as something waits.
    async fn send(self, name: Arc<str>, batch: Arc<Batch>) {
        if !batch.linger.is_zero() {
            sleep(batch.linger).await;
        }
        loop {
            // First its place, then who goes: nobody expires while a batch waits for one.
            let mut inner = self.inner.clone();
            let _ = inner.ready().await;
            let Some(calls) = self.next(&name, &batch) else { return };
            let call = whole(&calls, &batch);
            // A sender outlives a defect in what it calls: without it its row would stand still.
            let sent = AssertUnwindSafe(inner.call(call)).catch_unwind().await;
            let answer = sent.ok().and_then(Result::ok);
            let mut answers = answer.as_ref().map(Answers::new).unwrap_or_default();
            for Waiting { call, result, .. } in calls {
                // Who does not wait any more has been given up by a stop.
                let _ = result.send(answers.take(&call.device, &batch.error).map(Ok));
            }
        }
    }

    /// What goes next; nothing ends the sender.
    fn next(&self, name: &Arc<str>, batch: &Batch) -> Option<Vec<Waiting>> {
        let mut queues = self.queues();
        let queue = queues.entry(name.clone()).or_default();
        let (mut calls, mut bytes) = (Vec::new(), 0);
        while calls.len() < batch.max
            && let Some(waiting) = queue.waiting.pop_front_if(|waiting| {
                bytes += waiting.call.body.as_ref().map_or(0, Bytes::len);
                calls.is_empty() || bytes <= self.limits.max_bytes
            })
        {
            if is_expired(&waiting.call) {
                let _ = waiting.result.send(Some(Err(Failure::unmade(FailureKind::Expired))));
            } else {
                calls.push(waiting);
            }
        }
        if calls.is_empty() {
            queue.senders -= 1;
            return None;
        }
        Some(calls)
    }

    fn queues(&self) -> MutexGuard<'_, HashMap<Arc<str>, Queue>> {
        // No code that can panic runs under this lock.
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_expired(call: &Call) -> bool {
    call.expires.is_some_and(|expires| expires <= Instant::now())
}

/// Whether a JSON text is an object.
fn is_object(json: &[u8]) -> bool {
    json.trim_ascii_start().first() == Some(&b'{')
}

/// One call for all of them.
fn whole(calls: &[Waiting], batch: &Batch) -> Call {
    let first = &calls.first().expect("a batch has an entry").call;
    let bodies = calls.iter().filter_map(|waiting| waiting.call.body.as_ref());
    let mut body = Vec::with_capacity(bodies.map(|body| body.len() + 128).sum());
    body.push(b'{');
    for Waiting { call, key, .. } in calls {
        if body.len() > 1 {
            body.push(b',');
        }
        put_text(&mut body, &call.device);
        body.push(b':');
        put_entry(&mut body, call, key, batch);
    }
    body.push(b'}');
    Call {
        // For the log; no limit is kept for it, it is below them.
        device: "".into(),
        method: batch.endpoint.method.clone(),
        path: batch.endpoint.path.as_str().to_owned(),
        body: Some(body.into()),
        // Each entry carries its own.
        authorization: Authorization::None,
        queued: None,
        expires: None,
        batch: None,
        ..first.clone()
    }
}

/// The call's own body with its key as the last member: who repeats it before does not change it.
fn put_entry(out: &mut Vec<u8>, call: &Call, key: &Secret, batch: &Batch) {
    let own = call.body.as_deref().unwrap_or_default().trim_ascii();
    let members = own.strip_suffix(b"}").unwrap_or_default();
    out.extend_from_slice(members);
    if members.trim_ascii() != b"{" {
        out.push(b',');
    }
    put_text(out, &batch.key);
    out.push(b':');
    put_text(out, key.expose());
    out.push(b'}');
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    // Writing text into memory cannot fail.
    let _ = serde_json::to_writer(out, text);
}

/// The answer to a batch, taken apart.
#[derive(Default)]
struct Answers<'a> {
    status: StatusCode,
    content_type: Option<String>,
    entries: HashMap<String, &'a RawValue>,
    /// What everybody gets: the API wants fewer calls, not one for each.
    everybody: Option<&'a Answer>,
}

impl<'a> Answers<'a> {
    fn new(whole: &'a Answer) -> Self {
        if whole.status == StatusCode::TOO_MANY_REQUESTS {
            return Self { everybody: Some(whole), ..Self::default() };
        }
        // Some entries failed, others may not have.
        let mixed = whole.status == StatusCode::UNPROCESSABLE_ENTITY;
        if !whole.status.is_success() && !mixed {
            return Self::default();
        }
        Self {
            status: if mixed { StatusCode::OK } else { whole.status },
            content_type: whole.content_type.clone(),
            entries: serde_json::from_slice(&whole.body).unwrap_or_default(),
            everybody: None,
        }
    }

    /// The answer to one call, if it is a success or everybody's.
    fn take(&mut self, device: &str, error: &str) -> Option<Answer> {
        if let Some(answer) = self.everybody {
            return Some(answer.clone());
        }
        let entry = self.entries.remove(device)?.get();
        let good = entry.starts_with('{') && !has_member(entry, error);
        good.then(|| Answer {
            status: self.status,
            content_type: self.content_type.clone(),
            body: Bytes::copy_from_slice(entry.as_bytes()),
            retry_after: None,
            attempts: 1,
        })
    }
}

/// Whether a JSON object has this member, and not as null.
fn has_member(object: &str, name: &str) -> bool {
    // Most have not, not even somewhere deeper: that is seen quickly.
    object.contains(name)
        && serde_json::from_str::<HashMap<String, &RawValue>>(object)
            .map_or(true, |members| members.get(name).is_some_and(|value| value.get() != "null"))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;
    use crate::{
        call::{Endpoint, Method},
        template::Template,
        upstream::fixtures,
    };

    fn batch() -> Batch {
        let path = Template::parse("/all").unwrap();
        Batch {
            endpoint: Endpoint { method: Method::POST, path },
            max: 3,
            linger: Duration::ZERO,
            key: "token".into(),
            error: "error".into(),
        }
    }

    fn waiting(device: &str, body: &str) -> Waiting {
        let call = Call {
            path: "/one".to_owned(),
            body: Some(Bytes::copy_from_slice(body.as_bytes())),
            ..fixtures::call("r", device)
        };
        let key = Secret::new(format!("key \"of\" {device}"));
        Waiting { call, key, result: oneshot::channel().0 }
    }

    #[test]
    fn bodies_become_entries_with_their_keys() {
        let calls = [
            waiting("a", " {\"x\": 1, \"token\": \"stolen\"}\n"),
            waiting("b", "{ }"),
            waiting("\"c", "{}"),
        ];
        let whole = whole(&calls, &batch());
        assert_eq!((whole.path.as_str(), whole.authorization), ("/all", Authorization::None));
        let body: Value = serde_json::from_slice(&whole.body.unwrap()).unwrap();
        let expected = json!({
            "a": {"x": 1, "token": "key \"of\" a"},
            "b": {"token": "key \"of\" b"},
            "\"c": {"token": "key \"of\" \"c"},
        });
        assert_eq!(body, expected);
    }

    #[test]
    fn an_answer_is_taken_apart_and_only_successes_count() {
        let answer = |status: u16, body: &'static str| Answer {
            status: StatusCode::from_u16(status).unwrap(),
            content_type: Some("application/json".to_owned()),
            body: body.into(),
            retry_after: None,
            attempts: 1,
        };
        let text = r#"{"a": {"flag":  true}, "b": {"error": "no"}, "c": 5, "d": {"x": {"error": 1}, "error": null}}"#;
        for (status, expected) in [(201, Some(201)), (422, Some(200)), (500, None), (401, None)] {
            let whole = answer(status, text);
            let mut answers = Answers::new(&whole);
            let a = answers.take("a", "error");
            assert_eq!(a.as_ref().map(|answer| answer.status.as_u16()), expected);
            assert!(a.is_none_or(|answer| &*answer.body == br#"{"flag":  true}"#));
            assert!(answers.take("b", "error").is_none() && answers.take("c", "error").is_none());
            assert_eq!(answers.take("d", "error").is_some(), expected.is_some());
            assert!(answers.take("e", "error").is_none());
        }
        assert!(Answers::new(&answer(200, "<html>")).entries.is_empty());
        let busy = answer(429, "later");
        let taken = Answers::new(&busy).take("e", "error").unwrap();
        assert_eq!((taken.status, &*taken.body), (busy.status, &b"later"[..]));
    }
}
