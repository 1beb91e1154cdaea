//! Calls of different devices that wait anyway travel as one.
//!
//! Batches form by back-pressure: while as many are under way as the upstream may have, what comes
//! waits, and goes with the next. What the answer does not settle with a success for a call, that call
//! does by itself afterwards, as if there were no batches: so one bad entry costs the others nothing, and
//! each failure has its own status.
//!
//! There are two forms: a call of its own with an entry for each device, and the call that each of them is, with their
//! bodies joined.

use std::{
    borrow::{Borrow, Cow},
    collections::VecDeque,
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use bytes::Bytes;
use foldhash::HashMap;
use futures_util::FutureExt;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::{
    sync::{Notify, oneshot},
    time::{Instant, timeout},
};
use tower::{Service, ServiceExt};

use crate::{
    call::{Answer, Attempt, Authorization, Batch, BatchForm, Call, Entries, StatusCode},
    failure::{Failure, FailureKind},
    metrics::Metrics,
    secrets::Secret,
    traces::Span,
};

/// What bounds batches.
#[derive(Clone, Copy)]
pub(super) struct BatchLimits {
    /// Calls under way at once.
    pub(super) in_flight: usize,
    /// Bytes of bodies in a batch, unless one is larger.
    pub(super) bytes: usize,
    /// The same where a filter reads them.
    pub(super) filter_bytes: usize,
}

impl BatchLimits {
    fn of(self, batch: &Batch) -> usize {
        match &batch.form {
            BatchForm::Joined(join) if join.reads => self.bytes.min(self.filter_bytes),
            BatchForm::Joined(_) | BatchForm::Entries(_) => self.bytes,
        }
    }
}

/// A service whose calls may travel together.
pub(super) struct Batches<S>(Arc<Shared<S>>);

/// In one piece, since each attempt has several clones of its service.
struct Shared<S> {
    inner: S,
    limits: BatchLimits,
    metrics: Arc<Metrics>,
    /// By the row's name.
    queues: Mutex<HashMap<Arc<str>, Queue>>,
}

impl<S> Batches<S> {
    pub(super) fn new(inner: S, limits: BatchLimits, metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Shared { inner, limits, metrics, queues: Mutex::default() }))
    }
}

impl<S> Clone for Batches<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    /// Tasks that send batches.
    senders: usize,
    /// Wakes those that linger: a batch is full.
    full: Arc<Notify>,
}

struct Waiting {
    call: Attempt,
    result: oneshot::Sender<Option<Result<Answer, Failure>>>,
}

impl<S> Service<Attempt> for Batches<S>
where
    S: Service<Attempt, Response = Answer, Error = Failure> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    type Response = Answer;
    type Error = Failure;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, Failure>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, call: Attempt) -> Self::Future {
        let Some(batch) = call.batch.clone().filter(|batch| takes(batch, &call)) else {
            return Box::pin(self.0.inner.clone().oneshot(call));
        };
        let batches = self.clone();
        Box::pin(async move {
            let (result, settled) = oneshot::channel();
            batches.enqueue(Waiting { call: call.clone(), result }, &batch);
            // A sender that is gone, by a defect, has settled nothing.
            match settled.await.ok().flatten() {
                Some(result) => result,
                None if is_expired(&call) => Err(Failure::unmade(FailureKind::Expired)),
                None => batches.0.inner.clone().oneshot(call).await,
            }
        })
    }
}

