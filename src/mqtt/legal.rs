//! What may be sent: every string of a publication is made legal here, at one place, before it waits
//! for its turn. A broker ends the connection over one that is not, and so would the next one.

use crate::{
    message::{Properties, Publication},
    topic::is_publishable,
};

/// Longest string or binary data of a packet, in bytes [MQTT 5.0, 1.5.4 and 1.5.6].
const MAX_BYTES: usize = 65_535;
/// Most levels of a topic: brokers have limits of their own, and end the connection (Mosquitto 200,
/// EMQX 128).
const MAX_LEVELS: usize = 100;

/// Makes the properties legal: text is cut where it is too long, and U+FFFD stands for characters that
/// brokers refuse; what means nothing when it is cut is left out.
///
/// # Errors
/// The publication itself, when its topic is not one to publish on.
pub(super) fn legal(
    mut publication: Box<Publication>,
) -> Result<Box<Publication>, Box<Publication>> {
    if !is_legal_topic(&publication.topic) {
        return Err(publication);
    }
    let Properties { user, response_topic, correlation_data, content_type, .. } =
        &mut publication.properties;
    if user.iter().any(|(name, value)| !is_legal_text(name) || !is_legal_text(value)) {
        *user = user.iter().map(|(name, value)| (made_legal(name), made_legal(value))).collect();
    }
    if response_topic.as_deref().is_some_and(|topic| !is_legal_topic(topic)) {
        *response_topic = None;
    }
    if correlation_data.as_ref().is_some_and(|data| data.len() > MAX_BYTES) {
        *correlation_data = None;
    }
    if content_type.as_ref().is_some_and(|text| !is_legal_text(text)) {
        *content_type = None;
    }
    Ok(publication)
}

fn is_legal_topic(topic: &str) -> bool {
    is_publishable(topic)
        && topic.len() <= MAX_BYTES
        && topic.split('/').count() <= MAX_LEVELS
        && topic.chars().all(is_legal)
}

/// Neither a control character nor one that Unicode calls none [MQTT 5.0, 1.5.4].
fn is_legal(c: char) -> bool {
    let code = u32::from(c);
    !c.is_control() && code & 0xFFFE != 0xFFFE && !(0xFDD0..=0xFDEF).contains(&code)
}

fn is_legal_text(text: &str) -> bool {
    text.len() <= MAX_BYTES && text.chars().all(is_legal)
}

fn made_legal(text: &str) -> String {
    let legal = text.chars().map(|c| if is_legal(c) { c } else { '\u{FFFD}' });
    let mut legal: String = legal.collect();
    legal.truncate(legal.floor_char_boundary(MAX_BYTES));
    legal
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn publication(topic: &str, properties: Properties) -> Box<Publication> {
        let payload = Bytes::new();
        Box::new(Publication {
            purpose: crate::message::Purpose::Reply,
            topic: topic.to_owned(),
            payload,
            retain: false,
            properties,
        })
    }

    #[test]
    fn what_is_too_long_or_forbidden_is_cut_replaced_or_left_out() {
        let long = "ä".repeat(40_000);
        let properties = Properties {
            user: [(&*long, "a\u{0}b\nc\u{FFFE}")].into_iter().collect(),
            response_topic: Some("a/".repeat(150)),
            correlation_data: Some(vec![0; 65_536].into()),
            content_type: Some("x".repeat(65_536)),
            expiry: None,
        };
        let Properties { user, response_topic, correlation_data, content_type, .. } =
            legal(publication("a", properties)).ok().unwrap().properties;
        let cut = "ä".repeat(32_767);
        let expected = (&*cut, "a\u{FFFD}b\u{FFFD}c\u{FFFD}");
        assert_eq!(user.iter().collect::<Vec<_>>(), [expected]);
        assert_eq!((response_topic, correlation_data, content_type), (None, None, None));
    }

    #[test]
    fn what_is_legal_stays_as_it_is() {
        let properties = Properties {
            user: [("ä".repeat(32_767), "tab is not, 😀 is")].into_iter().collect(),
            response_topic: Some("a/b".to_owned()),
            correlation_data: Some(vec![0; 65_535].into()),
            content_type: Some("text/plain".to_owned()),
            expiry: None,
        };
        let publication = publication(&"a/".repeat(99), properties.clone());
        assert_eq!(legal(publication).ok().unwrap().properties, properties);
    }

    #[test]
    fn a_topic_that_brokers_refuse_is_not_published_on() {
        for topic in ["", "a/+", "$SYS/a", "a\u{FFFF}", &"a/".repeat(100), &"a".repeat(65_536)] {
            assert!(legal(publication(topic, Properties::default())).is_err(), "{topic:.20}");
        }
    }
}
