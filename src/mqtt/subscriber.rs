//! The subscriptions of a session: made at every connection, or ended by a drain. Those that an earlier
//! configuration left in the session are ended as far as they can be recognised.

use std::{
    collections::{HashSet, VecDeque},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use rumqttc::v5::mqttbytes::v5::Filter;
use tokio::{sync::watch, time::Instant};

use super::{
    Mode, Settings, Status, Subscriptions, outbox::LAST_PACKET_ID, packet, reason, window::PacketId,
};
use crate::topic::Pattern;

/// Topic filters in one packet at most: some brokers end the connection over more.
const MAX_FILTERS: usize = 8;
/// Topics with more levels than this are not looked for: too many filters could have brought them.
const MAX_STRAY_LEVELS: usize = 6;
/// For how many topics without a row the subscription is looked for, on each connection.
const MAX_STRAYS: usize = 16;

/// A SUBSCRIBE or UNSUBSCRIBE.
#[derive(Debug)]
enum Request {
    /// With a Subscription Identifier where the broker takes them.
    Subscribe(Vec<Filter>, Option<u32>),
    Unsubscribe(Vec<String>, Why),
}

/// Why subscriptions are ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// The session is drained.
    Drain,
    /// They are the table's filters in another form: without the share group, or with a former one.
    OtherForm,
    /// They may have brought a message on a topic that no row matches.
    Stray,
}

/// The subscriptions, and which of their requests are not answered yet.
pub(super) struct Subscriber {
    subscriptions: Subscriptions,
    share_group: Option<Box<str>>,
    former_share_groups: Vec<Box<str>>,
    status: watch::Sender<Status>,
    waiting: VecDeque<Request>,
    /// Sent and not answered, by packet identifier.
    open: Vec<(PacketId, Request)>,
    last_packet_id: PacketId,
    /// What the broker has refused on this connection.
    refused: Vec<String>,
    /// Tells our subscriptions from those of another group, where the broker can.
    identifier: Option<u32>,
    /// The warning about a subscription of another group has been logged.
    foreign_warned: bool,
    /// How long a connection must last before a drain begins to unsubscribe.
    drain_hold: Duration,
    /// When it does.
    drain_at: Option<Instant>,
    drain_began: bool,
    /// For how many topics without a row the subscription was looked for.
    strays: usize,
    /// Filters that were ended for them.
    tried: HashSet<String>,
}

impl Subscriber {
    pub(super) fn new(
        subscriptions: Subscriptions,
        settings: &Settings,
        status: watch::Sender<Status>,
    ) -> Self {
        Self {
            subscriptions,
            share_group: settings.share_group.clone(),
            former_share_groups: settings.former_share_groups.clone(),
            // Longer than a running gateway takes to reconnect and take its session back.
            drain_hold: settings.reconnect_max * 2 + Duration::from_secs(1),
            status,
            waiting: VecDeque::new(),
            open: Vec::new(),
            last_packet_id: LAST_PACKET_ID,
            refused: Vec::new(),
            identifier: None,
            foreign_warned: false,
            drain_at: None,
            drain_began: false,
            strays: 0,
            tried: HashSet::new(),
        }
    }

    pub(super) fn subscriptions(&self) -> &Subscriptions {
        &self.subscriptions
    }

    /// The broker has accepted a connection, and nothing has been sent on it yet.
    pub(super) fn connected(&mut self, session_present: bool, identifiers: bool, now: Instant) {
        self.status.send_replace(Status::Connected);
        self.waiting.clear();
        self.open.clear();
        self.refused.clear();
        self.strays = 0;
        self.tried.clear();
        if self.subscriptions.mode == Mode::Drain {
            if session_present {
                self.drain_at = Some(now + self.drain_hold);
            } else {
                tracing::info!("there was no session of this client id: nothing to drain");
                self.status.send_replace(Status::NoSession);
            }
            return;
        }
        let group = self.share_group.as_deref();
        self.identifier = identifiers.then(|| identifier(group));
        // Also where the session is present: the table may have changed since it was made.
        let filters: Vec<_> =
            self.subscriptions.patterns.iter().map(|p| packet::filter(p, group)).collect();
        let requests = filters
            .chunks(MAX_FILTERS)
            .map(|some| Request::Subscribe(some.to_vec(), self.identifier));
        self.waiting.extend(requests);
        if session_present {
            // Or the broker would deliver each message by both, for ever.
            let plain = group.is_some().then_some(None);
            let former = self.former_share_groups.iter().map(|group| Some(&**group));
            let former: Vec<_> = plain.into_iter().chain(former.filter(|f| *f != group)).collect();
            let paths: Vec<_> = former.iter().flat_map(|group| self.paths(*group)).collect();
            self.end(&paths, Why::OtherForm);
        }
    }

