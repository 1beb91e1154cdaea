//! The window against a model of the broker and of the gateway, over random histories.
//!
//! The broker loses what is on the wire at a cut and sends again, in order, what it has not read the
//! PUBACK of. The gateway settles in any order, at any time. No two messages of a session are equal:
//! packet identifiers that are soon used again can make equal ones look like one, which is known.

use std::{collections::BTreeMap, ops::Range};

use proptest::{collection::vec, prelude::*, sample::Index, test_runner::Config};

use super::*;

const CASES: u32 = 1500;
const HOLD: Duration = Duration::from_secs(2);
/// Packet identifiers of the broker; few, so that they are used again soon.
const PACKET_IDS: Range<PacketId> = 1..12;
const SENDERS: u8 = 3;

#[derive(Debug, Clone)]
enum Step {
    /// A device publishes; at `QoS` 0 or not.
    Publish(u8, bool),
    /// The gateway reads a packet of the broker.
    Receive,
    /// The outcome of a message has passed the outbox.
    Settle(Index),
    /// Time passes, in quarters of a second, so that it runs out to the moment.
    Elapse(u32),
    /// The gateway looks at the clock.
    Look,
    /// The gateway writes a PUBACK that is due.
    Take,
    /// The gateway writes a PINGREQ, unless one is without answer.
    Ping,
    /// The broker reads a packet of the gateway.
    Read,
    /// The broker reads some more, then the connection is gone.
    Cut(Index),
    /// The gateway leaves well: what is settled goes in order, whatever it waited for, and is read.
    Leave,
    /// A connection stands, on the same session or not.
    Connect { kept: bool },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..SENDERS, prop::bool::weighted(0.2))
            .prop_map(|(sender, qos_0)| Step::Publish(sender, qos_0)),
        16 => Just(Step::Receive),
        8 => any::<Index>().prop_map(Step::Settle),
        3 => (0..6_u32).prop_map(Step::Elapse),
        2 => Just(Step::Look),
        10 => Just(Step::Take),
        4 => Just(Step::Ping),
        10 => Just(Step::Read),
        1 => any::<Index>().prop_map(Step::Cut),
        1 => Just(Step::Leave),
        3 => prop::bool::weighted(0.7).prop_map(|kept| Step::Connect { kept }),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Message {
    number: u64,
    sender: u8,
}

#[derive(Debug, Clone, Copy)]
enum Down {
    Publish { packet_id: PacketId, dup: bool, message: Message },
    PingResp,
}

#[derive(Default)]
struct Broker {
    receive_maximum: usize,
    lowest_free: bool,
    last_id: PacketId,
    messages: u64,
    queue: VecDeque<Message>,
    outstanding: VecDeque<(PacketId, Message)>,
    down: VecDeque<Down>,
    /// PUBACKs; `None` is a PINGREQ.
    up: VecDeque<Option<PacketId>>,
}

impl Broker {
    fn publish(&mut self, sender: u8, qos_0: bool, connected: bool) {
        let message = Message { number: self.messages, sender };
        self.messages += 1;
        if !qos_0 {
            self.queue.push_back(message);
        } else if connected {
            self.down.push_back(Down::Publish { packet_id: 0, dup: false, message });
        }
    }

    fn send(&mut self, connected: bool) {
        while connected
            && self.outstanding.len() < self.receive_maximum
            && let Some(message) = self.queue.pop_front()
        {
            let packet_id = self.free_id();
            self.outstanding.push_back((packet_id, message));
            self.down.push_back(Down::Publish { packet_id, dup: false, message });
        }
    }

    fn free_id(&mut self) -> PacketId {
        let begin = if self.lowest_free { PACKET_IDS.start } else { self.last_id + 1 };
        let mut ids = (begin..PACKET_IDS.end).chain(PACKET_IDS);
        self.last_id =
            ids.find(|id| self.outstanding.iter().all(|(taken, _)| taken != id)).unwrap();
        self.last_id
    }

    fn read(&mut self, most: usize) -> Result<(), TestCaseError> {
        for packet in self.up.drain(..most.min(self.up.len())) {
            let Some(packet_id) = packet else {
                self.down.push_back(Down::PingResp);
                continue;
            };
            let index = self.outstanding.iter().position(|(id, _)| *id == packet_id);
            prop_assert!(index.is_some(), "the broker waits for no PUBACK {packet_id}");
            self.outstanding.remove(index.unwrap());
        }
        Ok(())
    }

    fn connect(&mut self, kept: bool) {
        if !kept {
            self.queue.clear();
            self.outstanding.clear();
            // On a new session an equal message is another one.
            self.messages = 0;
            self.last_id = 0;
        }
        let again = |&(packet_id, message)| Down::Publish { packet_id, dup: true, message };
        self.down = self.outstanding.iter().map(again).collect();
    }
}

