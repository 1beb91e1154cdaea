//! The session without a socket and without a clock: packets and time go in, packets come out.

use bytes::{Buf, Bytes};
use tokio::sync::mpsc::Receiver;

use super::*;
use crate::mqtt::Mode;
use crate::{
    message::{Properties, Publication, Purpose},
    mqtt::{Address, Transport, reader::Limits},
    tls,
    topic::{patterns::Patterns, sender::Sender},
    user_properties::UserProperties,
};

/// A session, what it delivered, and what it was told back.
struct World {
    session: Session,
    now: Instant,
    delivered: Vec<Delivery>,
    commands: Receiver<Command>,
    /// Keeps the channel open: somebody could still settle.
    _sender: mpsc::Sender<Command>,
}

impl World {
    fn new() -> Self {
        let settings = Settings {
            address: Address {
                transport: Transport::Mqtt,
                host: "localhost".to_owned(),
                port: 1883,
                url: Secret::new("mqtt://localhost:1883"),
            },
            client_id: "c".into(),
            share_group: None,
            former_share_groups: Vec::new(),
            reconnect_max: Duration::from_secs(2),
            session_expiry: Duration::from_mins(1),
            keep_alive: Duration::from_secs(30),
            max_pending: 100,
            max_pending_bytes: 1 << 20,
            max_packet: 1 << 20,
            retains: true,
            longest_payload: 1 << 20,
            ack_hold: None,
            username: None,
            password: None,
            tls: tls::Settings::default(),
        };
        let subscriptions = Subscriptions {
            patterns: Arc::new(Patterns::new(vec![(
                Pattern::parse("{device}/up").unwrap(),
                Sender::Captured("device".into()),
            )])),
            names: Vec::new(),
            mode: Mode::Serve,
        };
        let (sender, commands) = mpsc::channel(1000);
        let (status, _) = watch::channel(Status::Ended);
        let session = Session::new(
            settings,
            subscriptions,
            sender.downgrade(),
            Arc::new(Metrics::default()),
            status,
        );
        Self { session, now: Instant::now(), delivered: Vec::new(), commands, _sender: sender }
    }

    fn connected() -> Self {
        let mut world = Self::new();
        world.connects(Limits::default());
        world
    }

    /// A connection that the broker accepts; what was written before.
    fn connects(&mut self, limits: Limits) {
        let text = String::new();
        let connack = ConnAck { old: false, session_present: true, reason: 0, text, limits };
        self.handle(Incoming::ConnAck(connack));
        let first = self.written();
        assert_eq!(first[0], 0x82, "SUBSCRIBE comes first");
    }

    fn handle(&mut self, packet: Incoming) {
        let delivered = &mut self.delivered;
        let result =
            self.session.handle(packet, self.now, &mut |delivery| delivered.push(delivery));
        assert_eq!(result, Ok(()));
    }

    fn message(&mut self, packet_id: u16) {
        let topic = format!("d{packet_id}/up");
        let publish = Publish { qos: 1, packet_id, topic, size: 10, ..Publish::default() };
        self.handle(Incoming::Publish(publish));
    }

    /// Settles a message that was delivered; the connection hears of it.
    async fn settles(&mut self, index: usize) {
        self.delivered.remove(index).receipt.settle().await;
        let command = self.commands.recv().await.unwrap();
        self.session.command(command);
    }

    fn publishes(&mut self, topic: &str) {
        self.session.command(Command::Publish(Box::new(Publication {
            purpose: Purpose::Reply,
            topic: topic.to_owned(),
            payload: Bytes::from_static(b"x"),
            retain: false,
            properties: Properties::default(),
        })));
    }

    /// What goes out in one write.
    fn written(&mut self) -> BytesMut {
        let mut out = BytesMut::new();
        self.session.transmit(&mut out, self.now);
        out
    }

    /// The first bytes of the packets that go out in one write, and their packet identifiers.
    fn packets(&mut self) -> Vec<(u8, u16)> {
        let (mut out, mut packets) = (self.written(), Vec::new());
        while !out.is_empty() {
            let (kind, length) = (out[0], usize::from(out[1]));
            assert!(length < 128);
            let packet = out.split_to(2 + length);
            let id_at = if kind >> 4 == 3 { 4 + usize::from(packet[3]) } else { 2 };
            packets.push((
                kind,
                packet.get(id_at..).map_or(0, |mut rest| rest.try_get_u16().unwrap_or(0)),
            ));
        }
        packets
    }
}

