//! The outbox against a model of the client library and of the broker, over random histories.
//!
//! The model is a list of everything that was ever pushed, in order. What may come next is the
//! first entry of it that is neither done nor on its way on this connection.

use bytes::Bytes;
use proptest::{collection::vec, prelude::*, sample::Index, test_runner::Config};

use super::*;
use crate::message::{Properties, Purpose};

const CASES: u32 = 1000;

#[derive(Debug, Clone)]
enum Step {
    Publish {
        bytes: usize,
    },
    Settle,
    /// The next entry is taken; the client library has room for it or not.
    Next {
        room: bool,
    },
    /// The client library puts something on the wire.
    Send,
    /// The broker acknowledges; not always the first one.
    Acknowledge(Index),
    /// A PUBACK for nothing.
    Stray(PacketId),
    Cut,
    Connect {
        receive_maximum: u16,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..100_usize).prop_map(|bytes| Step::Publish { bytes }),
        3 => Just(Step::Settle),
        12 => prop::bool::weighted(0.85).prop_map(|room| Step::Next { room }),
        8 => Just(Step::Send),
        5 => any::<Index>().prop_map(Step::Acknowledge),
        1 => (100..200_u16).prop_map(Step::Stray),
        1 => Just(Step::Cut),
        2 => (1..7_u16).prop_map(|receive_maximum| Step::Connect { receive_maximum }),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Waiting,
    /// The client library has it, under this number of this connection.
    Taken(u64),
    /// It is on the wire.
    Sent(u64, PacketId),
    Done,
}

#[derive(Debug)]
struct Item {
    /// Payload of a publication; a settlement has none.
    bytes: Option<usize>,
    stage: Stage,
}

struct World {
    outbox: Outbox,
    /// The position is the topic of a publication, the ticket of a settlement.
    items: Vec<Item>,
    /// What the broker takes at once, while there is a connection.
    receive_maximum: Option<u16>,
    /// Publications that the client library took on this connection.
    taken: u64,
}