/// A message as it came on this connection.
#[derive(Debug)]
struct Came {
    ticket: Ticket,
    packet_id: PacketId,
    sender: u8,
    /// Since when it is.
    settled: Option<Instant>,
    late: bool,
    /// Its PUBACK is due or gone.
    acknowledged: bool,
}

struct World {
    hold: Option<Duration>,
    window: Window,
    broker: Broker,
    connected: bool,
    now: Instant,
    came: Vec<Came>,
    /// What came at `QoS` 0 and is not settled.
    qos_0: Vec<Ticket>,
    /// PUBACKs that are due, by the rules.
    due: VecDeque<PacketId>,
    /// Every message that came on this session.
    tickets: BTreeMap<u64, Ticket>,
    /// What will be settled yet, on whatever connection.
    pending: Vec<Ticket>,
    next_ticket: Ticket,
}

impl World {
    fn new(hold: Option<Duration>, receive_maximum: usize, lowest_free: bool) -> Self {
        Self {
            hold,
            window: Window::new(hold),
            broker: Broker { receive_maximum, lowest_free, ..Broker::default() },
            connected: true,
            now: Instant::now(),
            came: Vec::new(),
            qos_0: Vec::new(),
            due: VecDeque::new(),
            tickets: BTreeMap::new(),
            pending: Vec::new(),
            next_ticket: 0,
        }
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match step {
            Step::Publish(sender, qos_0) => self.broker.publish(*sender, *qos_0, self.connected),
            Step::Receive => self.receive()?,
            Step::Settle(index) => {
                if !self.pending.is_empty() {
                    let ticket = self.pending.remove(index.index(self.pending.len()));
                    self.settle(ticket);
                }
            }
            Step::Elapse(quarters) => self.now += Duration::from_millis(250) * *quarters,
            Step::Look => self.pass()?,
            Step::Take => drop(self.take()?),
            Step::Ping => {
                // The session writes all that is due before it hears of anything else.
                while self.take()? {}
                let answer = |down: &Down| matches!(down, Down::PingResp);
                let waits = self.broker.up.contains(&None) || self.broker.down.iter().any(answer);
                self.broker.up.extend((self.connected && !waits).then_some(None));
            }
            Step::Read => self.broker.read(1)?,
            Step::Cut(index) => {
                let read = index.index(self.broker.up.len() + 1);
                self.broker.read(read)?;
                self.disconnect();
            }
            Step::Leave => self.leave()?,
            Step::Connect { kept } => self.connect(*kept),
        }
        self.broker.send(self.connected);
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
        let sender = message.sender;
        let late = self.hold.is_some_and(|hold| hold.is_zero())
            || self.came.iter().any(|m| m.late && m.settled.is_none() && m.sender == sender);
        let arrival = self.window.arrive(Arrived {
            packet_id,
            dup,
            fingerprint: message.number,
            sender: sender.to_string().into(),
        });
        let expected = match self.tickets.get(&message.number) {
            None => Arrival::New(self.next_ticket),
            Some(ticket) if self.pending.contains(ticket) => Arrival::Held,
            Some(ticket) => Arrival::Settled(*ticket),
        };
        prop_assert_eq!(arrival, expected, "{:?} with packet identifier {}", message, packet_id);
        // As the session does: the settlement of what is settled goes through the outbox again.
        let ticket = *self.tickets.entry(message.number).or_insert(self.next_ticket);
        self.next_ticket += u64::from(arrival == Arrival::New(ticket));
        if arrival != Arrival::Held {
            self.pending.push(ticket);
        }
        let (settled, acknowledged) = (None, false);
        if packet_id == 0 {
            self.qos_0.push(ticket);
        } else {
            self.came.push(Came { ticket, packet_id, sender, settled, late, acknowledged });
        }
        Ok(())
    }

    fn settle(&mut self, ticket: Ticket) {
        self.window.settle(ticket, self.now);
        self.qos_0.retain(|open| *open != ticket);
        if let Some(message) = self.came.iter_mut().find(|m| m.ticket == ticket) {
            message.settled = Some(self.now);
        }
        self.release();
    }

    fn pass(&mut self) -> Result<(), TestCaseError> {
        self.window.pass(self.now);
        let Some(hold) = self.hold else { return Ok(()) };
        let now = self.now;
        let is_long = |since| since + hold <= now;
        let waits = |m: &Came| !m.acknowledged && m.settled.is_some_and(is_long);
        let last = self.came.iter().rposition(waits).unwrap_or_default();
        let holds = self.came.iter().take(last).filter(|m| m.settled.is_none() && !m.late);
        let senders: Vec<u8> = holds.map(|m| m.sender).collect();
        for message in &mut self.came {
            // What waits already waits for the others, not for its sender.
            if message.settled.is_none() && senders.contains(&message.sender) {
                message.late = true;
            }
        }
        self.release();
        // The promise, said without the rules: nobody waits longer than that for others.
        prop_assert!(!self.came.iter().any(waits), "held back: {:?}", self.came);
        Ok(())
    }

