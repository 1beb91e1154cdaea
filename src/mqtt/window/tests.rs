//! The window, played through as a broker and a gateway would.

use super::*;
use crate::fingerprint::fingerprint;

const HOLD: Duration = Duration::from_secs(2);
const NONE: [PacketId; 0] = [];

struct Model {
    window: Window,
    now: Instant,
}

impl Model {
    fn new(hold: Option<Duration>) -> Self {
        Self { window: Window::new(hold, 20), now: Instant::now() }
    }

    fn send(&mut self, packet_id: PacketId, sender: &str, dup: bool) -> Arrival {
        let fingerprint = fingerprint((packet_id, sender));
        let sender = sender.into();
        let arrived = Arrived { packet_id, dup, fingerprint, sender, subscription: None };
        self.window.arrive(arrived, self.now)
    }

    fn arrive(&mut self, packet_id: PacketId, sender: &str) -> Ticket {
        match self.send(packet_id, sender, false) {
            Arrival::New(ticket) => ticket,
            other => panic!("{packet_id} is not new: {other:?}"),
        }
    }

    fn settle(&mut self, ticket: Ticket) {
        self.window.settle(ticket, self.now);
    }

    fn advance(&mut self, time: Duration) {
        self.now += time;
        self.window.advance(self.now);
    }

    fn acks(&mut self) -> Vec<PacketId> {
        std::iter::from_fn(|| self.window.next_due()).map(|due| due.packet_id).collect()
    }
}

#[test]
fn acks_go_out_in_order_of_arrival() {
    let mut model = Model::new(Some(HOLD));
    let (a, b, c) = (model.arrive(1, "a"), model.arrive(2, "b"), model.arrive(3, "c"));
    model.settle(b);
    model.settle(c);
    assert_eq!(model.acks(), NONE);
    model.settle(a);
    assert_eq!(model.acks(), [1, 2, 3]);
    assert_eq!(model.window.pending(), 0);
}

#[test]
fn an_overdue_sender_holds_back_nobody_and_only_once() {
    let mut model = Model::new(Some(HOLD));
    let (a1, b, a2) = (model.arrive(1, "a"), model.arrive(2, "b"), model.arrive(3, "a"));
    let c = model.arrive(4, "c");
    model.settle(b);
    model.settle(c);
    model.advance(HOLD);
    assert_eq!(model.acks(), [2, 4], "the others go, also past the overdue one's second message");
    // While it is overdue, its new messages hold back nobody from the start.
    let (a3, d) = (model.arrive(5, "a"), model.arrive(6, "d"));
    model.settle(d);
    assert_eq!(model.acks(), [6]);
    assert_eq!(model.window.pending(), 3);
    for ticket in [a1, a2, a3] {
        model.settle(ticket);
    }
    assert_eq!(model.acks(), [1, 3, 5]);
    // It has caught up: the order holds again.
    let (_, e) = (model.arrive(7, "a"), model.arrive(8, "e"));
    model.settle(e);
    assert_eq!(model.acks(), NONE);
}

#[test]
fn a_message_of_qos_0_leaves_its_sender_overdue() {
    let mut model = Model::new(Some(HOLD));
    let (_, z) = (model.arrive(1, "a"), model.arrive(9, "z"));
    model.settle(z);
    model.advance(HOLD);
    assert_eq!(model.acks(), [9]);
    let passing = model.arrive(0, "a");
    model.settle(passing);
    model.arrive(2, "a");
    let b = model.arrive(3, "b");
    model.settle(b);
    assert_eq!(model.acks(), [3]);
}

#[test]
fn where_nobody_waits_nobody_is_overdue() {
    let mut model = Model::new(Some(HOLD));
    let (a, b, c) = (model.arrive(1, "a"), model.arrive(2, "b"), model.arrive(3, "c"));
    // An outage: nothing is settled for an hour. Then everything is, nearly at once.
    model.advance(Duration::from_hours(1));
    assert_eq!(model.window.next_timeout(), None);
    model.settle(b);
    model.settle(c);
    model.advance(Duration::from_millis(5));
    assert_eq!(model.acks(), NONE);
    model.settle(a);
    assert_eq!(model.acks(), [1, 2, 3]);
}

