//! What became of a publication, counted and said by what it was for: of a dead letter it matters
//! whether anybody took it.

use rumqttc::v5::mqttbytes::v5::PubAckReason;

use crate::{
    message::{Publication, Purpose},
    metrics::{Kept, Metrics},
};

/// The broker has acknowledged it, for good or bad [MQTT 5.0, 3.4.2.1].
pub(super) fn acknowledged(publication: &Publication, reason: PubAckReason, metrics: &Metrics) {
    let kept = match reason {
        PubAckReason::Success => Kept::Yes,
        PubAckReason::NoMatchingSubscribers => Kept::No,
        _ => Kept::Refused,
    };
    let topic = publication.topic.as_str();
    if let Purpose::DeadLetter(letter) = &publication.purpose {
        metrics.dead_letter(&letter.route, letter.reason, kept);
        if kept == Kept::No {
            tracing::warn!(
                topic,
                "dead letters go nowhere: no client is subscribed to this topic; keep them with: \
                 mosquitto_sub -V 5 -q 1 -c -x 4294967295 -i dead-letters -F %j -t <topic>, and an \
                 access list that lets it read"
            );
        }
    }
    if kept == Kept::Refused {
        tracing::warn!(topic, ?reason, "the broker refused a publication; check its access list");
        metrics.publish_refused("refused");
    }
}

/// It is larger than the broker takes and was not sent: the connection would be lost over it, and so
/// would the next.
pub(super) fn too_large(publication: &Publication, metrics: &Metrics) {
    let (topic, bytes) = (publication.topic.as_str(), publication.payload.len());
    tracing::warn!(topic, bytes, "publication is larger than the broker takes; dropped");
    metrics.publish_refused("too_large");
    if let Purpose::DeadLetter(letter) = &publication.purpose {
        metrics.dead_letter(&letter.route, letter.reason, Kept::Dropped);
    }
}
