//! The way of a message through the gateway. Read this file first.
//!
//! The numbers are those of "The life of a message" in `docs/ARCHITECTURE.md`. Steps 1 and 2 are past when a
//! message comes here: `mqtt` has delivered it, and `lanes` has put it behind the earlier ones of its device.

mod dead_letter;
mod devices;
mod failed;
mod fetched;
mod filters;
mod follow;
mod items;
mod lanes;
mod outcome;
mod poll;
mod push;
mod reply;

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::time::Instant;

use self::{
    dead_letter::Envelope,
    devices::Devices,
    filters::{Filters, Shaped},
    follow::Follower,
    push::Pusher,
};
pub(crate) use self::{
    dead_letter::device_property,
    lanes::Lanes,
    outcome::{Outcome, WELL},
    poll::{Poller, Seen},
    push::topic as push_topic,
    reply::Destinations,
};
use crate::{
    call::{Answer, Call, Endpoint, JSON, Lifetime, StatusCode},
    failure::{Failure, FailureKind, Stopping, Unanswered},
    message::{Message, Publication},
    metrics::{Kept, Metrics},
    mqtt::{Delivery, Publisher},
    secrets::{Secret, Secrets, key_list::KeyList},
    table::{
        Incoming, Table, Taken,
        keys::Keys,
        refusal::Refusal,
        route::{Credentials, MaxBytes},
    },
    template::Template,
    topic::PatternIndex,
    traces::{Consumed, Span, Tracer},
    upstream::Upstream,
};

/// What the configuration says about exchanges.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The gateway's client identifier, the value of `via`.
    pub via: Arc<str>,
    /// How long one message may take, all attempts.
    pub deadline: Duration,
    /// How large payloads may be.
    pub max_bytes: MaxBytes,
    /// Where failures are answered that have no other place.
    pub errors: Option<Template>,
    /// Where dead letters go.
    pub dead_letter: Option<Template>,
    /// The gateway's own secrets: what is told of an answer goes without them.
    pub secrets: Arc<Secrets>,
    /// The keys of devices that show none.
    pub keys: Option<Arc<KeyList>>,
}

/// Handles messages. One for all devices.
pub(crate) struct Exchange {
    settings: Settings,
    table: Arc<Table>,
    devices: Arc<Devices>,
    filters: Filters,
    follower: Follower,
    upstream: Upstream,
    publisher: Publisher,
    metrics: Arc<Metrics>,
    /// None where traces are off.
    tracer: Option<Tracer>,
}

/// Why a row has no answer.
enum NoAnswer {
    Refused(Refusal),
    Unanswered(Unanswered),
}

impl<E: Into<Refusal>> From<E> for NoAnswer {
    fn from(refusal: E) -> Self {
        Self::Refused(refusal.into())
    }
}

impl From<Unanswered> for NoAnswer {
    fn from(unanswered: Unanswered) -> Self {
        Self::Unanswered(unanswered)
    }
}

impl Exchange {
    /// Wires an exchange that knows no device yet, and will know at most `remembered_devices`.
    pub(crate) fn new(
        settings: Settings,
        table: Arc<Table>,
        remembered_devices: usize,
        upstream: Upstream,
        publisher: Publisher,
        metrics: Arc<Metrics>,
        tracer: Option<Tracer>,
    ) -> Self {
        let devices = Arc::new(Devices::new(remembered_devices));
        let known = devices.clone();
        metrics.readings().devices_known.is(move || known.len());
        let filters = Filters::new(devices.clone(), metrics.clone(), settings.max_bytes.filter);
        let pusher = Pusher {
            via: settings.via.clone(),
            deadline: settings.deadline,
            devices: devices.clone(),
            filters: filters.clone(),
            upstream: upstream.clone(),
            publisher: publisher.clone(),
        };
        let follower = Follower::new(devices.clone(), filters.clone(), pusher, metrics.clone());
        Self { settings, table, devices, filters, follower, upstream, publisher, metrics, tracer }
    }

    /// The label of the row that a subscription belongs to.
    pub(crate) fn route_name(&self, subscription: Option<PatternIndex>) -> &Arc<str> {
        self.table.name(subscription)
    }

    /// What the clock shows now that the deadline of a message of this subscription runs by.
    pub(crate) fn clock(&self, subscription: Option<PatternIndex>) -> Duration {
        let route = self.table.route(subscription);
        route.map_or(Duration::ZERO, |route| self.upstream.clock(&route.name))
    }

    /// See [`Upstream::answering_time`].
    pub(crate) fn answering_time(&self) -> Duration {
        self.upstream.answering_time()
    }

