//! Our words as packets to the broker. The encoding is `rumqttc`'s; what comes from the broker is read
//! by [`super::reader`].

use bytes::{BufMut, BytesMut};
use rumqttc::v5::mqttbytes::{
    QoS,
    v5::{
        Connect, ConnectProperties, Filter, Login, Packet, PubAck, Publish, PublishProperties,
        RetainForwardRule, Subscribe, SubscribeProperties, Unsubscribe,
    },
};

use super::{Settings, window::PacketId};
use crate::{
    message::{Properties, Publication},
    secrets::Secret,
    topic::Pattern,
};

/// Largest packet that MQTT knows, in bytes [MQTT 5.0, 2.1.4].
const LARGEST: usize = 5 + 268_435_455;

/// How a session is asked for.
#[derive(Clone, Copy)]
pub(super) struct Start {
    /// An earlier session is ended first [MQTT-3.1.2-4].
    pub clean: bool,
    /// How long the session outlives the connection, in seconds.
    pub expiry: u32,
}

/// CONNECT: the first packet of a connection, so the buffer is empty.
pub(super) fn connect(
    settings: &Settings,
    start: Start,
    password: Option<&Secret>,
    out: &mut BytesMut,
) {
    debug_assert!(out.is_empty(), "the library writes flags at a place from the buffer's start");
    let mut properties = ConnectProperties::new();
    // Without the property the session would end with the connection; the largest value is for ever
    // [MQTT 5.0, 3.1.2.11.2].
    properties.session_expiry_interval = Some(start.expiry);
    properties.receive_maximum = Some(settings.max_pending);
    // No Topic Alias Maximum: the broker may use none.
    properties.max_packet_size = Some(settings.max_packet);
    let connect = Connect {
        // Checked by the configuration to be at most 65,535.
        keep_alive: u16::try_from(settings.keep_alive.as_secs()).unwrap_or(u16::MAX),
        client_id: settings.client_id.to_string(),
        clean_start: start.clean,
        properties: Some(properties),
    };
    // MQTT 5 allows a password without a user name; the library leaves out what is empty.
    let login = (settings.username.is_some() || password.is_some()).then(|| Login {
        username: settings.username.clone().unwrap_or_default(),
        password: password.map_or("", |password| password.expose()).to_owned(),
    });
    write(&Packet::Connect(connect, None, login), out);
}

/// PUBACK of a message.
pub(super) fn puback(packet_id: PacketId, out: &mut BytesMut) {
    write(&Packet::PubAck(PubAck::new(packet_id, None)), out);
}

/// PUBREC of a message that came at `QoS` 2, although the subscription asks for `QoS` 1.
pub(super) fn pubrec(packet_id: PacketId, out: &mut BytesMut) {
    out.put_slice(&[0x50, 2]);
    out.put_u16(packet_id);
}

/// PUBCOMP, the end of such a message.
pub(super) fn pubcomp(packet_id: PacketId, out: &mut BytesMut) {
    out.put_slice(&[0x70, 2]);
    out.put_u16(packet_id);
}

/// PINGREQ.
pub(super) fn ping(out: &mut BytesMut) {
    out.put_slice(&[0xC0, 0]);
}

/// DISCONNECT; the session goes on, or ends [MQTT 5.0, 3.14.2.2.2].
pub(super) fn disconnect(end_session: bool, out: &mut BytesMut) {
    out.put_slice(if end_session { &[0xE0, 7, 0, 5, 0x11, 0, 0, 0, 0] } else { &[0xE0, 0] });
}

/// SUBSCRIBE to a filter, under an identifier if there is one.
pub(super) fn subscribe(
    packet_id: PacketId,
    filter: &Filter,
    identifier: Option<u32>,
    out: &mut BytesMut,
) {
    let properties = identifier
        .and_then(|id| usize::try_from(id).ok())
        .map(|id| SubscribeProperties { id: Some(id), user_properties: Vec::new() });
    let filters = vec![filter.clone()];
    write(&Packet::Subscribe(Subscribe { pkid: packet_id, filters, properties }), out);
}

/// UNSUBSCRIBE from filters.
pub(super) fn unsubscribe(packet_id: PacketId, filters: &[String], out: &mut BytesMut) {
    let filters = filters.to_vec();
    write(&Packet::Unsubscribe(Unsubscribe { pkid: packet_id, filters, properties: None }), out);
}

/// How a pattern is subscribed to.
pub(super) fn filter(pattern: &Pattern, share_group: Option<&str>) -> Filter {
    let mut filter = Filter::new(path(&pattern.filter(), share_group), QoS::AtLeastOnce);
    // No Local is a protocol error on a shared subscription [MQTT-3.8.3-4]; there, what we publish
    // ourselves is known by its `via`.
    filter.nolocal = share_group.is_none();
    // What was retained is not news to a gateway that has just restarted.
    filter.retain_forward_rule = RetainForwardRule::Never;
    filter
}

/// The topic filter, as a member of the group subscribes to it.
pub(super) fn path(filter: &str, share_group: Option<&str>) -> String {
    match share_group {
        Some(group) => format!("$share/{group}/{filter}"),
        None => filter.to_owned(),
    }
}

/// What the broker takes of publications.
#[derive(Debug, Clone, Copy)]
pub(super) struct PublishLimits {
    /// Largest packet, in bytes.
    pub(super) max_packet: usize,
    /// Whether it keeps what is to be retained; to be asked for it would end the connection [MQTT-3.2.2-14].
    pub(super) retain: bool,
}

/// PUBLISH of a publication, whose strings are legal. `false`, and nothing written, if the packet is
/// larger than the broker takes. At `QoS` 0 the packet identifier is 0.
pub(super) fn publish(
    publication: &Publication,
    packet_id: PacketId,
    limits: PublishLimits,
    out: &mut BytesMut,
) -> bool {
    let Properties { user, response_topic, correlation_data, content_type, expiry } =
        &publication.properties;
    let properties = PublishProperties {
        response_topic: response_topic.clone(),
        correlation_data: correlation_data.clone(),
        user_properties: user.iter().map(|(n, v)| (n.to_owned(), v.to_owned())).collect(),
        content_type: content_type.clone(),
        message_expiry_interval: expiry
            .map(|left| u32::try_from(left.as_secs()).unwrap_or(u32::MAX)),
        ..PublishProperties::default()
    };
    let qos = if packet_id == 0 { QoS::AtMostOnce } else { QoS::AtLeastOnce };
    let payload = publication.payload.clone();
    let mut packet = Publish::new(publication.topic.as_str(), qos, payload, Some(properties));
    packet.pkid = packet_id;
    packet.retain = publication.retain && limits.retain;
    if packet.size() > limits.max_packet.min(LARGEST) {
        return false;
    }
    write(&Packet::Publish(packet), out);
    true
}

fn write(packet: &Packet, out: &mut BytesMut) {
    let written = packet.write(out, None);
    debug_assert!(written.is_ok(), "identifiers are set and the size is checked: {written:?}");
}
