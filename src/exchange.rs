//! The way of a message through the gateway. Read this file first.
//!
//! 1. `mqtt` delivers a message; `lanes` has put it behind the earlier ones of its device.
//! 2. The table takes it: its route is known and the speaker's key. Or it is refused or ignored.
//! 3. The route makes a call of it; the upstream answers, or fails.
//! 4. The reply goes out, and the dead letter if it ended badly.
//! 5. What the answer gives news of is fetched and pushed.
//! 6. It is counted and settled: only now may the broker get its PUBACK.

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, LazyLock},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::time::Instant;

use crate::{
    call::{Answer, Call, JSON, Limits, StatusCode},
    dead_letter::{self, Envelope},
    failure::{Failure, FailureKind, Stopping, Unanswered},
    fetched::Trouble,
    filter::{self, MAX_OUTPUT_BYTES, Val},
    message::Message,
    metrics::Metrics,
    mqtt::{Delivery, Publisher},
    outcome::{Destinations, Outcome},
    printable,
    push::{Followed, Pusher},
    refusal::Refusal,
    route::{MaxBytes, Route},
    secret::Secret,
    table::{Table, Taken},
    template::Template,
    topic::{self, Captures},
    upstream::Upstream,
};

/// The label of messages that no route takes.
static NO_ROUTE: LazyLock<Arc<str>> = LazyLock::new(|| "none".into());

/// How much of the API's answer a line of the log has, in bytes.
const ANSWER_IN_LOG: usize = 200;

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
}

/// Handles messages. One for all devices.
pub struct Exchange {
    settings: Settings,
    table: Arc<Table>,
    upstream: Upstream,
    publisher: Publisher,
    pusher: Pusher,
    metrics: Arc<Metrics>,
}

impl Exchange {
    /// Wires an exchange.
    pub fn new(
        settings: Settings,
        table: Arc<Table>,
        upstream: Upstream,
        publisher: Publisher,
        pusher: Pusher,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { settings, table, upstream, publisher, pusher, metrics }
    }

    /// The label of the route that a subscription belongs to.
    pub fn route_name(&self, subscription: Option<usize>) -> &Arc<str> {
        subscription.map_or(&NO_ROUTE, |index| &self.table.routes[index].name)
    }

    /// What the clock shows now that the deadline of a message of this subscription runs by.
    pub fn clock(&self, subscription: Option<usize>) -> Duration {
        subscription
            .map_or(Duration::ZERO, |index| self.upstream.clock(&self.table.routes[index].name))
    }

    /// Takes a message from its arrival to its settlement. Does not panic, whatever the message. `admitted` is what
    /// [`Exchange::clock`] showed when it came, or why there is no room for it.
    pub async fn serve(&self, delivery: Delivery, admitted: Result<Duration, Refusal>) {
        let Delivery { message, subscription, captures, sender, receipt } = delivery;
        let route = subscription.map(|index| &self.table.routes[index]);
        let remembered = || self.pusher.devices().key(&sender);
        let taken = self.table.take(&message, route, &captures, &sender, remembered);
        let outcome = match (&taken, admitted) {
            // A defect that one message hits must not take its device's other messages with it.
            (Ok(taken), Ok(clock)) => AssertUnwindSafe(self.call(taken, clock))
                .catch_unwind()
                .await
                .unwrap_or(Ok(Outcome::Panicked)),
            (Ok(_), Err(refusal)) => Ok(Outcome::Refused(refusal)),
            (Err(not_taken), _) => Ok(not_taken.clone().into()),
        };
        let outcome = match outcome {
            Ok(outcome) => outcome,
            // Not settled: the next gateway gets the message again.
            Err(Stopping) => return,
        };
        let key = taken.as_ref().ok().map(|taken| &taken.caller.key);
        self.conclude(&outcome, &message, route, &captures, key).await;
        if let (Ok(taken), Outcome::Delivered(answer)) = (&taken, &outcome)
            && taken.route.call.is_some()
        {
            let follow = AssertUnwindSafe(self.pusher.follow(taken, answer));
            match follow.catch_unwind().await {
                Ok(Ok(_)) => {}
                // What it sets off is not done: as above.
                Ok(Err(Stopping)) => return,
                Err(_) => {
                    let route = &*taken.route.name;
                    tracing::error!(route, "a push failed on a defect of the gateway");
                }
            }
        }
        self.metrics.settled(self.route_name(subscription), outcome.code(), outcome.status());
        receipt.settle().await;
    }

    /// Makes the route's call, or its answer if it calls nothing.
    async fn call(&self, taken: &Taken<'_>, clock: Duration) -> Result<Outcome, Stopping> {
        let expires = taken.message.expires();
        let is_expired = || expires.is_some_and(|at| at <= Instant::now());
        if is_expired() {
            return Ok(Outcome::Failed(Failure::unmade(FailureKind::Expired)));
        }
        let limits = Limits { deadline: self.settings.deadline, expires, since: Some(clock) };
        let result = match self.make(taken, limits).await {
            Err(refusal) => return Ok(Outcome::Refused(refusal)),
            Ok(None) => {
                return match self.derive(taken) {
                    Outcome::Delivered(answer) => {
                        let followed = self.pusher.follow(taken, &answer).await?;
                        Ok(fetched(followed, answer))
                    }
                    outcome => Ok(outcome),
                };
            }
            Ok(Some(result)) => result,
        };
        if let Ok(answer) = &result {
            self.pusher.devices().verdict(&taken.caller, answer.status);
        }
        match result {
            Ok(answer) if answer.status.is_success() => Ok(Outcome::Delivered(answer)),
            Ok(answer) => Ok(Outcome::Rejected(answer)),
            Err(Unanswered::Failed(failure)) if is_expired() => {
                Ok(Outcome::Failed(Failure { kind: FailureKind::Expired, ..failure }))
            }
            Err(Unanswered::Failed(failure)) => Ok(Outcome::Failed(failure)),
            Err(Unanswered::Stopping) => Err(Stopping),
        }
    }