    /// Takes a message from its arrival to its settlement: its outcome, in a word; none if it is left to the broker. Does
    /// not panic, whatever the message. `admitted` is what [`Exchange::clock`] showed when it came, or why there is no
    /// room for it.
    pub(crate) async fn serve(
        &self,
        delivery: Delivery,
        admitted: Result<Duration, Refusal>,
    ) -> Option<&'static str> {
        let Delivery { mut message, subscription, captures, sender, receipt } = delivery;
        message.trace = self.span(&message, subscription, &sender);
        // 3. A row takes it; or it is refused or ignored.
        let incoming = self.table.incoming(&message, subscription, &captures, &sender);
        let taken = self.table.take(&incoming, || self.known_key(&incoming));
        // 4. to 6. It becomes a call; the call's answer, or its failure, is its outcome.
        let outcome = match (&taken, admitted) {
            // A defect that one message hits must not take its device's other messages with it.
            (Ok(taken), Ok(clock)) => AssertUnwindSafe(self.handle(taken, clock))
                .catch_unwind()
                .await
                .unwrap_or(Ok(Outcome::Panicked)),
            (Ok(_), Err(refusal)) => Ok(Outcome::Refused(refusal)),
            (Err(not_taken), _) => Ok(not_taken.clone().into()),
        };
        // Not settled: the broker keeps it for the next gateway.
        let outcome = outcome.ok()?;
        if let Some(trace) = &message.trace {
            trace.concluded(outcome.code(), outcome.status(), outcome.trouble());
        }
        let letter = self.conclude(&outcome, &incoming, taken.as_ref().ok()).await;
        // 7. What the answer sets off is fetched and pushed.
        let code = outcome.code();
        if let (Ok(taken), Outcome::Delivered(answer)) = (&taken, outcome)
            && taken.route.call.is_some()
            && self.follow(taken, answer).await == Err(Stopping)
        {
            return None;
        }
        // 8. Behind everything published above, the message is settled, by its dead letter if it has one; 9. so the
        // broker gets its PUBACK.
        self.metrics.settled(incoming.name(), code, message.arrived);
        if let Some(trace) = &message.trace {
            receipt.trace(trace.clone()).await;
        }
        match letter {
            None => receipt.settle().await,
            Some(letter) => receipt.settle_by(letter).await,
        }
        Some(code)
    }

    /// The span of a message that has come; none where traces are off.
    fn span(
        &self,
        message: &Message,
        subscription: Option<PatternIndex>,
        sender: &str,
    ) -> Option<Span> {
        let tracer = self.tracer.as_ref()?;
        let route = self.table.route(subscription);
        Some(tracer.message(&Consumed {
            topic: &message.topic,
            pattern: route.map_or("(no row)", |route| route.on.as_str()),
            row: self.table.name(subscription),
            device: sender,
            bytes: message.payload.len(),
            received_at: message.received_at,
            properties: &message.properties.user,
        }))
    }

    /// The key of a device whose message has none, where its row takes one that is known: remembered, or listed.
    fn known_key(&self, incoming: &Incoming<'_>) -> Option<Secret> {
        let is_listed = incoming.route?.credentials == Credentials::Listed;
        let Some(keys) = self.settings.keys.as_ref().filter(|_| is_listed) else {
            return self.devices.key(incoming.device);
        };
        let (key, error) = keys.key(incoming.device);
        if let Some(error) = error {
            self.metrics.secret_failed("keys_file");
            tracing::error!(%error, "[device] keys_file cannot be used; the keys read before stay");
        }
        key
    }

    /// Finds the outcome of a message that a row has taken.
    async fn handle(&self, taken: &Taken<'_>, clock: Duration) -> Result<Outcome, Stopping> {
        let expires = taken.message.expires();
        let is_expired = || expires.is_some_and(|at| at <= Instant::now());
        if is_expired() {
            return Ok(Outcome::Failed(Failure::unmade(FailureKind::Expired)));
        }
        let lifetime = Lifetime { deadline: self.settings.deadline, expires, since: Some(clock) };
        match self.outcome(taken, lifetime).await {
            Ok(outcome) => Ok(outcome),
            Err(NoAnswer::Refused(refusal)) => Ok(Outcome::Refused(refusal)),
            Err(NoAnswer::Unanswered(Unanswered::Stopping)) => Err(Stopping),
            Err(NoAnswer::Unanswered(Unanswered::Failed(failure))) => {
                let kind = if is_expired() { FailureKind::Expired } else { failure.kind };
                Ok(Outcome::Failed(Failure { kind, ..failure }))
            }
        }
    }

    /// The outcome of a message: of one that passes `when`, what its call or its row's own answer makes of it.
    async fn outcome(&self, taken: &Taken<'_>, lifetime: Lifetime) -> Result<Outcome, NoAnswer> {
        let route = taken.route;
        route.check_size(taken.message, &self.settings.max_bytes)?;
        if !taken.passes(|| self.devices.memory(&taken.speaker))? {
            return Ok(Outcome::Skipped);
        }
        match &route.call {
            None => self.answer(taken).await,
            Some(endpoint) => {
                let answer = self.forward(taken, endpoint, lifetime).await?;
                let accepted = route.accepts(answer.status);
                Ok(Outcome::of(answer, accepted))
            }
        }
    }

    /// Makes the call of the row, and learns what its answer says of the key.
    async fn forward(
        &self,
        taken: &Taken<'_>,
        endpoint: &Endpoint,
        lifetime: Lifetime,
    ) -> Result<Answer, NoAnswer> {
        let Taken { route, speaker, authorization, .. } = taken;
        // A device over its rate is refused before its payload costs a filter.
        let turn = match &route.body {
            None => None,
            Some(_) => Some(self.upstream.turn(&route.name, &speaker.device, lifetime).await?),
        };
        // 4. The payload is checked or translated, the path rendered.
        let memory = || self.devices.memory(speaker);
        let call = taken.call(endpoint, memory, &self.settings.max_bytes, lifetime)?;
        // 5. Limits, attempts, back-off.
        let trace = taken.message.trace.clone();
        let answer = self.upstream.call(Call { trace, ..call }, turn).await?;
        // What the row takes for a success is one to all that follows.
        let accepted = route.accepts(answer.status);
        let status = if accepted { StatusCode::OK } else { answer.status };
        self.devices.learn_key(speaker, authorization, status);
        Ok(answer)
    }

    /// The outcome of a row that calls nothing: its own answer, if what it fetches does not fail.
    async fn answer(&self, taken: &Taken<'_>) -> Result<Outcome, NoAnswer> {
        let (status, content_type, body) = match &taken.route.answer {
            None => (StatusCode::NO_CONTENT, None, Bytes::new()),
            Some(filter) => match self.filters.answer(filter, taken)? {
                Some(body) => (StatusCode::OK, Some(JSON.into()), body),
                None => return Ok(Outcome::Unknown),
            },
        };
        let answer = Answer { status, content_type, body, retry_after: None, attempts: 0 };
        let followed = self.follower.follow(taken, answer.clone()).await;
        Ok(followed.map_err(|Stopping| Unanswered::Stopping)?.outcome(answer))
    }

    /// Does what follows the answer of a call. A defect in it does not change the outcome.
    async fn follow(&self, taken: &Taken<'_>, answer: Answer) -> Result<(), Stopping> {
        let follow = AssertUnwindSafe(self.follower.follow(taken, answer)).catch_unwind();
        let Ok(followed) = follow.await else {
            let route = &*taken.route.name;
            tracing::error!(route, "a push failed on a defect of the gateway");
            return Ok(());
        };
        followed.map(|_| ())
    }

    /// 6. Reports the outcome: to the device by a reply, to the operator by a line, and by a dead letter, which
    ///    is returned.
    async fn conclude(
        &self,
        outcome: &Outcome,
        incoming: &Incoming<'_>,
        taken: Option<&Taken<'_>>,
    ) -> Option<Publication> {
        let Settings { via, errors, dead_letter, secrets, .. } = &self.settings;
        let key = taken.and_then(|taken| taken.speaker.key.as_ref());
        let (message, name) = (incoming.message, incoming.name());
        self.log(outcome, incoming, key);
        let letters = dead_letter.as_ref().filter(|_| outcome.is_dead_letter());
        // A topic is not made where nothing goes there.
        let errors = errors.as_ref().filter(|_| !matches!(outcome, Outcome::Delivered(_)));
        let to = Destinations::of(incoming, errors, letters);
        let made = match (taken, outcome) {
            // It is not made where no reply is sent.
            (Some(taken), Outcome::Delivered(answer))
                if taken.route.call.is_some() && to.reply.is_some() =>
            {
                self.filters.shape(taken, answer)
            }
            _ => Shaped::AsItCame,
        };
        let reply = match made {
            Shaped::Nothing => None,
            Shaped::AsItCame => reply::reply(outcome, None, message, &to, name, via),
            Shaped::Made(body) => reply::reply(outcome, Some(body), message, &to, name, via),
        };
        if let Some(reply) = reply {
            self.publisher.publish(reply.traced(message.trace.as_ref())).await;
        }
        let letters = letters?;
        let Some(topic) = &to.dead_letter else {
            let topic = letters.as_str();
            tracing::warn!(
                topic,
                "no dead letter: this message has no value for a name in its topic"
            );
            self.metrics.dead_letter(name, outcome.code(), Kept::Dropped);
            return None;
        };
        let key_property = &*self.table.identity.key_property;
        let envelope = Envelope { topic, route: name, key_property, key, secrets, via };
        let letter = dead_letter::dead_letter(outcome, message, &envelope);
        Some(letter.traced(message.trace.as_ref()))
    }

    fn log(&self, outcome: &Outcome, incoming: &Incoming<'_>, key: Option<&Secret>) {
        let route = &**incoming.name();
        let device = incoming.route.map_or("", |_| &**incoming.device);
        let reason = outcome.code();
        if let Some(trouble) = outcome.trouble() {
            let keys = Keys::new(incoming.message, &self.table.identity.key_property, key);
            let failed =
                failed::message(outcome, incoming, &trouble, &keys, &self.settings.secrets);
            let (attempts, answer) = (failed.attempts, failed.answer.as_deref());
            tracing::warn!(route, device, reason, attempts, trouble, answer, "not delivered");
            self.metrics.failed(failed);
        }
        if let Outcome::Ignored(_) = outcome {
            tracing::info!(route, device, reason, "ignored");
        }
    }
}
