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
    Mode, Settings, Status, Subscriptions, identifier, outbox::LAST_PACKET_ID, packet, reason,
    window::PacketId,
};
use crate::topic::Pattern;

/// Topic filters in one UNSUBSCRIBE at most: some brokers end the connection over more.
const MAX_FILTERS: usize = 8;
/// Topics with more levels than this are not looked for without a Subscription Identifier: too many filters
/// could have brought them.
const MAX_STRAY_LEVELS: usize = 6;
/// For how many topics without a row the subscription is looked for without one, on each connection.
const MAX_STRAYS: usize = 16;
/// For how many Subscription Identifiers the filter is looked for, on each connection.
const MAX_SEARCHES: usize = 1000;

/// A SUBSCRIBE or UNSUBSCRIBE.
#[derive(Debug)]
enum Request {
    /// One filter, with a Subscription Identifier of its own where the broker takes them.
    Subscribe(Filter, Option<u32>),
    Unsubscribe(Vec<String>, Why),
}

/// Why subscriptions are ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// The session is drained.
    Drain,
    /// They are the table's filters in another form: without the share group, or with a former one.
    OtherForm,
    /// They have brought a message, or may have, and the table has no such filter.
    Earlier,
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
    /// The Subscription Identifiers of the table's filters.
    identifiers: Vec<u32>,
    /// Others that came with messages: their filters were looked for.
    searched: HashSet<u32>,
    /// The warning about a subscription that was not found has been logged.
    unknown_warned: bool,
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
        let group = settings.share_group.as_deref();
        let path = |pattern: &Pattern| packet::path(&pattern.filter(), group);
        let paths = subscriptions.patterns.outermost().iter().map(path);
        Self {
            identifiers: paths.map(|path| identifier::of(&path)).collect(),
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
            searched: HashSet::new(),
            unknown_warned: false,
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
        self.searched.clear();
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
        // Also where the session is present: the table may have changed since it was made.
        let filters = self.subscriptions.patterns.outermost().iter();
        let filters = filters.map(|p| packet::filter(p, group));
        self.waiting.extend(filters.map(|filter| {
            let identifier = identifiers.then(|| identifier::of(&filter.path));
            Request::Subscribe(filter, identifier)
        }));
        if session_present {
            // What an earlier table subscribed to by itself comes by a subscription of others now.
            let inner = |group| {
                let inner = self.subscriptions.patterns.inner().iter();
                inner.map(move |p| packet::path(&p.filter(), group))
            };
            // Or the broker would deliver each message by both, for ever.
            let others = self.groups().into_iter().filter(|other| *other != group);
            let others = others.flat_map(|group| self.paths(group).into_iter().chain(inner(group)));
            let paths: Vec<_> = others.chain(inner(group)).collect();
            self.end(&paths, Why::OtherForm);
        }
        if self.outermost().is_empty() {
            // A table of fetches that run by themselves: there is no answer to wait for.
            self.status.send_replace(Status::Subscribed);
        }
    }

    /// The share groups that this session is or was a member of; `None` is no group.
    fn groups(&self) -> Vec<Option<&str>> {
        let groups = self.share_group.iter().chain(&self.former_share_groups);
        std::iter::once(None).chain(groups.map(|group| Some(&**group))).collect()
    }

    fn paths(&self, group: Option<&str>) -> Vec<String> {
        self.outermost().iter().map(|p| packet::path(&p.filter(), group)).collect()
    }

    fn outermost(&self) -> &[Pattern] {
        self.subscriptions.patterns.outermost()
    }

    fn end(&mut self, paths: &[String], why: Why) {
        let requests =
            paths.chunks(MAX_FILTERS).map(|some| Request::Unsubscribe(some.to_vec(), why));
        self.waiting.extend(requests);
    }

    /// The patterns whose subscriptions a drain has ended, or begun to end.
    pub(super) fn ended(&self) -> &[Pattern] {
        if self.drain_began { self.outermost() } else { &[] }
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
            if paths.is_empty() {
                self.status.send_replace(Status::Draining);
            }
            self.end(&paths, Why::Drain);
        }
    }

    /// Writes the requests that are waiting.
    pub(super) fn transmit(&mut self, out: &mut BytesMut) {
        while let Some(request) = self.waiting.pop_front() {
            let packet_id = self.last_packet_id.checked_add(1).unwrap_or(LAST_PACKET_ID + 1);
            self.last_packet_id = packet_id;
            match &request {
                Request::Subscribe(filter, identifier) => {
                    packet::subscribe(packet_id, filter, *identifier, out);
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
        let Some(Request::Subscribe(filter, identifier)) = self.answered(packet_id) else { return };
        match reasons.first() {
            Some(&reason::NO_IDENTIFIERS) if identifier.is_some() => {
                // They only help to recognise subscriptions of an earlier configuration.
                return self.waiting.push_back(Request::Subscribe(filter, None));
            }
            Some(0) => tracing::warn!(
                filter = filter.path,
                "the broker delivers these messages at QoS 0 only: they can be lost on the way"
            ),
            Some(1 | 2) => {}
            Some(code) => self.refused.push(format!("{} ({})", filter.path, reason::name(*code))),
            None => self.refused.push(format!("{} (no answer)", filter.path)),
        }
        let mut unanswered = self.open.iter().map(|(_, request)| request).chain(&self.waiting);
        if unanswered.any(|request| matches!(request, Request::Subscribe(..))) {
            return;
        }
        if self.refused.is_empty() {
            tracing::info!(filters = self.outermost().len(), "subscribed");
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
                (_, Why::OtherForm | Why::Earlier) => tracing::warn!(
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

    /// A message arrived by the subscriptions with these Subscription Identifiers, or by one that has none.
    /// `is_stray` says that no row matches its topic. An earlier configuration may have left the subscription in
    /// the session: it is ended, or such messages would come for ever, many of them twice.
    pub(super) fn arrived(&mut self, topic: &str, identifiers: &[u32], is_stray: bool) {
        if self.subscriptions.mode == Mode::Drain {
            return;
        }
        for identifier in identifiers {
            if !self.identifiers.contains(identifier) {
                self.came_by(*identifier, topic);
            }
        }
        if is_stray && identifiers.is_empty() {
            self.stray(topic);
        }
    }

    /// A message arrived by a subscription that the table does not make.
    fn came_by(&mut self, identifier: u32, topic: &str) {
        if self.searched.len() >= MAX_SEARCHES || !self.searched.insert(identifier) {
            return;
        }
        let paths = identifier::filters(Some(identifier), topic, &self.groups());
        if !paths.is_empty() {
            self.end(&paths, Why::Earlier);
        } else if !std::mem::replace(&mut self.unknown_warned, true) {
            tracing::warn!(
                topic,
                "messages come by a subscription that this configuration does not make: it was made \
                 with another share_group. What it brings beyond what waited comes twice; name that \
                 group in former_share_group, or drain with the earlier configuration"
            );
        }
    }

    /// The same where the broker knows no Subscription Identifiers. Few filters can have brought the message:
    /// all are ended.
    fn stray(&mut self, topic: &str) {
        if topic.split('/').count() > MAX_STRAY_LEVELS || self.strays >= MAX_STRAYS {
            return;
        }
        self.strays += 1;
        tracing::warn!(
            topic,
            "no row listens on this topic: looking for the subscription that brought it, to end it"
        );
        let group = self.share_group.as_deref();
        let groups = [group, None];
        let mut paths = identifier::filters(None, topic, &groups[usize::from(group.is_none())..]);
        let own = self.paths(group);
        paths.retain(|path| !own.contains(path) && self.tried.insert(path.clone()));
        self.end(&paths, Why::Earlier);
    }

    /// Messages were not accepted: the queue is not empty yet, even if nothing arrives for a while.
    pub(super) fn overrun(&self) {
        if self.subscriptions.mode == Mode::Drain {
            self.status.send_replace(Status::Connected);
        }
    }
}
