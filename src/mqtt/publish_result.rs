//! Counts and logs what became of publications, by what they were for. Of a dead letter it matters whether any client
//! was subscribed to it.

use super::reason;
use crate::{
    message::{Publication, Purpose},
    metrics::{Kept, Metrics},
};

/// The broker has acknowledged it, for good or bad [MQTT 5.0, 3.4.2.1].
pub(super) fn acknowledged(publication: &Publication, reason: u8, metrics: &Metrics) {
    let kept = match reason {
        reason::NO_MATCHING_SUBSCRIBERS => Kept::No,
        reason if reason::is_failure(reason) => Kept::Refused,
        _ => Kept::Yes,
    };
    let topic = publication.topic.as_str();
    if let Purpose::DeadLetter(letter) = &publication.purpose {
        metrics.dead_letter(&letter.route, letter.reason, kept);
        if kept == Kept::No {
            tracing::warn!(
                topic,
                "dead letters go nowhere: no client is subscribed to this topic; `mqtt-rest-gateway replay`, \
                 run once, makes the broker keep them"
            );
        }
    }
    if kept == Kept::Refused {
        let hint = match reason {
            reason::NOT_AUTHORIZED => "check its access list",
            reason::PACKET_TOO_LARGE => "it is larger than the broker allows",
            _ => "its log may say why",
        };
        let reason = reason::name(reason);
        tracing::warn!(topic, reason, "the broker refused a publication; {hint}");
        metrics.publish_refused("refused");
    }
}

/// It is larger than the broker takes and was not sent: the connection would be lost over it, and so
/// would the next.
pub(super) fn too_large(publication: &Publication, metrics: &Metrics) {
    let (topic, bytes) = (publication.topic.as_str(), publication.payload.len());
    tracing::warn!(topic, bytes, "publication is larger than the broker takes; dropped");
    dropped(publication, "too_large", metrics);
}

/// No broker would take it.
pub(super) fn illegal(publication: &Publication, metrics: &Metrics) {
    let topic = publication.topic.get(..200).unwrap_or(&publication.topic);
    tracing::warn!(topic, "invalid topic name for a publication; it is dropped");
    dropped(publication, "illegal", metrics);
}

/// The broker ended one connection after the other over it.
pub(super) fn poison(publication: &Publication, metrics: &Metrics) {
    let (topic, bytes) = (publication.topic.as_str(), publication.payload.len());
    tracing::error!(
        topic,
        bytes,
        "the broker ends the connection over this publication, again and again; it is dropped. The \
         broker's log says why: a size limit, or an access list that disconnects"
    );
    dropped(publication, "poison", metrics);
}

fn dropped(publication: &Publication, outcome: &'static str, metrics: &Metrics) {
    metrics.publish_refused(outcome);
    if let Purpose::DeadLetter(letter) = &publication.purpose {
        metrics.dead_letter(&letter.route, letter.reason, Kept::Dropped);
    }
}
