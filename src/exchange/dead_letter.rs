//! The dead letter: the last copy of a message that could not be delivered, and why. What the gateway
//! says in it cannot be forged by the device, and no key gets into it, under whatever name it came.

use std::sync::Arc;

use super::outcome::Outcome;
use crate::{
    log::printable,
    message::{DeadLetter, Message, Properties, Publication, Purpose, VIA},
    secrets::{Secret, Secrets},
    table::keys::{Keys, MAX_PROPERTY_BYTES},
    user_properties::UserProperties,
};

/// Properties of the gateway's own. The device's, if they are called so, stand behind [`DEVICE`].
const OWN: [&str; 10] = [
    "topic",
    "reason",
    "status",
    "attempts",
    "received_at",
    "answer",
    "route",
    "payload",
    "left_out",
    VIA,
];
/// What a property of the device's is renamed with when its name is one of the gateway's.
const DEVICE: &str = "device.";
/// Longest topic and words of the API in a letter, in bytes.
const MAX_TOPIC: usize = 1024;
const MAX_ANSWER: usize = 1024;

/// Where a letter goes, and what must not stand in it.
#[derive(Debug)]
pub(super) struct Envelope<'e> {
    /// The dead-letter topic.
    pub(super) topic: &'e str,
    /// The row, or `none`.
    pub(super) route: &'e Arc<str>,
    /// The user property that carries the device's key.
    pub(super) key_property: &'e str,
    /// The key of the call, if one was found.
    pub(super) key: Option<&'e Secret>,
    /// The gateway's own secrets, which must not stand in it either.
    pub(super) secrets: &'e Secrets,
    /// The gateway's client identifier.
    pub(super) via: &'e str,
}

/// The letter: the payload as it came, the gateway's properties first, then the device's own.
pub(super) fn dead_letter(
    outcome: &Outcome,
    message: &Message,
    envelope: &Envelope<'_>,
) -> Publication {
    let Envelope { topic, route, key_property, key, secrets, via } = envelope;
    let keys = Keys::new(message, key_property, *key);
    let received_at = humantime::format_rfc3339_millis(message.received_at);
    let mut user = UserProperties::default();
    let mut say = |name: &str, value: String| user.push(name, &value);
    say("topic", printable::short_line(&message.topic, MAX_TOPIC));
    say("reason", outcome.code().to_owned());
    say("status", outcome.status().to_string());
    say("attempts", outcome.attempts().to_string());
    say("received_at", received_at.to_string());
    if let Some(words) = answer(outcome, &keys, secrets) {
        say("answer", words);
    }
    say(VIA, (*via).to_owned());
    let (own, left_out) = keys.others(message);
    user.extend(own.into_iter().map(|(name, value)| (own_name(name), printable::line(value))));
    if left_out > 0 {
        user.push("left_out", &format!("{left_out} properties"));
    }
    let content_type = message.properties.content_type.as_deref();
    let letter = DeadLetter { route: (*route).clone(), reason: outcome.code(), original: None };
    Publication {
        purpose: Purpose::DeadLetter(Box::new(letter)),
        topic: (*topic).to_owned(),
        payload: message.payload.clone(),
        retain: false,
        properties: Properties {
            user,
            content_type: content_type.map(|text| printable::short_line(text, 256)),
            ..Properties::default()
        },
    }
}

/// What a property of the device's is called in a letter.
fn own_name(name: &str) -> String {
    let name = printable::line(name);
    let own = OWN.iter().any(|own| own.eq_ignore_ascii_case(name.trim()));
    if own { format!("{DEVICE}{name}") } else { name }
}

/// What a property of a letter was called in the device's message; `None` if it is the gateway's own.
pub(crate) fn device_property(name: &str) -> Option<&str> {
    match name.strip_prefix(DEVICE) {
        Some(name) => Some(name),
        None => Some(name).filter(|name| !OWN.contains(name)),
    }
}