    /// The call, made. `None` if the route calls nothing.
    async fn make(
        &self,
        taken: &Taken<'_>,
        limits: Limits,
    ) -> Result<Option<Result<Answer, Unanswered>>, Refusal> {
        let Taken { message, route, caller } = taken;
        route.check_size(message, &self.settings.max_bytes)?;
        let Some(endpoint) = &route.call else { return Ok(None) };
        // A device over its rate is refused before its payload costs a filter.
        let turn = match &route.body {
            None => None,
            Some(_) => match self.upstream.turn(&route.name, &caller.device, limits).await {
                Ok(trial) => Some(trial),
                Err(failure) => return Ok(Some(Err(failure))),
            },
        };
        let memory = || self.pusher.devices().memory(caller);
        let body = route.body(endpoint, message, memory, &self.settings.max_bytes)?;
        let call = endpoint.call(&route.name, caller, body, route.retry, limits)?;
        let (has_turn, trial) = (turn.is_some(), turn.unwrap_or_default());
        let call = Call { batch: route.batch.clone(), has_turn, trial, ..call };
        Ok(Some(self.upstream.call(call).await))
    }

    /// The answer of a row that calls nothing: what its filter makes of what is known.
    fn derive(&self, taken: &Taken<'_>) -> Outcome {
        let (status, body) = match &taken.route.answer {
            None => (StatusCode::NO_CONTENT, Bytes::new()),
            Some(answer) => {
                let context = self.pusher.context(taken, answer.reads_payload());
                let made = self.pusher.run(answer, Val::Null, &context, taken.route);
                let made = made.and_then(|values| {
                    values.first().map(|value| filter::to_json(value, MAX_OUTPUT_BYTES)).transpose()
                });
                match made {
                    Ok(Some(body)) => (StatusCode::OK, body),
                    Ok(None) => return Outcome::Unknown,
                    Err(error) => {
                        let text = format!("no answer can be made: {error}");
                        return Outcome::Refused(Refusal::BadPayload(text));
                    }
                }
            }
        };
        let content_type = (!body.is_empty()).then(|| JSON.to_owned());
        Outcome::Delivered(Answer { status, content_type, body, retry_after: None, attempts: 0 })
    }

    /// Says how it ended: to the device by a reply, to the operator by a line and a dead letter.
    async fn conclude(
        &self,
        outcome: &Outcome,
        message: &Message,
        route: Option<&Route>,
        captures: &Captures,
        key: Option<&Secret>,
    ) {
        let name = route.map_or(&*NO_ROUTE, |route| &route.name);
        let (via, identity) = (&self.settings.via, &self.table.identity);
        if let Some(trouble) = outcome.trouble() {
            let device = captures.get(&identity.capture).unwrap_or_default();
            let (reason, attempts) = (outcome.code(), outcome.attempts());
            let answer = dead_letter::answer(outcome, message, &identity.key_property, key);
            let answer = answer.map(|answer| printable::short_line(&answer, ANSWER_IN_LOG));
            tracing::warn!(
                route = &**name,
                device,
                reason,
                attempts,
                trouble,
                answer,
                "not delivered"
            );
        }
        if let Outcome::Ignored(_) = outcome {
            let device = captures.get(&identity.capture).unwrap_or_default();
            tracing::info!(route = &**name, device, reason = outcome.code(), "ignored");
        }
        let to = self.destinations(message, name, route, captures);
        if let Some(reply) = outcome.reply(message, &to, name, via) {
            self.publisher.publish(reply).await;
        }
        if let Some(topic) = to.dead_letter.as_ref().filter(|_| outcome.is_dead_letter()) {
            let key_property = &identity.key_property;
            let envelope = Envelope { topic, route: name, key_property, key, via };
            self.publisher.publish(dead_letter::dead_letter(outcome, message, &envelope)).await;
        }
    }

    fn destinations(
        &self,
        message: &Message,
        name: &str,
        route: Option<&Route>,
        captures: &Captures,
    ) -> Destinations {
        let topic = |template: &Template| {
            let topic = template.topic(|n| if n == "route" { Some(name) } else { captures.get(n) });
            topic.filter(|topic| topic::is_publishable(topic))
        };
        let named = route
            .filter(|route| route.check_response_topic(message, &self.table.identity).is_ok())
            .and(message.properties.response_topic.clone());
        Destinations {
            reply: named.or_else(|| route?.reply.as_ref().and_then(topic)),
            errors: self.settings.errors.as_ref().and_then(topic),
            dead_letter: self.settings.dead_letter.as_ref().and_then(topic),
        }
    }
}

/// How a row ends that calls nothing but what it fetches: well if a fetch did, or there was none; else as the
/// worst of them.
fn fetched(followed: Followed, answer: Answer) -> Outcome {
    let Followed { fetched, troubles, .. } = followed;
    let worst = troubles.into_iter().max_by_key(|trouble| match trouble {
        Trouble::Failed(_) => u16::MAX,
        Trouble::Answered(answer) => answer.status.as_u16(),
        Trouble::Unusable(_) => 0,
    });
    match worst {
        Some(Trouble::Failed(failure)) if fetched == 0 => Outcome::Failed(failure),
        Some(Trouble::Answered(answer)) if fetched == 0 => Outcome::Rejected(answer),
        Some(Trouble::Unusable(why)) if fetched == 0 => {
            Outcome::Failed(FailureKind::Broken(why.to_string()).into())
        }
        _ => Outcome::Delivered(answer),
    }
}