impl World {
    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match *step {
            Step::Publish { bytes } => {
                self.outbox.push(Entry::Publish(publication(self.items.len(), bytes)));
                self.items.push(Item { bytes: Some(bytes), stage: Stage::Waiting });
            }
            Step::Settle => {
                self.outbox.push(Entry::Settled(self.items.len() as Ticket));
                self.items.push(Item { bytes: None, stage: Stage::Waiting });
            }
            Step::Next { room } => {
                if self.receive_maximum.is_some() {
                    self.next(room)?;
                }
            }
            Step::Send => {
                self.send()?;
            }
            Step::Acknowledge(index) => {
                let sent: Vec<_> = self.sent().collect();
                if !sent.is_empty() {
                    let (item, packet_id) = sent[index.index(sent.len())];
                    self.acknowledge(item, packet_id)?;
                }
            }
            Step::Stray(packet_id) => {
                prop_assert!(self.outbox.acknowledged(packet_id).is_none());
            }
            Step::Cut => {
                self.outbox.disconnected();
                self.receive_maximum = None;
                for item in self.items.iter_mut().filter(|item| item.stage != Stage::Done) {
                    item.stage = Stage::Waiting;
                }
            }
            Step::Connect { receive_maximum } => {
                if self.receive_maximum.is_none() {
                    self.outbox.connected(receive_maximum);
                    self.receive_maximum = Some(receive_maximum);
                    self.taken = 0;
                }
            }
        }
        self.check()
    }

    /// Whether there was one.
    fn next(&mut self, room: bool) -> Result<bool, TestCaseError> {
        let first = self.items.iter().position(|item| item.stage == Stage::Waiting);
        // The circle of packet identifiers must not come round to one that is in flight.
        let oldest = self.in_flight().min();
        let full = oldest.is_some_and(|oldest| self.taken - oldest >= self.circle());
        let expected = first.filter(|item| self.items[*item].bytes.is_none() || !full);
        let found = match self.outbox.next() {
            None => None,
            Some(Entry::Settled(ticket)) => {
                let item = usize::try_from(ticket).unwrap();
                prop_assert!(self.items[item].bytes.is_none());
                // Nothing that belongs to its outcome is still here.
                let before = &self.items[..item];
                prop_assert!(before.iter().all(|before| before.stage != Stage::Waiting));
                self.items[item].stage = Stage::Done;
                Some(item)
            }
            Some(Entry::Publish(publication)) => {
                let item: usize = publication.topic.parse().unwrap();
                prop_assert_eq!(Some(publication.payload.len()), self.items[item].bytes);
                if room {
                    self.outbox.submitted(publication);
                    self.items[item].stage = Stage::Taken(self.taken);
                    self.taken += 1;
                } else {
                    self.outbox.put_back(publication);
                }
                Some(item)
            }
        };
        prop_assert_eq!(found, expected);
        Ok(found.is_some())
    }

    /// Whether there was anything.
    fn send(&mut self) -> Result<bool, TestCaseError> {
        let taken = self.items.iter().position(|item| matches!(item.stage, Stage::Taken(_)));
        let Some(item) = taken else { return Ok(false) };
        let Stage::Taken(number) = self.items[item].stage else { unreachable!() };
        // As the client library hands them out: in a circle, and it stops if one is taken.
        let packet_id = PacketId::try_from(number % self.circle() + 1).unwrap();
        prop_assert!(self.sent().all(|(_, id)| id != packet_id), "the library stops for good");
        self.outbox.sent(packet_id);
        self.items[item].stage = Stage::Sent(number, packet_id);
        Ok(true)
    }

    fn acknowledge(&mut self, item: usize, packet_id: PacketId) -> Result<(), TestCaseError> {
        let publication = self.outbox.acknowledged(packet_id);
        prop_assert_eq!(publication.map(|p| p.topic), Some(item.to_string()));
        self.items[item].stage = Stage::Done;
        Ok(())
    }

    fn circle(&self) -> u64 {
        u64::from(self.receive_maximum.unwrap()).saturating_sub(1).max(1)
    }

    fn in_flight(&self) -> impl Iterator<Item = u64> {
        self.items.iter().filter_map(|item| match item.stage {
            Stage::Taken(number) | Stage::Sent(number, _) => Some(number),
            Stage::Waiting | Stage::Done => None,
        })
    }

    fn sent(&self) -> impl Iterator<Item = (usize, PacketId)> {
        self.items.iter().enumerate().filter_map(|(index, item)| match item.stage {
            Stage::Sent(_, packet_id) => Some((index, packet_id)),
            _ => None,
        })
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let in_flight = self.in_flight().count();
        prop_assert_eq!(self.outbox.in_flight.len(), in_flight);
        if let Some(receive_maximum) = self.receive_maximum {
            prop_assert!(in_flight < usize::from(receive_maximum.max(2)));
        }
        let waiting = self.items.iter().filter(|item| item.stage == Stage::Waiting);
        let bytes: usize = waiting.clone().filter_map(|item| item.bytes).sum();
        let waiting = waiting.count();
        prop_assert_eq!(self.outbox.waiting.len(), waiting);
        prop_assert_eq!(self.outbox.waiting_bytes, bytes);
        prop_assert_eq!(self.outbox.is_empty(), waiting + in_flight == 0);
        prop_assert!(self.outbox.has_room());
        Ok(())
    }
}

fn publication(item: usize, bytes: usize) -> Publication {
    let payload = Bytes::from(vec![b'x'; bytes]);
    Publication {
        purpose: Purpose::default(),
        topic: item.to_string(),
        payload,
        properties: Properties::default(),
    }
}

proptest! {
    #![proptest_config(Config { cases: CASES, failure_persistence: None, ..Config::default() })]

    #[test]
    fn any_history(steps in vec(step(), 0..150)) {
        let outbox = Outbox::new();
        let mut world = World { outbox, items: Vec::new(), receive_maximum: None, taken: 0 };
        for step in &steps {
            world.step(step)?;
        }
        // A connection that lasts: everything goes through.
        world.step(&Step::Connect { receive_maximum: 3 })?;
        while !world.outbox.is_empty() {
            let mut moved = world.next(true)?;
            moved |= world.send()?;
            let first = world.sent().next();
            if let Some((item, packet_id)) = first {
                world.acknowledge(item, packet_id)?;
                moved = true;
            }
            prop_assert!(moved, "something is stuck");
            world.check()?;
        }
        prop_assert!(world.items.iter().all(|item| item.stage == Stage::Done));
    }
}
