//! The window between a model of a broker and one of the gateway, and what must hold after every step.

use std::collections::{BTreeMap, BTreeSet};

use proptest::{prelude::*, sample::Index};

use super::{
    super::{broker::*, *},
    Step,
};

/// A message as it came on this connection.
#[derive(Debug)]
struct Came {
    ticket: Ticket,
    packet_id: PacketId,
    sender: u8,
    number: u64,
    at: Instant,
    /// Since when it is.
    settled: Option<Instant>,
    /// Its PUBACK is due or gone.
    acknowledged: bool,
}

/// A message of this session.
#[derive(Debug, Clone, Copy)]
struct Seen {
    ticket: Ticket,
    /// A PUBACK for it was due, on an earlier connection.
    acknowledged: bool,
    /// It was known by then that the broker exceeds the Receive Maximum: only from then on are more
    /// PUBACKs remembered than a broker that keeps to it can have left unread.
    exceeds: bool,
}

impl Seen {
    fn acknowledge(&mut self, window: &Window) {
        (self.acknowledged, self.exceeds) = (true, window.overrun);
    }
}

pub(super) struct World {
    hold: Option<Duration>,
    window: Window,
    broker: Broker,
    connected: bool,
    /// The connection was made to find out whether the broker heeds PUBACKs.
    asking: bool,
    now: Instant,
    came: Vec<Came>,
    /// What came at `QoS` 0 and is not settled.
    qos_0: Vec<Ticket>,
    /// PUBACKs that are due, as far as they have been looked at.
    due: VecDeque<PacketId>,
    /// Packet identifiers that came again on this connection, acknowledged already.
    again: Vec<PacketId>,
    /// Every message that came on this session.
    seen: BTreeMap<u64, Seen>,
    /// The last new one of each sender.
    last: BTreeMap<u8, u64>,
    /// What will be settled yet, on whatever connection.
    pending: Vec<Ticket>,
    next_ticket: Ticket,
}

impl World {
    pub(super) fn new(hold: Option<Duration>, kind: Kind, receive_maximum: u16) -> Self {
        let mut window = Window::new(hold, receive_maximum);
        window.identifiers = u64::from(kind.identifiers(receive_maximum));
        Self {
            hold,
            window,
            broker: Broker::new(kind, receive_maximum),
            connected: true,
            asking: false,
            now: Instant::now(),
            came: Vec::new(),
            qos_0: Vec::new(),
            due: VecDeque::new(),
            again: Vec::new(),
            seen: BTreeMap::new(),
            last: BTreeMap::new(),
            pending: Vec::new(),
            next_ticket: 0,
        }
    }

