//! What unit tests begin with: a message, a call, an answer, a configuration.

use std::{collections::BTreeMap, sync::Arc, time::Duration, time::SystemTime};

use bytes::Bytes;
use tokio::time::Instant;

use crate::{
    call::{Answer, Call, Method, StatusCode},
    config::Config,
    message::{Message, Properties},
};

/// A message on this topic, with these user properties.
pub(crate) fn message(topic: &str, user: &[(&str, &str)], payload: &[u8]) -> Message {
    Message {
        topic: topic.to_owned(),
        payload: Bytes::copy_from_slice(payload),
        properties: Properties { user: user.iter().copied().collect(), ..Properties::default() },
        received_at: SystemTime::UNIX_EPOCH,
        trace: None,
        arrived: Instant::now(),
    }
}

/// A call of this row for this device, not sent yet, that carries nothing.
pub(crate) fn call(name: &str, device: &str) -> Call {
    let deadline = Duration::from_secs(30);
    Call::new(Arc::from(name), Arc::from(device), Method::POST, "/".into(), deadline)
}

/// An empty answer, got by one attempt.
pub(crate) fn answer(status: u16) -> Answer {
    Answer {
        status: StatusCode::from_u16(status).expect("a status of a test"),
        content_type: None,
        body: Bytes::new(),
        retry_after: None,
        attempts: 1,
    }
}

/// A configuration without a mistake.
pub(crate) fn config(text: &str) -> Config {
    Config::parse(text, &BTreeMap::new()).expect("a configuration of a test")
}
