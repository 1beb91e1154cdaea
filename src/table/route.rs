//! A route: what it listens on, whom it takes messages from, and what it does with them.

use std::sync::Arc;

use super::{
    content::{ContentType, Takes},
    fetch::{Condition, Then},
    refusal::Refusal,
};
use crate::{
    call::{Batch, Endpoint, Retry, StatusCode},
    filter::{Filter, Reads},
    message::Message,
    rate::Rate,
    template::Template,
    topic::{self, Pattern, sender::Sender},
};

/// How many levels and bytes a Response Topic may have below the device's own part. Some brokers end the connection over
/// a topic with very many levels.
const MAX_RESPONSE_LEVELS: usize = 16;
const MAX_RESPONSE_BYTES: usize = 512;

/// `[[route]]`: a message from a device becomes a call.
#[derive(Debug)]
pub struct Route {
    /// Unique; the label in metrics, logs and dead letters.
    pub name: Arc<str>,
    /// Which topics it listens on.
    pub on: Pattern,
    /// Who sends there.
    pub sender: Sender,
    /// What is called; without it only `answer` and `then` run.
    pub call: Option<Endpoint>,
    /// Where the answer goes when the message names no Response Topic.
    pub reply: Option<Template>,
    /// The broker keeps the answer on `reply` for whoever subscribes later.
    pub retain: bool,
    /// Over the payload: a message of which it is not true is let go.
    pub when: Option<Filter>,
    /// Over the payload: what else has a name in the path and the headers of its call.
    pub values: Vec<(Box<str>, Filter)>,
    /// What it takes payloads for.
    pub takes: Takes,
    /// What its bodies are.
    pub content_type: ContentType,
    /// Translates the payload.
    pub body: Option<Filter>,
    /// Over the API's answer: makes the reply. Without `call` it makes the answer itself.
    pub answer: Option<Filter>,
    /// Statuses of the API that are successes, besides 2xx.
    pub ok_on: Arc<[StatusCode]>,
    /// Who may speak, and whose key the call carries.
    pub credentials: Credentials,
    /// When the call may be repeated.
    pub retry: Retry,
    /// The limit on attempts of one device on this row.
    pub rate: Option<Rate>,
    /// How calls of different devices travel together.
    pub batch: Option<Arc<Batch>>,
    /// After a success, over the answer: makes the object to remember of the device.
    pub remember: Option<Filter>,
    /// What to fetch after success, in this order.
    pub then: Vec<Then>,
    /// Whether one of its filters reads the payload, before the call or after it.
    pub reads_payload: bool,
}

/// How large a payload may be, in bytes.
#[derive(Debug, Clone, Copy)]
pub struct MaxBytes {
    /// Largest body that is sent to the API, as it came or translated.
    pub request: usize,
    /// Largest payload or answer that a filter reads.
    pub filter: usize,
}

/// Who may speak, and whose key its calls carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Credentials {
    /// The message must bring its key.
    Message,
    /// The message must bring its key; one without credentials is not meant for the gateway and is ignored.
    MessageOrIgnore,
    /// The message's key, else the one last accepted upstream for this device.
    Remembered,
    /// The message's key, else the one in `[device] keys_file`.
    Listed,
    /// Nothing is asked and no key goes upstream: whoever may write on the topic is its device.
    None,
}

impl Route {
    /// Whether the message may have its answer where it wants it. A Response Topic outside the device's own subtree is refused: a device
    /// must not make the gateway speak to another one.
    ///
    /// # Errors
    /// [`Refusal::ResponseTopic`].
    pub fn response_topic<'m>(
        &self,
        message: &Message,
        wanted: &'m str,
    ) -> Result<&'m str, Refusal> {
        let below = self.sender.below(&self.on, &message.topic, wanted);
        let is_short = |below: &str| {
            (1..=MAX_RESPONSE_BYTES).contains(&below.len())
                && below.split('/').count() <= MAX_RESPONSE_LEVELS
        };
        if below.is_some_and(is_short) && topic::is_publishable(wanted) {
            return Ok(wanted);
        }
        Err(self.no_response_topic(message))
    }

    /// What a message is told that wants its answer elsewhere.
    pub fn no_response_topic(&self, message: &Message) -> Refusal {
        let own = self.sender.own(&self.on, &message.topic);
        let own = own.filter(|_| self.sender.has_topics(&self.on));
        Refusal::ResponseTopic(match own {
            Some(own) => {
                let own: String = own.chars().take(100).collect();
                format!("the Response Topic must be a plain topic below `{own}/`")
            }
            None => "no Response Topic can be named here: no level of the topic belongs to its sender alone"
                .to_owned(),
        })
    }

    /// Whether it does nothing with a message but acknowledge it.
    pub fn swallows(&self) -> bool {
        let does = [self.call.is_some(), self.answer.is_some(), self.remember.is_some()];
        !does.contains(&true) && self.then.is_empty() && self.reply.is_none()
    }

    /// Refuses a payload that is too large to be sent, or to be read by the row's filters.
    ///
    /// # Errors
    /// [`Refusal::TooLarge`].
    pub fn check_size(&self, message: &Message, max: &MaxBytes) -> Result<(), Refusal> {
        let size = message.payload.len();
        let limits = [(self.call.is_some(), max.request), (self.reads_payload, max.filter)];
        match limits.into_iter().find(|(applies, max)| *applies && size > *max) {
            Some((_, max)) => Err(Refusal::TooLarge { size, max }),
            None => Ok(()),
        }
    }

    /// Whether an answer with this status is a success.
    pub fn accepts(&self, status: StatusCode) -> bool {
        status.is_success() || self.ok_on.contains(&status)
    }

    /// What the filters that make the call read besides the payload; none if there are none.
    pub fn opens(&self) -> Option<Reads> {
        if self.body.is_none() && self.values.is_empty() {
            return None;
        }
        Some(self.values.iter().map(|(_, filter)| filter).chain(&self.body).sum())
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
    /// What can be written in the table.
    pub const WORDS: [(&'static str, Self); 5] = [
        ("message", Self::Message),
        ("message_or_ignore", Self::MessageOrIgnore),
        ("remembered", Self::Remembered),
        ("listed", Self::Listed),
        ("none", Self::None),
    ];

    /// Whether a message that is taken has the key of its device.
    pub fn give_key(self) -> bool {
        match self {
            Self::Message | Self::MessageOrIgnore | Self::Remembered | Self::Listed => true,
            Self::None => false,
        }
    }

    /// As it is written in the table.
    pub fn as_str(self) -> &'static str {
        Self::WORDS.iter().find(|(_, value)| *value == self).map_or("", |(word, _)| word)
    }
}