impl<S> Batches<S>
where
    S: Service<Attempt, Response = Answer, Error = Failure> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    fn enqueue(&self, waiting: Waiting, batch: &Arc<Batch>) {
        let name = waiting.call.name.clone();
        let mut queues = self.queues();
        let queue = queues.entry(name.clone()).or_default();
        queue.waiting.push_back(waiting);
        if queue.waiting.len() >= batch.max {
            queue.full.notify_waiters();
        }
        if queue.senders < self.0.limits.in_flight.div_ceil(batch.max) {
            queue.senders += 1;
            tokio::spawn(self.clone().send(name, batch.clone()));
        }
    }

    /// Sends one batch after the other, as long as something waits.
    async fn send(self, name: Arc<str>, batch: Arc<Batch>) {
        if !batch.linger.is_zero() {
            // It ends in any case.
            let _ = timeout(batch.linger, self.full(&name, batch.max)).await;
        }
        loop {
            // The batch waits for its place first and takes its calls then, so that no call in it expires meanwhile.
            let mut inner = self.0.inner.clone();
            let _ = inner.ready().await;
            let Some(calls) = self.next(&name, &batch) else { return };
            self.0.metrics.batch(&name, calls.len());
            let calls = match (&batch.form, <[Waiting; 1]>::try_from(calls)) {
                // As if there were no batches; but by this sender, so that what comes meanwhile waits.
                (BatchForm::Joined(_), Ok([Waiting { call, result }])) => {
                    let sent = AssertUnwindSafe(inner.call(call)).catch_unwind().await;
                    let _ = result.send(sent.ok());
                    continue;
                }
                (BatchForm::Entries(_), Ok(alone)) => Vec::from(alone),
                (_, Err(calls)) => calls,
            };
            let answer = match whole(&calls, &batch.form, self.0.limits.bytes) {
                None => None,
                // A panic below must not end the sender: the calls of its row would wait for ever.
                Some(call) => AssertUnwindSafe(inner.call(call)).catch_unwind().await.ok(),
            };
            let answer = answer.and_then(Result::ok);
            let mut answers = Answers::of(answer.as_ref(), &calls, &batch.form);
            for Waiting { call, result } in calls {
                // It fails when a stop has ended the call's wait.
                let _ = result.send(answers.take(&call.device).map(Ok));
            }
        }
    }

    /// Waits until a batch is full.
    async fn full(&self, name: &Arc<str>, max: usize) {
        let full = self.queues().entry(name.clone()).or_default().full.clone();
        loop {
            let woken = full.notified();
            if self.queues().get(name).is_none_or(|queue| queue.waiting.len() >= max) {
                return;
            }
            woken.await;
        }
    }

    /// The calls of the next batch; `None` if none wait, which ends the sender.
    fn next(&self, name: &Arc<str>, batch: &Batch) -> Option<Vec<Waiting>> {
        let mut queues = self.queues();
        let queue = queues.entry(name.clone()).or_default();
        let (mut calls, mut bytes) = (Vec::with_capacity(queue.waiting.len().min(batch.max)), 0);
        while calls.len() < batch.max
            && let Some(waiting) = queue.waiting.pop_front_if(|waiting| {
                // One more for what stands between two.
                bytes += 1 + waiting.call.body.as_ref().map_or(0, Bytes::len);
                calls.is_empty() || bytes <= self.0.limits.of(batch)
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
        self.0.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_expired(call: &Call) -> bool {
    call.expires.is_some_and(|expires| expires <= Instant::now())
}

/// Whether a JSON text is an object.
fn is_object(json: &[u8]) -> bool {
    json.trim_ascii_start().first() == Some(&b'{')
}

/// Whether a call can travel in such a batch.
fn takes(batch: &Batch, call: &Call) -> bool {
    let (body, key) = (call.body.as_deref(), call.authorization.speakers_key());
    match &batch.form {
        // An entry is authorised by its device's key, or not at all.
        BatchForm::Entries(_) => key.is_some() && body.is_some_and(is_object),
        // And one call cannot carry the keys of several.
        BatchForm::Joined(_) => key.is_none() && body.is_some(),
    }
}

/// One call for all of them, with a body of at most `max` bytes; none if they cannot be joined.
fn whole(calls: &[Waiting], form: &BatchForm, max: usize) -> Option<Attempt> {
    let first = &calls.first()?.call;
    let (method, path, headers, authorization, body) = match form {
        BatchForm::Entries(form) => {
            // It names nothing that is one device's: the configuration is checked for that.
            let (path, headers) = form.endpoint.request(|_| None, None).ok()?;
            // Each entry carries its own key.
            (form.endpoint.method.clone(), path, headers, Authorization::None, entries(calls, form))
        }
        BatchForm::Joined(form) => {
            let bodies = calls.iter().filter_map(|waiting| waiting.call.body.clone()).collect();
            let joined = (form.join)(bodies, max).inspect_err(|error| {
                let (route, calls) = (&*first.name, calls.len());
                tracing::warn!(route, calls, %error, "bodies cannot be joined: each call goes by itself");
            });
            let (path, headers) = (first.path.clone(), first.headers.clone());
            (first.method.clone(), path, headers, first.authorization.clone(), joined.ok()?)
        }
    };
    let carried = calls.iter().filter_map(|waiting| waiting.call.trace.as_ref());
    // The device is for the log alone: no limit is kept for it, they are above.
    let whole = Call::new(first.name.clone(), "".into(), method, path, first.deadline);
    Some(first.of(Call {
        headers,
        sign: first.sign.clone(),
        body: Some(body),
        content_type: first.content_type.clone(),
        authorization,
        retry: first.retry,
        ok_on: first.ok_on.clone(),
        trace: Span::batch(&first.name, carried),
        ..whole
    }))
}

/// The bodies as entries of one object.
fn entries(calls: &[Waiting], form: &Entries) -> Bytes {
    let bodies = calls.iter().filter_map(|waiting| waiting.call.body.as_ref());
    let mut body = Vec::with_capacity(bodies.map(|body| body.len() + 128).sum());
    body.push(b'{');
    for Waiting { call, .. } in calls {
        if body.len() > 1 {
            body.push(b',');
        }
        put_text(&mut body, &call.device);
        body.push(b':');
        put_entry(&mut body, call, form);
    }
    body.push(b'}');
    body.into()
}

/// The call's own body with its key as the last member: who repeats it before does not change it.
fn put_entry(out: &mut Vec<u8>, call: &Call, form: &Entries) {
    let own = call.body.as_deref().unwrap_or_default().trim_ascii();
    let members = own.strip_suffix(b"}").unwrap_or_default();
    out.extend_from_slice(members);
    if members.trim_ascii() != b"{" {
        out.push(b',');
    }
    put_text(out, &form.key);
    out.push(b':');
    put_text(out, call.authorization.speakers_key().map_or("", Secret::expose));
    out.push(b'}');
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    // Writing text into memory cannot fail.
    let _ = serde_json::to_writer(out, text);
}

/// The name of a member of a JSON object; most stand there as they are.
#[derive(Deserialize, PartialEq, Eq, Hash)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

impl Borrow<str> for Name<'_> {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// The answer to a batch, taken apart.
#[derive(Default)]
struct Answers<'a> {
    status: StatusCode,
    content_type: Option<Arc<str>>,
    entries: HashMap<Name<'a>, &'a RawValue>,
    /// The member of an entry that says that it failed.
    error: &'a str,
    /// What everybody gets: a success of what was joined; or the API wants fewer calls, not one for each.
    everybody: Option<&'a Answer>,
}

impl<'a> Answers<'a> {
    /// Those to these calls.
    fn of(whole: Option<&'a Answer>, calls: &[Waiting], form: &'a BatchForm) -> Self {
        let Some(whole) = whole else { return Self::default() };
        let accepted = calls.first().is_some_and(|first| first.call.accepts(whole.status));
        match form {
            _ if whole.status == StatusCode::TOO_MANY_REQUESTS => Self::for_all(whole),
            BatchForm::Joined(_) if accepted => Self::for_all(whole),
            BatchForm::Joined(_) => Self::default(),
            BatchForm::Entries(form) => Self { error: &form.error, ..Self::new(whole) },
        }
    }

    fn for_all(whole: &'a Answer) -> Self {
        Self { everybody: Some(whole), ..Self::default() }
    }

    fn new(whole: &'a Answer) -> Self {
        // Some entries failed, others may not have.
        let mixed = whole.status == StatusCode::UNPROCESSABLE_ENTITY;
        if !whole.status.is_success() && !mixed {
            return Self::default();
        }
        Self {
            status: if mixed { StatusCode::OK } else { whole.status },
            content_type: whole.content_type.clone(),
            entries: serde_json::from_slice(&whole.body).unwrap_or_default(),
            ..Self::default()
        }
    }

    /// The answer to one call, if it is a success or everybody's.
    fn take(&mut self, device: &str) -> Option<Answer> {
        if let Some(answer) = self.everybody {
            return Some(answer.clone());
        }
        let entry = self.entries.remove(device)?.get();
        let good = entry.starts_with('{') && !has_member(entry, self.error);
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
        && serde_json::from_str::<HashMap<Name<'_>, &RawValue>>(object)
            .map_or(true, |members| members.get(name).is_some_and(|value| value.get() != "null"))
}

#[cfg(test)]
mod tests;