#[tokio::test(start_paused = true)]
async fn every_puback_that_waits_leaves_in_one_write() {
    let mut world = World::connected();
    for packet_id in 1..=50 {
        world.message(packet_id);
    }
    for _ in 2..=50 {
        world.settles(1).await;
    }
    assert!(world.packets().is_empty(), "the first holds back the others");
    world.settles(0).await;
    let pubacks: Vec<_> = (1..=50).map(|packet_id| (0x40, packet_id)).collect();
    assert_eq!(world.packets(), pubacks);
}

#[tokio::test(start_paused = true)]
async fn a_puback_leaves_behind_what_was_published_before_it() {
    let mut world = World::connected();
    world.connects_with_window(1);
    world.message(7);
    world.publishes("a");
    world.publishes("b");
    world.settles(0).await;
    assert_eq!(world.packets(), [(0x32, 1)], "the broker takes one at a time");
    world.handle(Incoming::PubAck { packet_id: 1, reason: 0 });
    assert_eq!(world.packets(), [(0x32, 2), (0x40, 7)]);
}

impl World {
    /// The connection breaks, and the next one has this Receive Maximum.
    fn connects_with_window(&mut self, receive_maximum: u16) {
        self.session.disconnected(None, self.now);
        self.connects(Limits { receive_maximum, ..Limits::default() });
    }
}

#[tokio::test(start_paused = true)]
async fn pings_go_out_on_a_busy_connection_too() {
    let mut world = World::connected();
    let mut pings = 0;
    for packet_id in 1..=60 {
        world.now += Duration::from_secs(1);
        world.message(packet_id);
        world.session.advance(world.now);
        pings += world.packets().iter().filter(|(kind, _)| *kind == 0xC0).count();
        assert!(world.session.next_timeout().is_some_and(|at| at > world.now));
    }
    assert_eq!(pings, 2);
}

#[tokio::test(start_paused = true)]
async fn nothing_goes_out_before_connack_and_after_disconnect() {
    let mut world = World::new();
    world.publishes("a");
    world.handle(Incoming::PubAck { packet_id: 1, reason: 0 });
    world.message(1);
    assert!(world.packets().is_empty() && world.delivered.is_empty());
    world.connects(Limits::default());
    world.handle(Incoming::PubAck { packet_id: 1, reason: 0 });
    world.session.command(Command::Finish);
    assert_eq!(world.packets(), [(0xE0, 0)]);
    assert!(world.session.is_leaving() && world.session.is_finished());
    world.publishes("b");
    world.message(2);
    assert!(world.packets().is_empty() && world.delivered.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_session_that_is_closed_acknowledges_what_is_settled_behind_what_is_not() {
    let mut world = World::connected();
    for packet_id in 1..=3 {
        world.message(packet_id);
    }
    world.settles(1).await;
    world.publishes("a");
    world.settles(1).await;
    world.session.command(Command::Close);
    assert_eq!(world.packets(), [(0x32, 1), (0x40, 2), (0x40, 3), (0xE0, 0)]);
}

#[tokio::test(start_paused = true)]
async fn what_is_to_be_retained_is_if_the_broker_can() {
    for (retain, first) in [(true, 0x33), (false, 0x32)] {
        let mut world = World::new();
        world.connects(Limits { retain, ..Limits::default() });
        world.session.command(Command::Publish(Box::new(Publication {
            purpose: Purpose::Push,
            topic: "a".to_owned(),
            payload: Bytes::from_static(b"x"),
            retain: true,
            properties: Properties::default(),
        })));
        world.publishes("b");
        assert_eq!(world.packets(), [(first, 1), (0x32, 2)]);
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_in_large_is_not_written_ahead() {
    let mut world = World::connected();
    let payload = Bytes::from(vec![0; 40_000]);
    for _ in 0..10 {
        world.session.command(Command::Publish(Box::new(Publication {
            purpose: Purpose::Reply,
            topic: "a".to_owned(),
            payload: payload.clone(),
            retain: false,
            properties: Properties::default(),
        })));
    }
    assert!(world.written().len() < WRITTEN_AHEAD + 40_100);
}

#[tokio::test(start_paused = true)]
async fn user_properties_count_against_the_bytes_that_may_be_held() {
    let mut world = World::connected();
    let user: UserProperties = [("", ""); 200].into_iter().collect();
    for packet_id in 1..=100 {
        let properties = Properties { user: user.clone(), ..Properties::default() };
        let topic = format!("d{packet_id}/up");
        let publish =
            Publish { qos: 1, packet_id, topic, properties, size: 1_000, ..Publish::default() };
        world.handle(Incoming::Publish(publish));
    }
    assert!((40..60).contains(&world.delivered.len()), "{}", world.delivered.len());
}
