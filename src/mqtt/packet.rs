//! Between our words and the client library's packets.

use std::time::{Duration, SystemTime};

use rumqttc::v5::mqttbytes::{
    QoS,
    v5::{Filter, Publish, PublishProperties, RetainForwardRule},
};
use tokio::time::Instant;

use crate::{
    message::{Message, Properties, Publication},
    topic::Pattern,
};

/// How a pattern is subscribed to.
pub(super) fn filter(pattern: &Pattern, share_group: Option<&str>) -> Filter {
    let filter = pattern.filter();
    let path = match share_group {
        Some(group) => format!("$share/{group}/{filter}"),
        None => filter,
    };
    // No more than QoS 1: the library cannot resume QoS 2.
    let mut filter = Filter::new(path, QoS::AtLeastOnce);
    // No Local is a protocol error on a shared subscription [MQTT-3.8.3-4]; there, what we publish
    // ourselves is known by its `via`.
    filter.nolocal = share_group.is_none();
    // What was retained is not news to a gateway that has just restarted.
    filter.retain_forward_rule = RetainForwardRule::Never;
    filter
}

/// A PUBLISH that came.
pub(super) fn message(publish: Publish, now: Instant) -> Message {
    let properties = publish.properties.unwrap_or_default();
    let expiry = properties.message_expiry_interval;
    Message {
        // A topic that is not UTF-8 is malformed [MQTT-1.5.4-1]; it will match no row.
        topic: String::from_utf8_lossy(&publish.topic).into_owned(),
        payload: publish.payload,
        properties: Properties {
            user: properties.user_properties,
            response_topic: properties.response_topic,
            correlation_data: properties.correlation_data,
            content_type: properties.content_type,
            expiry: expiry.map(|seconds| Duration::from_secs(seconds.into())),
        },
        received_at: SystemTime::now(),
        arrived: now,
    }
}

/// The properties of a PUBLISH to be.
pub(super) fn properties(publication: &Publication) -> PublishProperties {
    let properties = publication.properties.clone();
    PublishProperties {
        response_topic: properties.response_topic,
        correlation_data: properties.correlation_data,
        user_properties: properties.user,
        content_type: properties.content_type,
        ..PublishProperties::default()
    }
}
