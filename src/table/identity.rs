//! Who speaks: the device of the topic and the user properties that must agree with it. What its calls carry is
//! another matter: `call::Authorization`.

use std::sync::Arc;

use super::refusal::Refusal;
use crate::{
    message::Message,
    secrets::{
        Secret,
        key_list::{MAX_KEY_BYTES, is_key},
    },
    topic::{Captures, sender::Sender},
};

/// The names by which a message says who speaks.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The capture that names the device, in every row that does not say otherwise.
    pub capture: Arc<str>,
    /// The user property that must equal it.
    pub id_property: Box<str>,
    /// The user property that carries the key.
    pub key_property: Box<str>,
}

/// Who a message comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Speaker {
    /// The device that its topic names: lanes, limits and memory go by it.
    pub device: Arc<str>,
    /// The key that shows that it is this device: the message's own, or the one last accepted of the device where
    /// the row trusts the topic. None where the row asks for nothing but the topic.
    pub key: Option<Secret>,
}

impl Identity {
    /// Checks that the speaker is the device of its topic. Returns the message's key, or `None` if it names no device.
    ///
    /// # Errors
    /// [`Refusal::Identity`] when the message speaks for another device than its topic or says it
    /// twice, [`Refusal::NoCredentials`] when it is half a statement or the key is no header value.
    pub fn authenticate(
        &self,
        message: &Message,
        sender: &Sender,
        captures: &Captures,
    ) -> Result<Option<Secret>, Refusal> {
        let key = once(message, &self.key_property)?;
        let id = self.stated(message, sender, captures)?;
        let missing =
            |name: &str| Refusal::NoCredentials(format!("the user property `{name}` is missing"));
        match (id, key) {
            (None, None) => Ok(None),
            (None, Some(_)) => Err(missing(&self.id_property)),
            (Some(_), None) => Err(missing(&self.key_property)),
            (Some(_), Some(key)) if is_key(key) => Ok(Some(Secret::new(key))),
            (Some(_), Some(_)) => Err(Refusal::NoCredentials(format!(
                "the user property `{}` is not a key: 1 to {MAX_KEY_BYTES} printable ASCII \
                 characters, none of them a space",
                self.key_property
            ))),
        }
    }

    /// Who the message says that it speaks for, which must be the device of its topic; nothing if it does not say.
    ///
    /// # Errors
    /// [`Refusal::Identity`] when it says another one, or says it twice.
    pub fn stated<'m>(
        &self,
        message: &'m Message,
        sender: &Sender,
        captures: &Captures,
    ) -> Result<Option<&'m str>, Refusal> {
        let id = once(message, &self.id_property)?;
        if id.is_some() && sender.id(captures).as_deref() != id {
            return Err(Refusal::Identity(format!(
                "the user property `{}` is not the device of the topic",
                self.id_property
            )));
        }
        Ok(id)
    }

    /// Both properties missing, where a row needs them.
    pub fn missing(&self) -> Refusal {
        Refusal::NoCredentials(format!(
            "the user properties `{}` and `{}` are missing",
            self.id_property, self.key_property
        ))
    }
}

/// The value of a user property that may stand once.
fn once<'m>(message: &'m Message, name: &str) -> Result<Option<&'m str>, Refusal> {
    let mut values = message.user_property(name);
    match (values.next(), values.next()) {
        (value, None) => Ok(value),
        _ => Err(Refusal::Identity(format!("the user property `{name}` is there twice"))),
    }
}