    fn paths(&self, group: Option<&str>) -> Vec<String> {
        self.subscriptions.patterns.iter().map(|p| packet::path(&p.filter(), group)).collect()
    }

    fn end(&mut self, paths: &[String], why: Why) {
        let requests =
            paths.chunks(MAX_FILTERS).map(|some| Request::Unsubscribe(some.to_vec(), why));
        self.waiting.extend(requests);
    }

    /// The patterns whose subscriptions a drain has ended, or begun to end.
    pub(super) fn ended(&self) -> &[Pattern] {
        if self.drain_began { &self.subscriptions.patterns } else { &[] }
    }

    /// When [`Subscriber::advance`] has something to do.
    pub(super) fn next_timeout(&self) -> Option<Instant> {
        self.drain_at
    }

    /// Begins the drain when it is due.
    pub(super) fn advance(&mut self, now: Instant) {
        if self.drain_at.is_some_and(|at| at <= now) {
            self.drain_at = None;
            self.drain_began = true;
            let paths = self.paths(self.share_group.as_deref());
            self.end(&paths, Why::Drain);
        }
    }

    /// Writes the requests that are waiting.
    pub(super) fn transmit(&mut self, out: &mut BytesMut) {
        while let Some(request) = self.waiting.pop_front() {
            let packet_id = self.last_packet_id.checked_add(1).unwrap_or(LAST_PACKET_ID + 1);
            self.last_packet_id = packet_id;
            match &request {
                Request::Subscribe(filters, identifier) => {
                    packet::subscribe(packet_id, filters, *identifier, out);
                }
                Request::Unsubscribe(paths, _) => packet::unsubscribe(packet_id, paths, out),
            }
            self.open.push((packet_id, request));
        }
    }

    fn answered(&mut self, packet_id: PacketId) -> Option<Request> {
        let index = self.open.iter().position(|(id, _)| *id == packet_id)?;
        Some(self.open.swap_remove(index).1)
    }

    /// The broker has answered a SUBSCRIBE [MQTT 5.0, 3.9.3].
    pub(super) fn subscribed(&mut self, packet_id: PacketId, reasons: &Bytes) {
        let Some(Request::Subscribe(filters, identifier)) = self.answered(packet_id) else {
            return;
        };
        if reasons.contains(&reason::NO_IDENTIFIERS) && identifier.is_some() {
            // They only help to recognise subscriptions of another share group.
            self.identifier = None;
            return self.waiting.push_back(Request::Subscribe(filters, None));
        }
        for (index, filter) in filters.iter().enumerate() {
            match reasons.get(index) {
                Some(0) => tracing::warn!(
                    filter = filter.path,
                    "the broker delivers these messages at QoS 0 only: they can be lost on the way"
                ),
                Some(1 | 2) => {}
                Some(code) => {
                    self.refused.push(format!("{} ({})", filter.path, reason::name(*code)));
                }
                None => self.refused.push(format!("{} (no answer)", filter.path)),
            }
        }
        let mut unanswered = self.open.iter().map(|(_, request)| request).chain(&self.waiting);
        if unanswered.any(|request| matches!(request, Request::Subscribe(..))) {
            return;
        }
        if self.refused.is_empty() {
            tracing::info!(filters = self.subscriptions.patterns.len(), "subscribed");
            self.status.send_replace(Status::Subscribed);
        } else {
            tracing::error!(
                filters = self.refused.join(", "),
                "the broker refused subscriptions; allow them for this client in its access list"
            );
            self.status.send_replace(Status::Refused(self.refused.clone()));
        }
    }

