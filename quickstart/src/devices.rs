//! The simulated devices: MQTT v5 clients that say who they are in user properties, and an operator
//! who reads dead letters.

use std::error::Error;

use mqtt_rest_gateway::message::VIA;
use mqtt5::{
    ConnectOptions, Message, MqttClient, PublishOptions, PublishProperties, QoS, SubscribeOptions,
};
use tokio::sync::mpsc::Sender;

use crate::story::{Arrival, Event};

/// Where the shipped configuration puts messages that ended badly.
const DEAD_LETTERS: &str = "mqtt-rest-gateway/dead-letter/#";

/// A device that is connected and listens on all its topics.
pub(crate) struct Device {
    /// Its identifier, in topics and in the user property `device_id`.
    pub id: &'static str,
    key: &'static str,
    client: MqttClient,
}

/// Where an answer is wanted, and the mark to find it again.
pub(crate) struct Question {
    /// Response Topic.
    pub topic: String,
    /// Correlation Data.
    pub correlation: String,
}

impl Device {
    /// Connects and subscribes; what arrives goes to `events`.
    pub(crate) async fn connect(
        broker: &str,
        (id, key): (&'static str, &'static str),
        events: Sender<Event>,
    ) -> Result<Self, Box<dyn Error>> {
        let client = listen(broker, id, &format!("v1/device/{id}/#"), move |message| {
            let arrival = arrival(id.to_owned(), message);
            // Nobody listens any more while everything stops; and what does not fit is not told.
            let _ = events.try_send(Event::Arrival(arrival));
        })
        .await?;
        Ok(Self { id, key, client })
    }

    /// A topic of this device.
    pub(crate) fn topic(&self, tail: &str) -> String {
        format!("v1/device/{}/{tail}", self.id)
    }

    /// Publishes at `QoS` 1 and waits for the broker's PUBACK.
    pub(crate) async fn say(
        &self,
        topic: &str,
        payload: &str,
        question: Option<&Question>,
    ) -> Result<(), Box<dyn Error>> {
        let properties = PublishProperties {
            user_properties: vec![
                ("device_id".to_owned(), self.id.to_owned()),
                ("access_key".to_owned(), self.key.to_owned()),
            ],
            response_topic: question.map(|question| question.topic.clone()),
            correlation_data: question.map(|question| question.correlation.clone().into_bytes()),
            content_type: Some("application/json".to_owned()),
            ..PublishProperties::default()
        };
        let options =
            PublishOptions { qos: QoS::AtLeastOnce, properties, ..PublishOptions::default() };
        self.client.publish_with_options(topic, payload, options).await?;
        Ok(())
    }

    /// Says good-bye.
    pub(crate) async fn disconnect(self) {
        // A connection that is gone already needs no good-bye.
        let _ = self.client.disconnect().await;
    }
}

/// Connects the operator, who reads the dead letters.
pub(crate) async fn operator(
    broker: &str,
    events: Sender<Event>,
) -> Result<MqttClient, Box<dyn Error>> {
    listen(broker, "operator", DEAD_LETTERS, move |message| {
        let device = property(&message, "device_id").unwrap_or("somebody").to_owned();
        // As above.
        let _ = events.try_send(Event::DeadLetter(arrival(device, message)));
    })
    .await
}

async fn listen(
    broker: &str,
    client_id: &str,
    filter: &str,
    take: impl Fn(Message) + Send + Sync + 'static,
) -> Result<MqttClient, Box<dyn Error>> {
    let client = MqttClient::with_options(ConnectOptions::new(client_id).with_clean_start(true));
    client.connect(broker).await?;
    // Devices and gateway speak on the same topics: nobody wants to hear himself.
    let options =
        SubscribeOptions { qos: QoS::AtLeastOnce, no_local: true, ..SubscribeOptions::default() };
    client.subscribe_with_options(filter, options, take).await?;
    Ok(client)
}

fn arrival(device: String, message: Message) -> Arrival {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Arrival {
        device,
        by_gateway: property(&message, VIA).is_some(),
        status: property(&message, "status").map(str::to_owned),
        response_topic: message.properties.response_topic.clone(),
        correlation: message.properties.correlation_data.as_deref().map(text),
        payload: text(&message.payload),
        topic: message.topic,
    }
}

fn property<'m>(message: &'m Message, name: &str) -> Option<&'m str> {
    let mut properties = message.properties.user_properties.iter();
    properties.find(|(n, _)| n == name).map(|(_, value)| value.as_str())
}
