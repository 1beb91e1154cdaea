//! How tests begin, above all those against the scripted broker: messages by packet identifier, an API
//! that is quick, a gateway between the two.

use serde_json::json;

use crate::{
    fake_broker::FakeBroker,
    harness::{self, Gateway, Options, Upstream},
    wire::Publish,
};

pub const SETTLED: &str = "mqtt_rest_gateway_messages_settled_total";
pub const REFUSED: &str = "mqtt_rest_gateway_publishes_refused_total";
pub const CONNECTS: &str = "mqtt_rest_gateway_broker_connects_total";

/// Where the telemetry of a device goes.
pub fn path(device: &str) -> String {
    format!("/v1/devices/{device}/telemetry")
}

/// Telemetry of a device; its payload differs from that under another packet identifier.
pub fn telemetry(packet_id: u16, device: &str) -> Publish {
    harness::telemetry(packet_id, device, json!({ "message": packet_id }).to_string())
}

/// The same, asking for a reply, which carries the packet identifier as Correlation Data.
pub fn question(packet_id: u16, device: &str) -> Publish {
    let mut message = telemetry(packet_id, device);
    message.props.response_topic = Some(format!("v1/device/{device}/answers"));
    message.props.correlation = Some(packet_id.to_string().into_bytes());
    message
}

/// The message as a broker sends it again.
pub fn again(message: &Publish) -> Publish {
    Publish { dup: true, ..message.clone() }
}

/// An API that takes everything from these devices at once.
pub async fn quick(devices: &[&str]) -> Upstream {
    let upstream = Upstream::start().await;
    for device in devices {
        upstream.answers("POST", &path(device), 200, json!({})).await;
    }
    upstream
}

/// A gateway between the two, not connected yet.
pub async fn gateway(broker: &FakeBroker, upstream: &str, options: Options) -> Gateway {
    options.set("BROKER_URL", &broker.url()).set("UPSTREAM_URL", upstream).spawn().await
}