    /// The broker has answered an UNSUBSCRIBE [MQTT 5.0, 3.11.3].
    pub(super) fn unsubscribed(&mut self, packet_id: PacketId, reasons: &Bytes) {
        let Some(Request::Unsubscribe(paths, why)) = self.answered(packet_id) else { return };
        for (index, filter) in paths.iter().enumerate() {
            let code = reasons.get(index).copied().unwrap_or_default();
            match (code, why) {
                (reason::NO_SUBSCRIPTION_EXISTED, Why::Drain) => {
                    tracing::info!(
                        filter,
                        "there was no such subscription; is share_group the same?"
                    );
                }
                (reason::NO_SUBSCRIPTION_EXISTED, _) => {}
                (code, Why::Drain) if reason::is_failure(code) => {
                    let reason = reason::name(code);
                    tracing::error!(filter, reason, "the broker refused to end a subscription");
                    self.refused.push(filter.clone());
                }
                (code, _) if reason::is_failure(code) => {
                    let reason = reason::name(code);
                    tracing::warn!(
                        filter,
                        reason,
                        "the broker refused to end what may be a subscription of an earlier \
                         configuration"
                    );
                }
                (_, Why::Drain) => {}
                (_, Why::OtherForm | Why::Stray) => tracing::warn!(
                    filter,
                    "ended a subscription of an earlier configuration, which the session still had"
                ),
            }
        }
        if why == Why::Drain && self.open.is_empty() {
            if self.refused.is_empty() {
                tracing::info!("unsubscribed: draining what the broker still holds");
                self.status.send_replace(Status::Draining);
            } else {
                self.status.send_replace(Status::Refused(self.refused.clone()));
            }
        }
    }

    /// A message arrived on a topic that no row matches: an earlier table left a subscription in the
    /// session. A pattern has literal levels and `+` only, so few filters can have brought it; all are ended.
    pub(super) fn stray(&mut self, topic: &str) {
        let levels: Vec<_> = topic.split('/').collect();
        let many = levels.len() > MAX_STRAY_LEVELS || self.strays >= MAX_STRAYS;
        if self.subscriptions.mode == Mode::Drain || many {
            return;
        }
        self.strays += 1;
        tracing::warn!(
            topic,
            "no row listens on this topic: looking for the subscription that brought it, to end it"
        );
        let filters = (0..1_usize << levels.len()).map(|wild| {
            let level = |(index, level)| if wild >> index & 1 == 1 { "+" } else { level };
            levels.iter().copied().enumerate().map(level).collect::<Vec<_>>().join("/")
        });
        let filters: Vec<_> = filters.filter(|filter| self.tried.insert(filter.clone())).collect();
        let group = self.share_group.as_deref();
        let mut paths: Vec<_> = filters.iter().map(|filter| packet::path(filter, group)).collect();
        if group.is_some() {
            paths.extend(filters);
        }
        self.end(&paths, Why::Stray);
    }

    /// A message arrived by subscriptions with these Subscription Identifiers. One that another share group
    /// made, still in the session, brings every message a second time.
    pub(super) fn arrived_by(&mut self, identifiers: &[u32]) {
        let foreign = !identifiers.is_empty()
            && self.identifier.is_some_and(|own| !identifiers.contains(&own));
        if foreign && !std::mem::replace(&mut self.foreign_warned, true) {
            tracing::warn!(
                "messages come by a subscription that this configuration does not make: it was made \
                 with another share_group. What it brings beyond what waited comes twice; name that \
                 group in former_share_groups, or drain with the earlier configuration"
            );
        }
    }

    /// Messages were not accepted: the queue is not empty yet, even if nothing arrives for a while.
    pub(super) fn overrun(&self) {
        if self.subscriptions.mode == Mode::Drain {
            self.status.send_replace(Status::Connected);
        }
    }
}

/// The Subscription Identifier of everything that this group, or no group, subscribes to: from 1 to
/// 268,435,455 [MQTT 5.0, 3.8.2.1.2], the same in every version (FNV-1a).
fn identifier(group: Option<&str>) -> u32 {
    let step = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    let bytes = group.unwrap_or_default().bytes();
    bytes.fold(0x811C_9DC5, step) % 268_435_455 + 1
}