    pub(super) fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match step {
            Step::Publish(sender, qos_0) => {
                self.broker.publish(*sender, *qos_0, self.connected)?;
            }
            Step::Receive => self.receive()?,
            Step::Settle(index) => {
                if !self.pending.is_empty() {
                    let ticket = self.pending.remove(index.index(self.pending.len()));
                    self.settle(ticket)?;
                }
            }
            Step::SettleNewest => {
                if let Some(ticket) = self.pending.pop() {
                    self.settle(ticket)?;
                }
            }
            Step::Elapse(quarters) => self.now += Duration::from_millis(250) * *quarters,
            Step::Look => self.look()?,
            Step::Take => drop(self.take()?),
            Step::Ping => self.ping()?,
            Step::Read => self.broker.read(1)?,
            Step::Again(index) => self.broker.send_again(self.connected, *index),
            Step::Cut { read, restart } => {
                self.broker.read(read.index(self.broker.up.len() + 1))?;
                self.disconnect();
                restart.then(|| self.broker.restart());
            }
            Step::Leave(index, sender) => self.leave(Some((*index, *sender)))?,
            Step::Connect { kept } => self.connect(*kept)?,
        }
        self.broker.send(self.connected)?;
        self.check()
    }

    fn receive(&mut self) -> Result<(), TestCaseError> {
        let (packet_id, dup, message) = match self.broker.down.pop_front() {
            None => return Ok(()),
            Some(Down::PingResp) => {
                self.window.ping_answered();
                return Ok(());
            }
            Some(Down::Publish { packet_id, dup, message }) => (packet_id, dup, message),
        };
        let Message { number, sender } = message;
        let fingerprint = if self.broker.kind.equal { sender.into() } else { number };
        let name = sender.to_string().into();
        let arrived = Arrived { packet_id, dup, fingerprint, sender: name, subscription: None };
        let arrival = self.window.arrive(arrived, self.now);
        let here = self.came.iter().find(|m| m.number == number && packet_id != 0);
        if let Some(here) = here {
            // Sent again on the same connection: no new message, whatever has become of it.
            prop_assert_eq!(arrival, Arrival::InProgress, "{:?} again", message);
            if here.acknowledged {
                self.again.push(packet_id);
            }
            return self.sync();
        }
        let new = Arrival::New(self.next_ticket);
        let before = self.seen.get(&number).copied();
        match before {
            None => {
                prop_assert_eq!(arrival, new, "{:?} is lost", message);
                // Messages at QoS 0 may overtake others.
                if packet_id != 0 {
                    let last = self.last.insert(sender, number);
                    prop_assert!(last.is_none_or(|last| last < number), "{message:?} out of order");
                }
            }
            Some(seen) => {
                let expected = if self.pending.contains(&seen.ticket) {
                    Arrival::InProgress
                } else {
                    Arrival::Settled(seen.ticket)
                };
                let unsure = self.may_be_another(&seen, number, dup);
                prop_assert!(
                    arrival == expected || unsure && arrival == new,
                    "{message:?} came again: {arrival:?}, not {expected:?}"
                );
            }
        }
        let ticket = if arrival == new { self.next_ticket } else { before.unwrap().ticket };
        self.next_ticket += u64::from(arrival == new);
        // As the session does: the settlement of what is settled goes through the outbox again.
        if arrival != Arrival::InProgress {
            self.pending.push(ticket);
        }
        self.note(packet_id, message, ticket);
        self.sync()
    }

    fn note(&mut self, packet_id: u16, Message { number, sender }: Message, ticket: Ticket) {
        if packet_id == 0 {
            self.qos_0.push(ticket);
            return;
        }
        self.seen.insert(number, Seen { ticket, acknowledged: false, exceeds: false });
        let (settled, acknowledged, at) = (None, false, self.now);
        self.came.push(Came { ticket, packet_id, sender, number, at, settled, acknowledged });
    }

    /// Whether the broker could use the identifier for another message, so that nobody can tell.
    fn may_be_another(&self, seen: &Seen, number: u64, dup: bool) -> bool {
        let read = self.broker.has_read(number) && !self.asking;
        let more = self.broker.overruns() && !seen.exceeds;
        seen.acknowledged && (!dup || read || more)
    }

    fn settle(&mut self, ticket: Ticket) -> Result<(), TestCaseError> {
        let overdue_before = self.overdue();
        let came = self.came.iter_mut().find(|m| m.ticket == ticket && m.settled.is_none());
        let mut quick = None;
        if let Some(message) = came {
            message.settled = Some(self.now);
            let is_quick = self.hold.is_some_and(|hold| self.now - message.at <= hold);
            quick = is_quick.then_some(message.sender);
        }
        self.window.settle(ticket, self.now);
        self.qos_0.retain(|open| *open != ticket);
        // Who is overdue stays overdue until something of his was quick.
        let gone: Vec<u8> = overdue_before.difference(&self.overdue()).copied().collect();
        prop_assert!(gone.iter().all(|sender| Some(*sender) == quick), "{gone:?} caught up");
        self.sync()
    }

    /// The senders that hold back nobody.
    fn overdue(&self) -> BTreeSet<u8> {
        self.window.overdue.iter().map(|(sender, ())| sender.parse().unwrap()).collect()
    }

    fn look(&mut self) -> Result<(), TestCaseError> {
        let before = self.overdue();
        self.window.advance(self.now);
        let hold = self.hold.unwrap_or(Duration::MAX);
        for sender in self.overdue().difference(&before) {
            // Something settled has waited so long for something of his.
            let long = |at: Instant| self.now - at >= hold;
            let own = self.came.iter().position(|m| m.sender == *sender && m.settled.is_none());
            let behind = own.map(|own| &self.came[own..]).unwrap_or_default();
            let waited = |m: &Came| !m.acknowledged && m.settled.is_some_and(long);
            prop_assert!(behind.iter().any(waited), "{sender} is overdue for nobody");
        }
        self.sync()?;
        if self.window.wants_ping() {
            self.ping()?;
        }
        if self.window.must_reconnect() {
            let acknowledged = self.came.iter().all(|m| m.acknowledged || m.settled.is_none());
            let slots = &self.window.slots;
            prop_assert!(acknowledged && !slots.range(slots.numbers()).any(Slot::holds_back));
            self.leave(None)?;
            self.connect(true)?;
            self.asking = true;
        }
        Ok(())
    }

    /// Looks at what has become due: is it due by the rules?
    fn sync(&mut self) -> Result<(), TestCaseError> {
        while self.due.len() < self.window.due.len() {
            let packet_id = self.window.due[self.due.len()].packet_id;
            self.due.push_back(packet_id);
            let open = |m: &Came| m.packet_id == packet_id && !m.acknowledged;
            let Some(index) = self.came.iter().position(open) else {
                let again = self.again.iter().position(|id| *id == packet_id);
                prop_assert!(again.is_some(), "PUBACK {packet_id} twice");
                self.again.remove(again.unwrap());
                continue;
            };
            prop_assert!(self.came[index].settled.is_some(), "PUBACK {packet_id} too early");
            self.came[index].acknowledged = true;
            self.seen.get_mut(&self.came[index].number).unwrap().acknowledge(&self.window);
            let earlier = (0_u64..).zip(&self.came[..index]).filter(|(_, m)| !m.acknowledged);
            for (number, message) in earlier {
                let overdue = self.window.slots.get(number).is_some_and(|slot| slot.overdue);
                let stopped = self.window.withheld.contains(&number);
                let excused = self.window.hold().is_some() && (overdue || stopped);
                prop_assert!(excused, "PUBACK {packet_id} passes {message:?}");
            }
        }
        Ok(())
    }

    fn take(&mut self) -> Result<bool, TestCaseError> {
        let packet_id = self.window.next_due().map(|due| due.packet_id);
        prop_assert_eq!(packet_id, self.due.pop_front());
        if self.connected {
            self.broker.up.extend(packet_id.map(Some));
        }
        Ok(packet_id.is_some())
    }

    fn ping(&mut self) -> Result<(), TestCaseError> {
        // The session writes all that is due before it hears of anything else.
        while self.take()? {}
        let answer = |down: &Down| matches!(down, Down::PingResp);
        let waits = self.broker.up.contains(&None) || self.broker.down.iter().any(answer);
        self.broker.up.extend((self.connected && !waits).then_some(None));
        Ok(())
    }

    fn disconnect(&mut self) {
        if self.connected {
            self.broker.cut();
            self.window.disconnected(&HashSet::new());
            (self.came, self.qos_0, self.due, self.again) = Default::default();
            (self.connected, self.asking) = (false, false);
        }
    }

    fn leave(&mut self, publish: Option<(Index, u8)>) -> Result<(), TestCaseError> {
        self.window.close();
        // What is settled is acknowledged, unless it must be stopped.
        for (number, message) in (0_u64..).zip(&self.came) {
            let slot = self.window.slots.get(number).filter(|slot| slot.is(Stage::Settled));
            let closed = slot.is_none() || !self.window.may_be_acknowledged(number);
            prop_assert!(closed, "{message:?} is not acknowledged at the end");
        }
        let mut waits: Vec<&mut Came> =
            self.came.iter_mut().filter(|m| m.settled.is_some() && !m.acknowledged).collect();
        for Due { packet_id, .. } in self.window.due.iter().skip(self.due.len()) {
            let index = waits.iter().position(|m| m.packet_id == *packet_id);
            prop_assert!(index.is_some(), "PUBACK {packet_id} at the end");
            let message = waits.remove(index.unwrap());
            message.acknowledged = true;
            self.seen.get_mut(&message.number).unwrap().acknowledge(&self.window);
        }
        self.due = self.window.due.iter().map(|due| due.packet_id).collect();
        while self.take()? {}
        if let Some((index, sender)) = publish {
            self.broker.read(index.index(self.broker.up.len() + 1))?;
            self.broker.publish(sender, false, self.connected)?;
        }
        self.broker.read(usize::MAX)?;
        self.disconnect();
        Ok(())
    }

    fn connect(&mut self, kept: bool) -> Result<(), TestCaseError> {
        if !self.connected {
            self.broker.connect(kept)?;
            self.window.connected(kept);
            self.connected = true;
            self.seen.retain(|_, _| kept);
            self.last.retain(|_, _| kept);
        }
        Ok(())
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let due = self.window.due.iter().map(|due| &due.packet_id);
        prop_assert!(due.eq(&self.due), "due: {:?}", self.window.due);
        let open = self.came.iter().filter(|m| !m.acknowledged).count();
        prop_assert_eq!(self.window.pending(), open + self.qos_0.len());
        // What is settled is acknowledged unless there is a reason.
        let mut held_back = false;
        let unacknowledged = (0_u64..).zip(&self.came).filter(|(_, m)| !m.acknowledged);
        for (overtakes, (number, message)) in unacknowledged.enumerate() {
            prop_assert_eq!(
                self.window.reach.contains(number),
                overtakes < self.window.receive_maximum
            );
            let slot = self.window.slots.get(number).expect("it is not acknowledged");
            held_back |= slot.holds_back();
            let reason = held_back || !self.window.may_be_acknowledged(number);
            prop_assert!(message.settled.is_none() || reason, "{message:?} waits for nothing");
        }
        // Memory: nothing but what the broker can ask for.
        let most = 2 * self.window.remembered();
        let (acknowledged, serials, before) = self.window.redelivery.sizes();
        prop_assert!(acknowledged <= most && serials <= acknowledged);
        prop_assert!(before <= usize::from(self.broker.identifiers));
        let unsettled = self.came.iter().filter(|m| m.settled.is_none()).count();
        prop_assert_eq!(self.window.by_ticket.len(), unsettled);
        prop_assert_eq!(self.window.by_id.len(), open);
        Ok(())
    }

    /// Everything comes, everything is settled, every PUBACK is read and heeded.
    pub(super) fn finish(&mut self) -> Result<(), TestCaseError> {
        self.connect(true)?;
        // Every round frees a place at the broker, or time passes; these are more than it can need.
        for _ in 0..=4 * self.broker.messages + 40 {
            self.broker.send(true)?;
            while !self.broker.down.is_empty() {
                self.receive()?;
            }
            while let Some(ticket) = self.pending.pop() {
                self.settle(ticket)?;
            }
            while self.take()? {}
            self.broker.read(usize::MAX)?;
            self.check()?;
            if self.broker.is_empty() {
                break;
            }
            if self.broker.down.is_empty() {
                self.now = self.window.next_timeout().unwrap_or(self.now).max(self.now);
                self.look()?;
            }
        }
        prop_assert!(self.broker.is_empty(), "standstill");
        prop_assert!(self.window.slots.numbers().is_empty() && self.window.overtaken.is_empty());
        Ok(())
    }
}
