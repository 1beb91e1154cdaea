//! The window against models of brokers and of the gateway, over random histories.
//!
//! The broker loses what is on the wire at a cut and sends again what it has not heeded the PUBACK of.
//! The gateway settles in any order, at any time.

mod world;

use proptest::{collection::vec, prelude::*, sample::Index, test_runner::Config};

use self::world::World;
use super::{broker::*, *};

const CASES: u32 = 1500;
const HOLD: Duration = Duration::from_secs(2);
const SENDERS: u8 = 3;

#[derive(Debug, Clone)]
enum Step {
    /// A device publishes; at `QoS` 0 or not.
    Publish(u8, bool),
    /// The gateway reads a packet of the broker.
    Receive,
    /// The outcome of a message has passed the outbox.
    Settle(Index),
    /// That of the newest has: older ones are held for long.
    SettleNewest,
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
    /// The broker sends again what is in flight, on the same connection, if it is of that kind.
    Again(Index),
    /// The broker reads some more, then the connection is gone. The broker may be stopped and started again.
    Cut { read: Index, restart: bool },
    /// The gateway leaves well: what is settled goes in order, whatever it waited for, and is read. In between a
    /// device publishes.
    Leave(Index, u8),
    /// A connection stands, on the same session or not.
    Connect { kept: bool },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..SENDERS, prop::bool::weighted(0.2))
            .prop_map(|(sender, qos_0)| Step::Publish(sender, qos_0)),
        16 => Just(Step::Receive),
        8 => any::<Index>().prop_map(Step::Settle),
        8 => Just(Step::SettleNewest),
        3 => (0..6_u32).prop_map(Step::Elapse),
        3 => Just(Step::Look),
        10 => Just(Step::Take),
        4 => Just(Step::Ping),
        10 => Just(Step::Read),
        2 => any::<Index>().prop_map(Step::Again),
        1 => (any::<Index>(), any::<bool>()).prop_map(|(read, restart)| Step::Cut { read, restart }),
        1 => (any::<Index>(), 0..SENDERS).prop_map(|(index, sender)| Step::Leave(index, sender)),
        3 => prop::bool::weighted(0.7).prop_map(|kept| Step::Connect { kept }),
    ]
}

proptest! {
    #![proptest_config(Config { cases: CASES, failure_persistence: None, ..Config::default() })]

    #[test]
    fn any_history(
        hold in prop_oneof![1 => Just(None), 1 => Just(Some(Duration::ZERO)), 3 => Just(Some(HOLD))],
        kind in kind(),
        receive_maximum in 1..6_u16,
        steps in vec(step(), 0..200),
    ) {
        let mut world = World::new(hold, kind, receive_maximum);
        for step in &steps {
            world.step(step)?;
        }
        world.finish()?;
    }
}
