//! The outbox against a model of the broker, over random histories.
//!
//! The model is a list of everything that was ever pushed, in order. What may come next is the
//! first entry of it that is neither done nor on its way on this connection.

use std::collections::BTreeSet;

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
    /// The next entry is taken.
    Next,
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
        12 => Just(Step::Next),
        5 => any::<Index>().prop_map(Step::Acknowledge),
        1 => (60_001..=65_535_u16).prop_map(Step::Stray),
        1 => Just(Step::Cut),
        2 => (1..7_u16).prop_map(|receive_maximum| Step::Connect { receive_maximum }),
    ]
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Waiting,
    Sent(PacketId),
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
}

impl World {
    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match *step {
            Step::Publish { bytes } => {
                self.outbox.push(Entry::Publish(Box::new(publication(self.items.len(), bytes))));
                self.items.push(Item { bytes: Some(bytes), stage: Stage::Waiting });
            }
            Step::Settle => {
                self.outbox.push(Entry::Settled(self.items.len() as Ticket));
                self.items.push(Item { bytes: None, stage: Stage::Waiting });
            }
            Step::Next => {
                if self.receive_maximum.is_some() {
                    self.next()?;
                }
            }
            Step::Acknowledge(index) => {
                let sent: Vec<_> = self.sent().collect();
                if !sent.is_empty() {
                    let (item, packet_id) = sent[index.index(sent.len())];
                    self.acknowledge(item, packet_id)?;
                }
            }
            Step::Stray(packet_id) => {
                prop_assert!(self.outbox.take(packet_id).is_none());
            }
            Step::Cut => {
                prop_assert!(self.outbox.disconnected(false, Instant::now()).is_none());
                self.receive_maximum = None;
                for item in self.items.iter_mut().filter(|item| item.stage != Stage::Done) {
                    item.stage = Stage::Waiting;
                }
            }
            Step::Connect { receive_maximum } => {
                if self.receive_maximum.is_none() {
                    self.outbox.connected(receive_maximum);
                    self.receive_maximum = Some(receive_maximum);
                }
            }
        }
        self.check()
    }

    /// Whether there was one.
    fn next(&mut self) -> Result<bool, TestCaseError> {
        let first = self.items.iter().position(|item| item.stage == Stage::Waiting);
        let full = self.sent().count() >= usize::from(self.receive_maximum.unwrap());
        let expected = first.filter(|item| self.items[*item].bytes.is_none() || !full);
        let sent: Vec<_> = self.sent().map(|(_, packet_id)| packet_id).collect();
        let found = match self.outbox.next(Instant::now()) {
            None => None,
            Some(Next::Settled(ticket)) => {
                let item = usize::try_from(ticket).unwrap();
                prop_assert!(self.items[item].bytes.is_none());
                // Nothing that belongs to its outcome is still here.
                let before = &self.items[..item];
                prop_assert!(before.iter().all(|before| before.stage != Stage::Waiting));
                self.items[item].stage = Stage::Done;
                Some(item)
            }
            Some(Next::Publish(packet_id, publication)) => {
                let item: usize = publication.topic.parse().unwrap();
                prop_assert_eq!(Some(publication.payload.len()), self.items[item].bytes);
                prop_assert!(!sent.contains(&packet_id), "{packet_id} is in flight");
                self.items[item].stage = Stage::Sent(packet_id);
                Some(item)
            }
        };
        prop_assert_eq!(found, expected);
        Ok(found.is_some())
    }

    fn acknowledge(&mut self, item: usize, packet_id: PacketId) -> Result<(), TestCaseError> {
        let publication = self.outbox.take(packet_id);
        prop_assert_eq!(publication.map(|p| p.topic), Some(item.to_string()));
        self.items[item].stage = Stage::Done;
        Ok(())
    }

    fn sent(&self) -> impl Iterator<Item = (usize, PacketId)> {
        self.items.iter().enumerate().filter_map(|(index, item)| match item.stage {
            Stage::Sent(packet_id) => Some((index, packet_id)),
            _ => None,
        })
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let in_flight = self.sent().count();
        prop_assert_eq!(self.outbox.in_flight.len(), in_flight);
        let open = self.items.iter().filter(|item| item.stage != Stage::Done);
        let publications = open.clone().filter_map(|item| item.bytes).count();
        prop_assert!(self.outbox.bytes >= publications * OVERHEAD);
        prop_assert_eq!(self.outbox.bytes == 0, publications == 0);
        prop_assert_eq!(self.outbox.waiting.len(), open.count() - in_flight);
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
        retain: false,
        properties: Properties::default(),
    }
}

proptest! {
    #![proptest_config(Config { cases: CASES, failure_persistence: None, ..Config::default() })]

    #[test]
    fn any_history(steps in vec(step(), 0..150)) {
        let outbox = Outbox::new();
        let mut world = World { outbox, items: Vec::new(), receive_maximum: None };
        for step in &steps {
            world.step(step)?;
        }
        // A connection that lasts: everything goes through.
        world.step(&Step::Connect { receive_maximum: 3 })?;
        while !world.outbox.is_empty() {
            let mut moved = world.next()?;
            let first = world.sent().next();
            if let Some((item, packet_id)) = first {
                world.acknowledge(item, packet_id)?;
                moved = true;
            }
            prop_assert!(moved, "something is stuck");
        }
        prop_assert!(world.items.iter().all(|item| item.stage == Stage::Done));
    }

    /// A broker that ends the connection at some publications and whose PUBACKs of the ones before are
    /// read or lost by chance: it gets all the others, no other is dropped, and it takes a bounded number
    /// of connections.
    #[test]
    fn only_poison_is_dropped(
        poison in proptest::collection::btree_set(0..30_usize, 0..4),
        receive_maximum in 1..40_u16,
        mut lost in vec(0..5_usize, 200),
    ) {
        let mut outbox = Outbox::new();
        for item in 0..30 {
            outbox.push(Entry::Publish(Box::new(publication(item, 1))));
        }
        let (mut got, mut dropped) = (BTreeSet::new(), BTreeSet::new());
        let mut connections = 0;
        while !outbox.is_empty() {
            connections += 1;
            // Each finds one out, or gets something through, or counts.
            prop_assert!(connections <= 30 + 3 * 4 + 1, "{dropped:?} of {poison:?}");
            outbox.connected(receive_maximum);
            let mut acknowledged = Vec::new();
            loop {
                let sent = match outbox.next(Instant::now()) {
                    Some(Next::Publish(packet_id, p)) => Some((packet_id, p.topic.parse().unwrap())),
                    _ => None,
                };
                let Some((packet_id, item)) = sent else {
                    // The broker has read all there is, and answers.
                    if acknowledged.is_empty() {
                        break;
                    }
                    for packet_id in acknowledged.drain(..) {
                        outbox.take(packet_id);
                    }
                    continue;
                };
                if poison.contains(&item) {
                    let read = acknowledged.len().saturating_sub(lost.pop().unwrap_or_default());
                    for packet_id in acknowledged.drain(..read) {
                        outbox.take(packet_id);
                    }
                    break;
                }
                got.insert(item);
                acknowledged.push(packet_id);
            }
            let out = outbox.disconnected(true, Instant::now());
            dropped.extend(out.map(|p| p.topic.parse::<usize>().unwrap()));
        }
        prop_assert_eq!(&dropped, &poison);
        prop_assert_eq!(got.len(), 30 - poison.len());
    }
}