    /// Due is what is settled and late, and what is settled with everything before it.
    fn release(&mut self) {
        let mut held_back = false;
        for message in &mut self.came {
            held_back |= !message.late && message.settled.is_none();
            if message.settled.is_some() && !message.acknowledged && (message.late || !held_back) {
                message.acknowledged = true;
                self.due.push_back(message.packet_id);
            }
        }
    }

    /// Whether there was one.
    fn take(&mut self) -> Result<bool, TestCaseError> {
        let packet_id = self.window.next_due();
        // The client library may have no room for it the first time.
        if let Some(packet_id) = packet_id {
            self.window.put_back(packet_id);
        }
        prop_assert_eq!(self.window.next_due(), self.due.pop_front());
        self.broker.up.extend(packet_id.map(Some));
        Ok(packet_id.is_some())
    }

    fn disconnect(&mut self) {
        if self.connected {
            self.broker.up.clear();
            self.broker.down.clear();
            self.window.disconnected(&HashSet::new());
            (self.came, self.qos_0, self.due) = Default::default();
            self.connected = false;
        }
    }

    fn leave(&mut self) -> Result<(), TestCaseError> {
        self.window.close();
        let waits = |m: &&Came| m.settled.is_some() && !m.acknowledged;
        self.due.extend(self.came.iter().filter(waits).map(|m| m.packet_id));
        while self.take()? {}
        self.broker.read(usize::MAX)?;
        self.disconnect();
        Ok(())
    }

    fn connect(&mut self, kept: bool) {
        if !self.connected {
            self.broker.connect(kept);
            self.window.connected(kept);
            self.connected = true;
            self.tickets.retain(|_, _| kept);
        }
    }

    fn check(&self) -> Result<(), TestCaseError> {
        prop_assert!(self.window.due.iter().eq(&self.due), "due: {:?}", self.window.due);
        let open = self.came.iter().filter(|m| !m.acknowledged).count() + self.qos_0.len();
        prop_assert_eq!(self.window.pending(), open);
        let waiting = self.came.iter().filter(|m| !m.acknowledged).filter_map(|m| m.settled);
        prop_assert_eq!(
            self.window.next_late(),
            waiting.min().and_then(|at| Some(at + self.hold?))
        );
        if self.hold.is_none() {
            // Strictly: what is acknowledged is what came first.
            prop_assert!(self.came.is_sorted_by_key(|m| !m.acknowledged));
        }
        // Memory: nothing but what the broker can ask for.
        prop_assert!(self.window.acked.len() <= MAX_ACKED);
        prop_assert!(self.window.carried.len() < usize::from(PACKET_IDS.end));
        prop_assert!(self.window.carried.keys().all(|id| PACKET_IDS.contains(id)));
        let late = self.came.iter().filter(|m| m.late && m.settled.is_none()).count();
        prop_assert_eq!(self.window.late.len(), late + self.qos_0.len());
        Ok(())
    }

    /// Everything comes, everything is settled, every PUBACK is read.
    fn finish(&mut self) -> Result<(), TestCaseError> {
        self.connect(true);
        // Every round frees a place at the broker; these are more than it can need.
        for _ in 0..=self.broker.messages {
            self.broker.send(true);
            while !self.broker.down.is_empty() {
                self.receive()?;
            }
            while let Some(ticket) = self.pending.pop() {
                self.settle(ticket);
            }
            while self.take()? {}
            self.broker.read(usize::MAX)?;
            self.check()?;
        }
        prop_assert!(self.broker.outstanding.is_empty() && self.broker.queue.is_empty());
        prop_assert!(self.window.slots.is_empty() && self.window.late_senders.is_empty());
        Ok(())
    }
}

proptest! {
    #![proptest_config(Config { cases: CASES, failure_persistence: None, ..Config::default() })]

    #[test]
    fn any_history(
        hold in prop_oneof![1 => Just(None), 1 => Just(Some(Duration::ZERO)), 3 => Just(Some(HOLD))],
        receive_maximum in 1..6_usize,
        lowest_free: bool,
        steps in vec(step(), 0..200),
    ) {
        let mut world = World::new(hold, receive_maximum, lowest_free);
        for step in &steps {
            world.step(step)?;
        }
        world.finish()?;
    }
}
