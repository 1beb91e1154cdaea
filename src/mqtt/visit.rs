//! Short connections beside the gateway's own: what does the broker allow, and the end of a session.

use std::time::Duration;

use rumqttc::v5::{AsyncClient, Event, Incoming, mqttbytes::v5::ConnAck};
use tokio::time::timeout;

use super::{Settings, connection::describe, options::options};

/// Connects, reads what the broker announces, and leaves; under a client identifier of its own, so that a
/// running gateway keeps its session.
///
/// # Errors
/// A sentence for the operator.
pub async fn probe(settings: &Settings) -> Result<String, String> {
    let client_id = format!("{}-check", settings.client_id).into();
    let settings = Settings { client_id, ..settings.clone() };
    Ok(report(&settings, &visit(settings.clone()).await?))
}

/// Ends the session of this client identifier, with everything the broker still holds in it.
///
/// # Errors
/// A sentence for the operator.
pub async fn end_session(settings: &Settings) -> Result<(), String> {
    visit(settings.clone()).await.map(|_| ())
}

/// A connection that ends whatever session there was and leaves none [MQTT-3.1.2-4].
async fn visit(settings: Settings) -> Result<ConnAck, String> {
    let settings = Settings { session_expiry: Duration::ZERO, ..settings };
    let mut options = options(&settings).map_err(|error| error.to_string())?;
    options.set_clean_start(true);
    let (client, mut event_loop) = AsyncClient::new(options, 1);
    let connack = loop {
        let event = timeout(Duration::from_secs(10), event_loop.poll())
            .await
            .map_err(|_| "the broker did not answer in 10 seconds".to_owned())?
            .map_err(|error| describe(&error))?;
        if let Event::Incoming(Incoming::ConnAck(connack)) = event {
            break connack;
        }
    };
    if client.try_disconnect().is_ok() {
        // The answer is there; how the connection ends does not matter any more.
        let _ = timeout(Duration::from_secs(1), event_loop.poll()).await;
    }
    Ok(connack)
}

fn report(settings: &Settings, connack: &ConnAck) -> String {
    let limits = connack.properties.as_ref();
    let or =
        |value: Option<u64>, default: &str| value.map_or(default.to_owned(), |v| v.to_string());
    let yes = |value: Option<u8>| if value == Some(0) { "no" } else { "yes" };
    let encrypted =
        matches!(settings.address.transport, super::Transport::Mqtts | super::Transport::Wss);
    let receive_maximum = limits.and_then(|l| l.receive_max);
    let mut text = format!(
        "{} accepts us{}\n  takes at once        {}\n  largest packet       {}\n  session expiry       {}\n  \
         maximum QoS          {}\n  shared subscriptions {}",
        settings.address,
        if encrypted { " over TLS" } else { "" },
        or(receive_maximum.map(u64::from), "65535"),
        or(limits.and_then(|l| l.max_packet_size).map(u64::from), "no limit"),
        or(limits.and_then(|l| l.session_expiry_interval).map(u64::from), "as asked"),
        or(limits.and_then(|l| l.max_qos).map(u64::from), "2"),
        yes(limits.and_then(|l| l.shared_subscription_available)),
    );
    if settings.share_group.is_some()
        && limits.and_then(|l| l.shared_subscription_available) == Some(0)
    {
        text.push_str("\n  share_group is set, but this broker has no shared subscriptions");
    }
    if limits.and_then(|l| l.max_qos) == Some(0) {
        text.push_str(
            "\n  this broker has only QoS 0: messages can be lost before they reach the gateway",
        );
    }
    text
}
