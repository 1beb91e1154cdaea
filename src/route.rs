//! A route: what it listens to and what it makes of a message. Pure: a message goes in, a body or a
//! refusal comes out.

use std::{fmt, sync::Arc};

use bytes::Bytes;

use crate::{
    call::{Batch, Endpoint, Retry},
    fetch::{Condition, Then},
    filter::{self, Context, Filter},
    identity::Identity,
    json,
    message::Message,
    rate::Rate,
    refusal::Refusal,
    template::Template,
    topic::{self, Pattern},
};

/// `[[route]]`: a message from a device becomes a call.
#[derive(Debug)]
pub struct Route {
    /// Unique; the label in metrics, logs and dead letters.
    pub name: Arc<str>,
    /// Which topics it listens on.
    pub on: Pattern,
    /// What is called; without it only `answer` and `then` run.
    pub call: Option<Endpoint>,
    /// Where the answer goes when the message names no Response Topic.
    pub reply: Option<Template>,
    /// Translates the payload.
    pub body: Option<Filter>,
    /// Without `call`: makes the answer.
    pub answer: Option<Filter>,
    /// Whose key the call carries.
    pub credentials: Credentials,
    /// When the call may be repeated.
    pub retry: Retry,
    /// How often one device may be called for here.
    pub rate: Option<Rate>,
    /// How calls of different devices travel together.
    pub batch: Option<Arc<Batch>>,
    /// After success, over the answer: an object to remember of the device.
    pub remember: Option<Filter>,
    /// What to fetch after success, in this order.
    pub then: Vec<Then>,
}

/// Whose key a call carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Credentials {
    /// The message must bring its key.
    #[default]
    Message,
    /// The message must bring its key; one that brings none was not meant for us.
    MessageOrIgnore,
    /// The message's key, else the one last accepted upstream for this device.
    Remembered,
}

impl Route {
    /// Refuses a Response Topic outside the device's own subtree: a device must not make the
    /// gateway speak to another one.
    ///
    /// # Errors
    /// [`Refusal::ResponseTopic`].
    pub fn check_response_topic(
        &self,
        message: &Message,
        identity: &Identity,
    ) -> Result<(), Refusal> {
        let Some(wanted) = &message.properties.response_topic else { return Ok(()) };
        let own = self.on.subtree(&message.topic, &identity.capture).unwrap_or(&message.topic);
        let below = wanted.strip_prefix(own).is_some_and(|rest| !rest.is_empty());
        if below && topic::is_publishable(wanted) {
            Ok(())
        } else {
            Err(Refusal::ResponseTopic(own.chars().take(100).collect()))
        }
    }

    /// The body to send: the payload as it came, or translated by the row's filter.
    ///
    /// # Errors
    /// [`Refusal::TooLarge`] or [`Refusal::BadPayload`].
    pub fn body(
        &self,
        endpoint: &Endpoint,
        message: &Message,
        context: &Context,
        max: usize,
    ) -> Result<Option<Bytes>, Refusal> {
        let payload = &message.payload;
        if payload.len() > max {
            return Err(Refusal::TooLarge { size: payload.len(), max });
        }
        let not_json = |error: &dyn fmt::Display| {
            Refusal::BadPayload(format!("the payload is not JSON: {error}"))
        };
        match &self.body {
            None if !endpoint.takes_body() => Ok(None),
            None => {
                json::check(payload).map_err(|error| not_json(&error))?;
                Ok(Some(payload.clone()))
            }
            Some(translate) => {
                let input = filter::parse(payload).map_err(|error| not_json(&error))?;
                let outputs = translate.run(input, context).map_err(|error| {
                    Refusal::BadPayload(format!("the payload cannot be translated: {error}"))
                })?;
                match outputs.as_slice() {
                    [body] => Ok(Some(filter::to_json(body))),
                    _ => Err(Refusal::BadPayload(format!(
                        "the payload translates into {} bodies instead of one",
                        outputs.len()
                    ))),
                }
            }
        }
    }

    /// The filters that decide what follows an answer.
    pub fn deciding(&self) -> impl Iterator<Item = &Filter> {
        let then = self.then.iter().filter_map(|then| match &then.condition {
            Condition::Always => None,
            Condition::When(filter) | Condition::OnChange(filter) => Some(filter),
        });
        self.remember.iter().chain(then)
    }
}

impl Credentials {
    /// The words of the table.
    pub const WORDS: [(&'static str, Self); 3] = [
        ("message", Self::Message),
        ("message_or_ignore", Self::MessageOrIgnore),
        ("remembered", Self::Remembered),
    ];

    /// The word of the table.
    pub fn word(self) -> &'static str {
        Self::WORDS.iter().find(|(_, value)| *value == self).map_or("", |(word, _)| word)
    }
}