#[test]
fn several_senders_that_hang_hold_back_for_one_hold_together() {
    let mut model = Model::new(Some(HOLD));
    for id in 1..=9 {
        model.arrive(id, &format!("hung {id}"));
    }
    let well = model.arrive(10, "well");
    model.settle(well);
    model.advance(HOLD);
    assert_eq!(model.acks(), [10]);
}

#[test]
fn hold_can_be_for_ever_or_nothing() {
    let mut strict = Model::new(None);
    let (_, b) = (strict.arrive(1, "a"), strict.arrive(2, "b"));
    strict.settle(b);
    strict.advance(Duration::from_hours(1));
    assert_eq!(strict.acks(), NONE);
    assert_eq!(strict.window.next_timeout(), None);

    let mut free = Model::new(Some(Duration::ZERO));
    let (a, b) = (free.arrive(1, "a"), free.arrive(2, "b"));
    free.settle(b);
    free.settle(a);
    assert_eq!(free.acks(), [2, 1]);
}

#[test]
fn what_comes_again_is_not_handled_again() {
    let mut model = Model::new(Some(HOLD));
    let (a, b) = (model.arrive(1, "a"), model.arrive(2, "b"));
    let c = model.arrive(3, "c");
    model.settle(a);
    assert_eq!(model.acks(), [1], "sent, but the broker may not have read it");
    model.settle(c);
    model.window.disconnected(&HashSet::new());
    model.window.connected(true);
    assert_eq!(model.send(1, "a", true), Arrival::Settled(a));
    assert_eq!(model.send(2, "b", true), Arrival::InProgress);
    assert_eq!(model.send(3, "c", true), Arrival::Settled(c));
    assert_eq!(model.acks(), NONE);
    for ticket in [a, c, b] {
        model.settle(ticket);
    }
    assert_eq!(model.acks(), [1, 2, 3], "in the order of this connection");
}

#[test]
fn what_the_broker_has_read_the_acknowledgement_of_cannot_come_again() {
    let mut model = Model::new(Some(HOLD));
    let a = model.arrive(1, "a");
    model.settle(a);
    assert_eq!(model.acks(), [1]);
    model.window.ping_answered();
    let b = model.arrive(2, "b");
    model.settle(b);
    model.window.ping_answered();
    model.window.disconnected(&HashSet::new());
    model.window.connected(true);
    assert_eq!(model.send(2, "b", true), Arrival::Settled(b), "perhaps not read");
    assert!(matches!(model.send(1, "a", true), Arrival::New(_)), "an equal one, not the same");
}

#[test]
fn a_settlement_from_before_never_acknowledges_another_message() {
    let mut model = Model::new(Some(HOLD));
    let a = model.arrive(1, "a");
    model.window.disconnected(&HashSet::new());
    model.window.connected(false);
    let other = model.arrive(1, "b");
    model.settle(a);
    assert_eq!(model.acks(), NONE, "the session is lost: packet identifier 1 is another message");
    model.settle(other);
    assert_eq!(model.acks(), [1]);

    // A session kept, but the identifier is used again for something else.
    let c = model.arrive(2, "c");
    model.window.disconnected(&HashSet::new());
    model.window.connected(true);
    let d = model.arrive(2, "d");
    model.settle(c);
    assert_eq!(model.acks(), NONE);
    model.settle(d);
    assert_eq!(model.acks(), [2]);
}

#[test]
fn settled_between_two_connections() {
    let mut model = Model::new(Some(HOLD));
    let a = model.arrive(1, "a");
    model.window.disconnected(&HashSet::new());
    model.settle(a);
    model.window.connected(true);
    assert_eq!(model.send(1, "a", true), Arrival::Settled(a));
}

