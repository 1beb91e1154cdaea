//! What a broker announces, against what the gateway needs: in sentences for the operator.

use std::time::Duration;

use super::{Settings, reader::Limits};

/// Bytes of a packet besides its payload: topic and properties as they ordinarily are.
const HEAD: usize = 1024;

/// What the operator should know before it hurts.
pub(super) fn warnings(settings: &Settings, limits: &Limits) -> Vec<String> {
    let mut warnings = Vec::new();
    let asked = settings.session_expiry;
    if let Some(seconds) = limits.session_expiry
        && Duration::from_secs(seconds.into()) < asked
    {
        let kept = humantime::format_duration(Duration::from_secs(seconds.into()));
        let asked = humantime::format_duration(asked);
        warnings.push(format!(
            "the broker keeps the session for {kept} only, not for {asked}: what comes while the \
             gateway is away longer than that is lost; raise the broker's limit"
        ));
    }
    if limits.maximum_qos == 0 {
        warnings.push(
            "this broker has only QoS 0: messages can be lost on their way to the gateway, and \
             replies on theirs"
                .to_owned(),
        );
    }
    if !limits.shared_subscriptions && settings.share_group.is_some() {
        warnings.push(
            "share_group is set, but this broker has no shared subscriptions; clear it, and run one \
             gateway"
                .to_owned(),
        );
    }
    if !limits.wildcard_subscriptions {
        warnings.push(
            "this broker has no wildcard subscriptions: a row of the table can listen on single \
             topics only"
                .to_owned(),
        );
    }
    if !limits.retain && settings.retains {
        warnings.push(
            "this broker retains nothing: what the table wants retained is published all the same, for \
             those who are subscribed"
                .to_owned(),
        );
    }
    let longest = settings.longest_payload;
    if let Some(most) = limits.maximum_packet_size
        && (most as usize) < longest + HEAD
    {
        warnings.push(format!(
            "the broker takes no packet above {most} bytes, and an answer may have {longest} \
             (max_response_bytes): larger replies and pushes are dropped, dead letters come without their payload; \
             raise max_packet_size (Mosquitto) or mqtt.max_packet_size (EMQX)"
        ));
    }
    warnings
}
