//! Reason codes as words [MQTT 5.0, 2.4].

/// The name that the standard gives a reason code. That of 0 depends on the packet.
pub(super) fn name(reason: u8) -> String {
    let name = match reason {
        0x00 => "Success",
        0x01 => "GrantedQoS1",
        0x02 => "GrantedQoS2",
        0x04 => "DisconnectWithWillMessage",
        0x10 => "NoMatchingSubscribers",
        0x11 => "NoSubscriptionExisted",
        0x80 => "UnspecifiedError",
        0x81 => "MalformedPacket",
        0x82 => "ProtocolError",
        0x83 => "ImplementationSpecificError",
        0x84 => "UnsupportedProtocolVersion",
        0x85 => "ClientIdentifierNotValid",
        0x86 => "BadUserNamePassword",
        0x87 => "NotAuthorized",
        0x88 => "ServerUnavailable",
        0x89 => "ServerBusy",
        0x8A => "Banned",
        0x8B => "ServerShuttingDown",
        0x8C => "BadAuthenticationMethod",
        0x8D => "KeepAliveTimeout",
        0x8E => "SessionTakenOver",
        0x8F => "TopicFilterInvalid",
        0x90 => "TopicNameInvalid",
        0x91 => "PacketIdentifierInUse",
        0x92 => "PacketIdentifierNotFound",
        0x93 => "ReceiveMaximumExceeded",
        0x94 => "TopicAliasInvalid",
        0x95 => "PacketTooLarge",
        0x96 => "MessageRateTooHigh",
        0x97 => "QuotaExceeded",
        0x98 => "AdministrativeAction",
        0x99 => "PayloadFormatInvalid",
        0x9A => "RetainNotSupported",
        0x9B => "QoSNotSupported",
        0x9C => "UseAnotherServer",
        0x9D => "ServerMoved",
        0x9E => "SharedSubscriptionsNotSupported",
        0x9F => "ConnectionRateExceeded",
        0xA0 => "MaximumConnectTime",
        0xA1 => "SubscriptionIdentifiersNotSupported",
        0xA2 => "WildcardSubscriptionsNotSupported",
        other => return format!("reason {other:#04x}"),
    };
    name.to_owned()
}

/// No matching subscribers [MQTT 5.0, 3.4.2.1].
pub(super) const NO_MATCHING_SUBSCRIBERS: u8 = 0x10;
/// No subscription existed [MQTT 5.0, 3.11.3].
pub(super) const NO_SUBSCRIPTION_EXISTED: u8 = 0x11;
/// The access list denies it [MQTT 5.0, 3.4.2.1].
pub(super) const NOT_AUTHORIZED: u8 = 0x87;
/// It is larger than the server takes [MQTT 5.0, 2.4].
pub(super) const PACKET_TOO_LARGE: u8 = 0x95;
/// The client identifier is in use by a newer connection [MQTT 5.0, 3.14.2.1].
pub(super) const SESSION_TAKEN_OVER: u8 = 0x8E;

/// Subscription Identifiers not supported [MQTT 5.0, 3.9.3].
pub(super) const NO_IDENTIFIERS: u8 = 0xA1;

/// Reason codes of 0x80 and above are failures [MQTT 5.0, 2.4].
pub(super) fn is_failure(reason: u8) -> bool {
    reason >= 0x80
}

/// Whether a DISCONNECT with this reason says nothing against what we have sent on the connection.
pub(super) fn is_broker_own(reason: u8) -> bool {
    matches!(reason, 0x88 | 0x89 | 0x8B | 0x8D | SESSION_TAKEN_OVER | 0x98 | 0x9C | 0x9D | 0xA0)
}
