//! The table in force: which of its rows takes a message, who speaks, and which calls are made for it. Pure.

mod body;
pub(crate) mod content;
pub(crate) mod describe;
pub(crate) mod every;
pub(crate) mod fetch;
pub(crate) mod identity;
pub(crate) mod join;
pub(crate) mod keys;
pub(crate) mod refusal;
pub(crate) mod route;
mod values;

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use self::{
    fetch::Fetch,
    identity::{Identity, Speaker},
    refusal::Refusal,
    route::{Credentials, MaxBytes, Route},
    values::Values,
};
use crate::{
    call::{Authorization, Call, Endpoint, Lifetime, Unfit},
    filter::Val,
    message::{Message, VIA},
    secrets::Secret,
    topic::{Captures, PatternIndex, patterns::Patterns},
};

/// The label of messages that no row takes.
pub(crate) static NO_ROUTE: LazyLock<Arc<str>> = LazyLock::new(|| "none".into());

/// All rows.
#[derive(Debug)]
pub struct Table {
    /// Rows of `[[route]]`.
    pub routes: Vec<Route>,
    /// Which of them a topic belongs to.
    pub patterns: Arc<Patterns>,
    /// Where `replay` hears of messages whose sender has no topics of its own: any row's may be answered there.
    pub replays: Option<Box<str>>,
    /// Rows of `[[fetch]]`.
    pub fetches: Vec<Arc<Fetch>>,
    /// The names by which a message says who speaks.
    pub identity: Identity,
}

/// A message that has come in.
pub struct Incoming<'m> {
    /// The message.
    pub message: &'m Message,
    /// The row that its topic matches; none if an earlier table left a subscription in the session.
    pub route: Option<&'m Route>,
    /// What its topic captured.
    pub captures: &'m Captures,
    /// The device that its topic names.
    pub device: &'m Arc<str>,
    /// The names by which it says who speaks.
    identity: &'m Identity,
    /// Where it wants its answer, if it says so and may have it there.
    response_topic: Result<Option<&'m str>, Refusal>,
}

impl<'m> Incoming<'m> {
    /// The label of its row.
    pub fn name(&self) -> &'m Arc<str> {
        self.route.map_or(&*NO_ROUTE, |route| &route.name)
    }

    /// Its Response Topic, if it may have its answer there.
    pub fn response_topic(&self) -> Option<&'m str> {
        self.response_topic.as_ref().ok().copied().flatten()
    }
}

/// A message that a row has taken: it is known who speaks and what the calls for it carry.
pub struct Taken<'m> {
    /// The message.
    pub message: &'m Message,
    /// Its row.
    pub route: &'m Route,
    /// What its topic captured.
    pub captures: &'m Captures,
    /// Who it comes from.
    pub speaker: Speaker,
    /// What its calls carry.
    pub authorization: Authorization,
    /// The names by which it says who speaks.
    pub identity: &'m Identity,
}

impl Taken<'_> {
    /// The call of its row, complete. `memory` is what is remembered of the device.
    ///
    /// # Errors
    /// [`Refusal`] when the payload is not what the row takes, or something cannot stand in the path or a header.
    pub fn call(
        &self,
        endpoint: &Endpoint,
        memory: impl FnOnce() -> Val,
        max: &MaxBytes,
        lifetime: Lifetime,
    ) -> Result<Call, Refusal> {
        let route = self.route;
        route.check_size(self.message, max)?;
        let opened = match route.opens() {
            Some(reads) => Some(self.open(reads, memory)?),
            None => None,
        };
        let values = match &opened {
            Some(opened) => Values::of(&route.values, opened)?,
            None => Values::default(),
        };
        let body = self.body(endpoint, opened.as_ref(), max)?;
        let value = |name: &str| self.captures.get(name).or_else(|| values.get(name));
        let call = self.request(&route.name, endpoint, lifetime, value)?;
        let (content_type, batch) = (route.content_type.header.clone(), route.batch.clone());
        Ok(Call {
            body,
            content_type,
            ok_on: route.ok_on.clone(),
            retry: route.retry,
            batch,
            ..call
        })
    }

    /// The call of a fetch that its answer sets off.
    ///
    /// # Errors
    /// [`Unfit`] when something cannot stand in the path or a header.
    pub fn fetch(
        &self,
        name: &Arc<str>,
        endpoint: &Endpoint,
        deadline: Duration,
    ) -> Result<Call, Unfit> {
        let lifetime = Lifetime { deadline, expires: None, since: None };
        self.request(name, endpoint, lifetime, |name| self.captures.get(name))
    }

    /// `value` gives what the names of the endpoint stand for.
    fn request<'v>(
        &self,
        name: &Arc<str>,
        endpoint: &Endpoint,
        lifetime: Lifetime,
        value: impl Fn(&str) -> Option<&'v str>,
    ) -> Result<Call, Unfit> {
        let Lifetime { deadline, expires, since } = lifetime;
        let key = self.authorization.speakers_key();
        let (path, headers) = endpoint.request(value, key)?;
        let (sign, authorization) = (endpoint.sign.clone(), self.authorization.clone());
        let (device, method) = (self.speaker.device.clone(), endpoint.method.clone());
        let call = Call::new(name.clone(), device, method, path, deadline);
        Ok(Call { headers, sign, authorization, since, expires, ..call })
    }
}