#[test]
fn closing_acknowledges_what_is_settled_in_order() {
    let mut model = Model::new(None);
    let (_, b) = (model.arrive(1, "a"), model.arrive(2, "b"));
    let c = model.arrive(3, "c");
    model.settle(c);
    model.settle(b);
    model.window.close();
    assert_eq!(model.acks(), [2, 3]);
}

#[test]
fn closing_overtakes_fewer_messages_than_the_receive_maximum() {
    let mut model = Model::new(None);
    for id in 1..20 {
        model.arrive(id, "a");
    }
    let (b, _, c) = (model.arrive(20, "b"), model.arrive(21, "a"), model.arrive(22, "c"));
    model.settle(b);
    model.settle(c);
    model.window.close();
    assert_eq!(model.acks(), [20]);
}

#[test]
fn with_a_full_window_a_ping_does_not_complete_redelivery() {
    let mut model = Model::new(None);
    let tickets: Vec<_> = (1..=21).map(|id| model.arrive(id, "a")).collect();
    model.settle(tickets[20]);
    model.window.disconnected(&HashSet::new());
    model.window.connected(true);
    for id in 1..=20 {
        assert_eq!(model.send(id, "a", true), Arrival::InProgress);
    }
    model.window.ping_answered();
    assert_eq!(model.send(21, "a", true), Arrival::Settled(tickets[20]));
}

#[test]
fn qos_0_is_never_acknowledged() {
    let mut model = Model::new(None);
    let (x, a) = (model.arrive(0, "a"), model.arrive(1, "a"));
    assert_eq!(model.window.pending(), 2);
    model.settle(x);
    model.settle(a);
    assert_eq!(model.acks(), [1]);
    let y = model.arrive(0, "a");
    model.window.disconnected(&HashSet::new());
    model.settle(y);
    assert_eq!(model.window.pending(), 0);
}

#[test]
fn no_packet_identifier_comes_round_while_its_message_is_held() {
    let mut model = Model::new(Some(Duration::ZERO));
    model.window.receive_maximum = 2;
    model.window.identifiers = 9;
    let held = model.arrive(1, "a");
    let mut last = 1;
    // Every PUBACK lets the broker use another identifier; the next after 9 would be 1.
    loop {
        last += 1;
        let other = model.arrive(last, "b");
        model.settle(other);
        if model.acks().is_empty() {
            break;
        }
    }
    assert_eq!(last, 9);
    model.settle(held);
    assert_eq!(model.acks(), [1, 9]);
}

#[test]
fn the_clock_goes_slowly_while_others_stand_still() {
    let mut model = Model::new(Some(HOLD));
    let (a, b) = (model.arrive(1, "a"), model.arrive(2, "b"));
    for id in 3..=20 {
        model.arrive(id, "others");
    }
    model.settle(b);
    // An outage of 10 s, in which one of twenty waits.
    for _ in 0..10 {
        model.advance(HOLD / 2);
    }
    assert_eq!(model.acks(), NONE);
    model.settle(a);
    assert_eq!(model.acks(), [1, 2]);
}

#[test]
fn a_sender_stays_overdue_until_one_of_its_messages_is_quick() {
    let mut model = Model::new(Some(HOLD));
    let (a, b) = (model.arrive(1, "a"), model.arrive(2, "b"));
    model.settle(b);
    model.advance(HOLD);
    model.advance(HOLD);
    model.settle(a);
    assert_eq!(model.acks(), [2, 1]);
    // It hangs with a message now and then: nobody waits for it again.
    let (a, b) = (model.arrive(3, "a"), model.arrive(4, "b"));
    model.settle(b);
    assert_eq!(model.acks(), [4]);
    model.settle(a);
    assert_eq!(model.acks(), [3]);
    let (_, b) = (model.arrive(5, "a"), model.arrive(6, "b"));
    model.settle(b);
    assert_eq!(model.acks(), NONE, "the last was quick");
}