/// The API's first words, on one line, without the key and the gateway's own secrets; `None` if it said nothing.
pub(super) fn answer(outcome: &Outcome, keys: &Keys<'_>, secrets: &Secrets) -> Option<String> {
    let body = outcome.answer().map(|answer| &answer.body).filter(|body| !body.is_empty())?;
    // Cut after masking: half a key would not be found.
    let window = body.get(..body.len().min(MAX_ANSWER + 2 * MAX_PROPERTY_BYTES)).unwrap_or(body);
    let text = String::from_utf8_lossy(window);
    Some(printable::short_line(&secrets.mask(&keys.mask(&text)), MAX_ANSWER))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use bytes::Bytes;
    use tokio::time::Instant;

    use super::*;
    use crate::{
        call::{Answer, StatusCode},
        table::{keys::MAX_PROPERTIES, refusal::Refusal},
    };

    fn letter(user: &[(&str, &str)], outcome: &Outcome) -> Publication {
        let message = Message {
            topic: "a/d1/b".to_owned(),
            payload: Bytes::from("x"),
            properties: Properties {
                user: user.iter().copied().collect(),
                ..Properties::default()
            },
            received_at: SystemTime::UNIX_EPOCH,
            trace: None,
            arrived: Instant::now(),
        };
        let (route, key) = ("t".into(), Secret::new("remembered-key"));
        dead_letter(
            outcome,
            &message,
            &Envelope {
                topic: "dead/t",
                route: &route,
                key_property: "access_key",
                key: Some(&key),
                secrets: &Secrets::default(),
                via: "gateway",
            },
        )
    }

    fn value<'l>(letter: &'l Publication, name: &str) -> Vec<&'l str> {
        letter.properties.user.get(name).collect()
    }

    fn refused() -> Outcome {
        Outcome::Refused(Refusal::NoRoute)
    }

    #[test]
    fn a_device_cannot_speak_for_the_gateway() {
        let forged = OWN.map(|name| (name, "forged"));
        let letter = letter(&[&forged[..], &[("Topic", "forged")]].concat(), &refused());
        assert_eq!(value(&letter, "topic"), ["a/d1/b"]);
        assert_eq!(value(&letter, "reason"), ["no_route"]);
        for (name, value) in letter.properties.user.iter() {
            let own = OWN.iter().any(|own| own.eq_ignore_ascii_case(name));
            assert!(!own || value != "forged", "{name}");
        }
        assert_eq!(value(&letter, "device.topic"), ["forged"], "it is not lost");
    }

    #[test]
    fn no_key_comes_in_under_another_name() {
        for name in [
            "access_key",
            "Access_Key",
            "accesskey",
            "access-key",
            "acces_key",
            "access key",
            "acess_kye",
            "x-access-key",
            "my_access_key",
            "ACCESS.KEY",
            "Authorization",
            "api-key",
            "device_token",
        ] {
            let letter = letter(&[(name, "hidden-value"), ("kept", "yes")], &refused());
            let all = format!("{:?}", letter.properties);
            assert!(!all.contains("hidden-value"), "{name}: {all}");
            assert_eq!(value(&letter, "kept"), ["yes"]);
        }
        // Nor under a name that says nothing.
        let user = [
            ("access_key", "open-sesame"),
            ("note", "Bearer open-sesame"),
            ("n", "remembered-key"),
        ];
        let all = format!("{:?}", letter(&user, &refused()).properties);
        assert!(!all.contains("sesame") && !all.contains("remembered"), "{all}");
        for name in ["device_id", "model", "keyboard", "success"] {
            assert_eq!(value(&letter(&[(name, "v")], &refused()), name), ["v"]);
        }
    }

    #[test]
    fn it_stays_small_and_printable_whatever_the_device_sends() {
        let long = "n".repeat(60_000);
        let many: Vec<_> = (0..1000).map(|_| ("a\u{1b}", "b\n")).collect();
        let letter = letter(&[&[(long.as_str(), "v")], &many[..]].concat(), &refused());
        let user = &letter.properties.user;
        assert!(user.len() <= MAX_PROPERTIES + OWN.len(), "{}", user.len());
        assert_eq!(value(&letter, "left_out"), ["969 properties"]);
        let bytes: usize = user.iter().map(|(name, value)| name.len() + value.len()).sum();
        assert!(bytes < 2 * MAX_PROPERTY_BYTES);
        assert!(user.iter().all(|(n, v)| n.chars().chain(v.chars()).all(printable::is_printable)));
    }

    #[test]
    fn it_has_the_first_words_of_the_api_without_the_key() {
        let body = format!("{{\"no\":\"open-sesame\",\n{}", "x".repeat(100_000));
        let outcome = Outcome::Rejected(Answer {
            status: StatusCode::UNPROCESSABLE_ENTITY,
            content_type: None,
            body: body.into(),
            retry_after: None,
            attempts: 1,
        });
        let letter = letter(&[("access_key", "open-sesame")], &outcome);
        let answer = value(&letter, "answer")[0];
        assert!(answer.starts_with("{\"no\":\"<redacted>\",\\nxxx"), "{answer}");
        assert!(answer.len() <= MAX_ANSWER + '…'.len_utf8());
    }
}