/// Why a message is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotTaken {
    /// It was not meant for the gateway.
    Ignored(Ignored),
    /// It was, and is refused.
    Refused(Refusal),
}

/// Why a message was not meant for the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ignored {
    /// A gateway published it: it carries `via` and no valid credentials.
    Loop,
    /// It carries no credentials on a topic that devices and gateway share.
    NotARequest,
}

impl From<Refusal> for NotTaken {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl Table {
    /// The row of a subscription: each row has one, in the same order.
    pub fn route(&self, subscription: Option<PatternIndex>) -> Option<&Route> {
        let PatternIndex(index) = subscription?;
        self.routes.get(index)
    }

    /// The label of that row.
    pub fn name(&self, subscription: Option<PatternIndex>) -> &Arc<str> {
        self.route(subscription).map_or(&*NO_ROUTE, |route| &route.name)
    }

    /// The labels of all rows, and at the end that of none.
    pub fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.routes.iter().map(|route| &route.name).chain([&*NO_ROUTE])
    }

    /// Whether a row has the broker keep what is published.
    pub fn retains(&self) -> bool {
        self.routes.iter().any(|route| route.retain)
            || self.fetches.iter().any(|fetch| fetch.retain)
    }

    /// A message that has come for this subscription.
    pub fn incoming<'m>(
        &'m self,
        message: &'m Message,
        subscription: Option<PatternIndex>,
        captures: &'m Captures,
        device: &'m Arc<str>,
    ) -> Incoming<'m> {
        let route = self.route(subscription);
        let wanted = message.properties.response_topic.as_deref();
        let response_topic = match route.zip(wanted) {
            None => Ok(None),
            Some((_, wanted)) if self.replays.as_deref() == Some(wanted) => Ok(Some(wanted)),
            // Below a sender's own levels another one may speak, where topics name devices in several ways.
            Some((route, wanted)) if self.patterns.is_anothers(wanted, device) => {
                Err(route.no_response_topic(message))
            }
            Some((route, wanted)) => route.response_topic(message, wanted).map(Some),
        };
        Incoming { message, route, captures, device, identity: &self.identity, response_topic }
    }

    /// Takes a message. `known` gives the key that its row takes where the message has none: the one last accepted for the
    /// device, or the one listed.
    ///
    /// # Errors
    /// [`NotTaken`] when it came for no row, carries `via` and no credentials, names nobody or somebody else, or
    /// wants its answer where its device may not speak.
    pub fn take<'m>(
        &self,
        incoming: &Incoming<'m>,
        known: impl FnOnce() -> Option<Secret>,
    ) -> Result<Taken<'m>, NotTaken> {
        let Incoming { message, route, captures, device, identity, response_topic } = incoming;
        let is_ours = message.user_property(VIA).next().is_some();
        let Some(route) = route else {
            return Err(match is_ours {
                true => NotTaken::Ignored(Ignored::Loop),
                false if self.patterns.brings_beside(&message.topic) => {
                    NotTaken::Ignored(Ignored::NotARequest)
                }
                false => Refusal::NoRoute.into(),
            });
        };
        // No gateway sends credentials: a message with valid ones is a device's, whatever else it carries, an
        // echo of what it was pushed for example. A row that asks for none cannot tell.
        let own = match route.credentials {
            _ if route.swallows() => Ok(None),
            Credentials::None => {
                self.identity.stated(message, &route.sender, captures).map(|_| None)
            }
            _ => self.identity.authenticate(message, &route.sender, captures),
        };
        if is_ours && !matches!(own, Ok(Some(_))) {
            return Err(NotTaken::Ignored(Ignored::Loop));
        }
        if route.swallows() {
            return Err(NotTaken::Ignored(Ignored::NotARequest));
        }
        let key = match (own?, route.credentials) {
            (None, Credentials::None) => None,
            (Some(key), _) => Some(key),
            (None, Credentials::MessageOrIgnore) => {
                return Err(NotTaken::Ignored(Ignored::NotARequest));
            }
            (None, Credentials::Message) => return Err(self.identity.missing().into()),
            (None, Credentials::Remembered | Credentials::Listed) => {
                Some(known().ok_or_else(|| self.identity.missing())?)
            }
        };
        response_topic.clone()?;
        let authorization = key.clone().map_or(Authorization::None, Authorization::SpeakersKey);
        let speaker = Speaker { device: (*device).clone(), key };
        Ok(Taken { message, route, captures, speaker, authorization, identity })
    }
}

#[cfg(test)]
mod tests;
