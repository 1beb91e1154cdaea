//! The table in force, and the first thing that is asked of it: is this message for us, and who
//! sent it?

use std::sync::Arc;

use crate::{
    call::Caller,
    fetch::Fetch,
    identity::Identity,
    message::{Message, VIA},
    refusal::Refusal,
    route::{Credentials, Route},
    secret::Secret,
    topic::Captures,
};

/// All rows.
#[derive(Debug)]
pub struct Table {
    /// Rows of `[[route]]`; no two match the same topic.
    pub routes: Vec<Route>,
    /// Rows of `[[fetch]]`.
    pub fetches: Vec<Fetch>,
    /// Where a message says who speaks.
    pub identity: Identity,
}

/// A message that a route has taken, and who sent it.
#[derive(Clone)]
pub struct Taken<'m> {
    /// The message.
    pub message: &'m Message,
    /// Its route.
    pub route: &'m Route,
    /// Who its calls speak for.
    pub caller: Caller<'m>,
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
    /// A gateway published it.
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
    /// Takes a message that came for `route`, if it came for one. `remembered` gives the key last
    /// accepted for the device.
    ///
    /// # Errors
    /// [`NotTaken`] when it carries `via`, names nobody or somebody else, or wants its answer where
    /// its device may not speak.
    pub fn take<'m>(
        &self,
        message: &'m Message,
        route: Option<&'m Route>,
        captures: &'m Captures,
        device: &Arc<str>,
        remembered: impl FnOnce() -> Option<Secret>,
    ) -> Result<Taken<'m>, NotTaken> {
        if message.user_property(VIA).next().is_some() {
            return Err(NotTaken::Ignored(Ignored::Loop));
        }
        let route = route.ok_or(Refusal::NoRoute)?;
        let key = match (self.identity.key(message, captures)?, route.credentials) {
            (Some(key), _) => key,
            (None, Credentials::MessageOrIgnore) => {
                return Err(NotTaken::Ignored(Ignored::NotARequest));
            }
            (None, Credentials::Message) => return Err(self.identity.missing().into()),
            (None, Credentials::Remembered) => {
                remembered().ok_or_else(|| self.identity.missing())?
            }
        };
        route.check_response_topic(message, &self.identity)?;
        Ok(Taken { message, route, caller: Caller { device: device.clone(), key, captures } })
    }
}
