//! The rules of MQTT 5 on the gateway's own connection, held from outside: packets that a scripted broker
//! sends and gets, and HTTP requests. Most were written against `rumqttc` 0.25.1, whose event loop broke
//! them (see `docs/decisions/own-connection.md`); whatever drives the connection is judged by them.
//!
//! Not here: a message that comes at `QoS` 2 is in `broker_rules.rs`. Left out on purpose: what the outbox
//! sends again is a new publication, without DUP and under another packet identifier, although
//! [MQTT-4.4.0-1] asks for the same one (see `docs/decisions/own-outbox.md`).

use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout},
};
use wiremock::ResponseTemplate;

use crate::{
    fake_broker::{FakeBroker, Link},
    fixture::{REFUSED, SETTLED, again, gateway, path, question, quick, telemetry},
    harness::{Gateway, Options, PATIENCE, QUIET, Upstream},
    scripted_api::{Reply, answer_each},
    wire::{Packet, Props, Publish},
};

/// The log line of a connection that ended.
const LOST: &str = "no connection to the broker";

/// Which question this is the reply to.
fn answered(reply: &Publish) -> u16 {
    let correlation = reply.props.correlation.clone().expect("a reply carries Correlation Data");
    String::from_utf8(correlation).unwrap().parse().unwrap()
}

fn takes_at_once(receive_maximum: u16) -> Props {
    Props { receive_maximum: Some(receive_maximum), ..Props::default() }
}

/// An API whose answers the test gives one by one, so that "while in flight" is no matter of time.
struct Gate {
    url: String,
    calls: mpsc::Receiver<Call>,
}

/// A request that waits for its answer.
struct Call {
    path: String,
    body: String,
    answer: watch::Sender<Option<String>>,
}

impl Gate {
    async fn start() -> Self {
        let (sender, calls) = mpsc::channel(64);
        let port = answer_each(move |request| {
            let (answer, told) = watch::channel(None);
            let (path, body) = (request.path.clone(), request.body.clone());
            // A test that has ended answers no more.
            let _ = sender.try_send(Call { path, body, answer });
            Reply::Later(told)
        })
        .await;
        Self { url: format!("http://127.0.0.1:{port}"), calls }
    }

    /// The next request; it must be this device's.
    async fn call(&mut self, device: &str) -> Call {
        let call = timeout(PATIENCE, self.calls.recv()).await;
        let call = call.unwrap_or_else(|_| panic!("no request of {device}")).unwrap();
        assert_eq!(call.path, path(device));
        call
    }

    /// There was no request that the test has not seen.
    fn is_quiet(&mut self) {
        if let Ok(call) = self.calls.try_recv() {
            panic!("unexpected request: {} {:?}", call.path, call.body);
        }
    }
}

impl Call {
    fn accept(self) {
        self.answers("{}".to_owned());
    }

    fn answers(self, body: String) {
        self.answer.send(Some(body)).expect("the gateway waits for its answer");
    }
}

/// When the answer for a message comes whose connection has been cut.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Answer {
    BeforeConnack,
    BeforeRedelivery,
    AfterRedelivery,
}

const ANSWERS: [Answer; 3] =
    [Answer::BeforeConnack, Answer::BeforeRedelivery, Answer::AfterRedelivery];

/// A message of `d1` whose connection is cut while the API has not answered. The API answers at a time that the test
/// chooses.
struct Cut {
    broker: FakeBroker,
    api: Gate,
    gateway: Gateway,
    message: Publish,
    call: Option<Call>,
    answer: Answer,
}

impl Cut {
    async fn start(answer: Answer) -> Self {
        let (broker, mut api) = (FakeBroker::start().await, Gate::start().await);
        let gateway = gateway(&broker, &api.url, Options::default()).await;
        let mut link = broker.serve(false, Props::default()).await;
        let message = telemetry(1, "d1");
        link.deliver(&message).await;
        let call = Some(api.call("d1").await);
        link.cut();
        Self { broker, api, gateway, message, call, answer }
    }

    /// Answers, if this is the time.
    async fn answer_if(&mut self, now: Answer) {
        if self.answer == now {
            self.call.take().expect("it is answered once").accept();
            self.gateway.metric_reaches(SETTLED, &[], 1).await;
        }
    }

    /// The next connection, with the subscriptions confirmed.
    async fn reconnect(&mut self, session_present: bool) -> Link {
        let mut link = self.broker.accept().await;
        self.answer_if(Answer::BeforeConnack).await;
        link.connack(session_present, Props::default()).await;
        link.subscribed().await;
        self.answer_if(Answer::BeforeRedelivery).await;
        link
    }

    /// Delivers a message of `d2` under the same packet identifier, which the broker may do; its call waits.
    async fn reuse_the_identifier(&mut self, link: &mut Link) -> Call {
        link.deliver(&telemetry(self.message.packet_id, "d2")).await;
        self.api.call("d2").await
    }

    /// The message of `d2` is acknowledged when its call is answered, not before.
    async fn acknowledged_after(&mut self, call: Call, link: &mut Link) {
        link.expect_nothing(QUIET).await;
        call.accept();
        assert_eq!(link.expect_puback().await, self.message.packet_id, "{:?}", self.answer);
    }
}

/// A PUBACK whose connection has broken is not sent on the next one, where the packet identifier belongs
/// to another message: that one would be lost.
#[tokio::test]
async fn a_late_answer_acknowledges_no_message_of_a_new_session() {
    for answer in ANSWERS {
        let mut cut = Cut::start(answer).await;
        let mut link = cut.reconnect(false).await;
        let other = cut.reuse_the_identifier(&mut link).await;
        cut.answer_if(Answer::AfterRedelivery).await;
        cut.acknowledged_after(other, &mut link).await;
        link.expect_nothing(QUIET).await;
        cut.api.is_quiet();
    }
}

/// A message that comes again in a resumed session gets one PUBACK, not two, whenever its answer comes: a
/// broker may give the identifier to another message after the first. It is still the same message, so
/// there is one request.
#[tokio::test]
async fn a_message_that_comes_again_is_sent_once_and_acknowledged_once() {
    for answer in ANSWERS {
        let mut cut = Cut::start(answer).await;
        let mut link = cut.reconnect(true).await;
        link.expect_nothing(QUIET).await;
        link.deliver(&again(&cut.message)).await;
        cut.gateway.metric_reaches("mqtt_rest_gateway_redelivered_total", &[], 1).await;
        if answer == Answer::AfterRedelivery {
            link.expect_nothing(QUIET).await;
        }
        cut.answer_if(Answer::AfterRedelivery).await;
        assert_eq!(link.expect_puback().await, 1, "{answer:?}");

        // The broker is free to use the identifier for something else.
        let other = cut.reuse_the_identifier(&mut link).await;
        cut.acknowledged_after(other, &mut link).await;
        cut.api.is_quiet();
    }
}

/// Messages that were read together with the end of their connection come again on the next one; handled
/// on both, they would be posted twice.
#[tokio::test]
async fn what_was_read_but_not_handled_before_a_reconnect_is_left_to_the_broker() {
    let broker = FakeBroker::start().await;
    let devices = ["d1", "d2", "d3"];
    let upstream = quick(&devices).await;
    let gateway = gateway(&broker, &upstream.url(), Options::default()).await;
    let messages: Vec<_> = (1..).zip(devices).map(|(id, device)| telemetry(id, device)).collect();

    let mut link = broker.serve(false, Props::default()).await;
    gateway.logs("subscribed").await;
    // In one piece, so that the gateway reads the end together with what stands before it.
    let mut bytes: Vec<u8> =
        messages.iter().flat_map(|message| Packet::Publish(message.clone()).encode()).collect();
    bytes.extend(Packet::Disconnect { reason: 0x8B, props: Props::default() }.encode());
    link.send_raw(&bytes).await;

    let mut link = broker.serve(true, Props::default()).await;
    for message in &messages {
        link.deliver(&again(message)).await;
    }
    for message in &messages {
        assert_eq!(link.expect_puback().await, message.packet_id);
    }
    link.expect_nothing(QUIET).await;
    for device in devices {
        assert_eq!(upstream.count(&format!("POST {}", path(device))).await, 1, "{device}");
    }
}

/// The queues inside are bounded, and no task waits for room that only itself could make.
#[tokio::test]
async fn more_messages_at_once_than_every_queue_holds_pass() {
    const COUNT: u16 = 500;
    let (broker, upstream) = (FakeBroker::start().await, quick(&["d1", "d2"]).await);
    let _gateway = gateway(&broker, &upstream.url(), Options::default()).await;
    let mut link = broker.serve(false, takes_at_once(20)).await;
    for id in 1..=COUNT {
        link.deliver(&question(id, if id % 2 == 0 { "d1" } else { "d2" })).await;
    }
    let (mut acknowledged, mut replies) = (Vec::new(), BTreeSet::new());
    while acknowledged.len() < COUNT.into() || replies.len() < COUNT.into() {
        match link.next("PUBLISH or PUBACK").await {
            Packet::PubAck { packet_id, .. } => acknowledged.push(packet_id),
            Packet::Publish(reply) => {
                assert!(replies.insert(answered(&reply)), "twice: {}", answered(&reply));
                link.puback(reply.packet_id).await;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(acknowledged, (1..=COUNT).collect::<Vec<_>>());
}

/// PUBACKs that wait are not dropped for want of room. One that is slow has held back all the others.
#[tokio::test]
async fn five_hundred_pubacks_at_once_all_go_out() {
    const COUNT: u16 = 500;
    let (broker, mut api) = (FakeBroker::start().await, Gate::start().await);
    let options = Options::default().set("BROKER_ACK_HOLD", "1m");
    let _gateway = gateway(&broker, &api.url, options).await;
    let mut link = broker.serve(false, Props::default()).await;
    link.deliver(&telemetry(1, "d1")).await;
    let slow = api.call("d1").await;
    for id in 2..=COUNT {
        link.deliver(&telemetry(id, "d2")).await;
    }
    for _ in 2..=COUNT {
        api.call("d2").await.accept();
    }
    slow.accept();
    for id in 1..=COUNT {
        assert_eq!(link.expect_puback().await, id);
    }
}

/// Questions, their PUBACKs and their replies, over several connections.
struct Tally {
    count: usize,
    /// Questions without a PUBACK, which a broker that keeps the session sends again.
    open: BTreeSet<u16>,
    /// Replies that the broker has not acknowledged: packet identifier and question.
    held: VecDeque<(u16, u16)>,
    /// Questions in the order in which the broker first acknowledged a reply.
    replies: Vec<u16>,
}

impl Tally {
    fn new(count: u16) -> Self {
        let open = (1..=count).collect();
        Self { count: count.into(), open, held: VecDeque::new(), replies: Vec::new() }
    }

    fn take(&mut self, packet: Packet) {
        match packet {
            Packet::PubAck { packet_id, .. } => {
                assert!(self.open.remove(&packet_id), "PUBACK {packet_id} for nothing");
            }
            Packet::Publish(reply) => {
                let id = reply.packet_id;
                assert!(self.held.iter().all(|(held, _)| *held != id), "{id} is taken");
                self.held.push_back((id, answered(&reply)));
            }
            other => panic!("PUBLISH or PUBACK expected, {other:?} came"),
        }
    }

    /// Acknowledges the oldest reply: from now on it is the broker's.
    async fn release(&mut self, link: &mut Link) {
        let (packet_id, question) = self.held.pop_front().expect("a reply is held");
        link.puback(packet_id).await;
        if !self.replies.contains(&question) {
            self.replies.push(question);
        }
    }

    /// Every question has a reply that is acknowledged or held.
    fn all_came(&self) -> bool {
        let new = self.held.iter().filter(|(_, question)| !self.replies.contains(question));
        self.replies.len() + new.count() == self.count
    }

    fn is_complete(&self) -> bool {
        self.replies.len() == self.count && self.open.is_empty()
    }

    fn assert_in_order(&self) {
        assert!(self.replies.is_sorted() && self.replies.len() == self.count, "{:?}", self.replies);
    }
}

/// Asks 30 questions of a broker that takes 5 replies at once and cuts the connection while as many
/// as possible have no PUBACK, again and again.
async fn replies_survive_cuts(session_present: bool) {
    const COUNT: u16 = 30;
    const AT_ONCE: u16 = 5;
    const CUTS: usize = 3;
    let (broker, upstream) = (FakeBroker::start().await, quick(&["d1"]).await);
    let _gateway = gateway(&broker, &upstream.url(), Options::default()).await;
    let questions: Vec<_> = (1..=COUNT).map(|id| question(id, "d1")).collect();
    let mut tally = Tally::new(COUNT);
    for connection in 0..=CUTS {
        let session_present = connection > 0 && session_present;
        let mut link = broker.serve(session_present, takes_at_once(AT_ONCE)).await;
        if connection == 0 {
            for question in &questions {
                link.deliver(question).await;
            }
        } else if session_present {
            for id in &tally.open {
                link.deliver(&again(&questions[usize::from(id - 1)])).await;
            }
        } else {
            tally.open.clear();
        }
        tally.held.clear();
        let enough = if connection == CUTS { usize::MAX } else { tally.replies.len() + 6 };
        while !tally.is_complete() {
            // The gateway sends one less than it may at once, then it waits.
            let waits = tally.held.len() == usize::from(AT_ONCE - 1) || tally.all_came();
            if !waits || tally.held.is_empty() {
                tally.take(link.next("PUBLISH or PUBACK").await);
            } else if tally.replies.len() < enough {
                tally.release(&mut link).await;
            } else {
                break;
            }
        }
        for packet in link.until_quiet(QUIET).await {
            tally.take(packet);
        }
        assert!(tally.held.len() <= AT_ONCE.into(), "{} in flight", tally.held.len());
        link.cut();
    }
    tally.assert_in_order();
    assert_eq!(upstream.count(&format!("POST {}", path("d1"))).await, usize::from(COUNT));
}

/// After a resumed session no more goes out at once than the broker's Receive Maximum, and nothing is lost.
#[tokio::test]
async fn replies_survive_cuts_of_a_session_that_is_kept() {
    replies_survive_cuts(true).await;
}

/// Publications without a PUBACK go out again when the broker has lost the session too.
#[tokio::test]
async fn replies_survive_cuts_of_a_session_that_is_lost() {
    replies_survive_cuts(false).await;
}

/// A broker may acknowledge publications in another order than they came: no packet identifier is used twice,
/// and everything goes on, also after the session is lost.
#[tokio::test]
async fn pubacks_out_of_order_stop_nothing() {
    let (broker, upstream) = (FakeBroker::start().await, quick(&["d1", "d2"]).await);
    let _gateway = gateway(&broker, &upstream.url(), Options::default()).await;
    let mut link = broker.serve(false, takes_at_once(5)).await;
    let mut tally = Tally::new(12);
    for id in 1..=12 {
        link.deliver(&question(id, "d1")).await;
    }
    while tally.held.len() < 4 {
        tally.take(link.next("PUBLISH or PUBACK").await);
    }
    let oldest = tally.held.pop_front().unwrap();
    while !tally.held.is_empty() {
        tally.release(&mut link).await;
    }
    tally.held.push_back(oldest);
    for packet in link.until_quiet(QUIET).await {
        tally.take(packet);
    }
    link.cut();

    let mut link = broker.serve(false, takes_at_once(5)).await;
    tally.open.clear();
    tally.held.clear();
    while !tally.is_complete() {
        tally.take(link.next("PUBLISH").await);
        tally.release(&mut link).await;
    }
    link.deliver(&telemetry(1, "d2")).await;
    assert_eq!(link.expect_puback().await, 1);
}

/// A publication over the broker's Maximum Packet Size would end the connection, and the next one, and so
/// on: it is not sent [MQTT-3.2.2-15]. The limit counts only on the connection that announced it.
#[tokio::test]
async fn what_is_larger_than_the_broker_takes_is_dropped_and_counted() {
    const LARGEST: usize = 1024;
    let (broker, mut api) = (FakeBroker::start().await, Gate::start().await);
    let gateway = gateway(&broker, &api.url, Options::default()).await;
    let limited = Props { maximum_packet_size: u32::try_from(LARGEST).ok(), ..Props::default() };
    let mut link = broker.serve(false, limited).await;
    let (mut dropped, mut largest) = (0, 0);
    // Around the limit, byte by byte: what the packet adds to the payload is less than 200 bytes.
    for size in LARGEST - 200..=LARGEST {
        link.deliver(&question(1, "d1")).await;
        api.call("d1").await.answers("x".repeat(size));
        match link.next("PUBLISH or PUBACK").await {
            Packet::Publish(reply) => {
                link.puback(reply.packet_id).await;
                largest = Packet::Publish(reply).encode().len();
                assert_eq!(link.expect_puback().await, 1);
            }
            Packet::PubAck { packet_id, .. } => {
                assert_eq!(packet_id, 1);
                dropped += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!((LARGEST - 16..=LARGEST).contains(&largest), "the largest that passed: {largest}");
    assert!(dropped > 0, "nothing was too large");
    let counted = gateway.metric(REFUSED, &["too_large"]).await;
    assert_eq!(counted, dropped);
    link.deliver(&question(1, "d1")).await;
    api.call("d1").await.accept();
    link.expect_publish().await;
    assert_eq!(link.expect_puback().await, 1);
    link.cut();

    let mut link = broker.serve(false, Props::default()).await;
    assert_eq!(answered(&link.expect_publish().await), 1, "it had no PUBACK");
    link.deliver(&question(2, "d1")).await;
    api.call("d1").await.answers("x".repeat(LARGEST));
    assert_eq!(link.expect_publish().await.payload.len(), LARGEST);
    assert_eq!(gateway.metric(REFUSED, &["too_large"]).await, counted);
}

/// What is refused for its size must have been announced: else the broker sends it again for ever.
#[tokio::test]
async fn a_large_message_passes_and_the_limit_is_announced() {
    let (broker, mut api) = (FakeBroker::start().await, Gate::start().await);
    let options = Options::default().set("BROKER_MAX_PACKET", "2MiB");
    let _gateway = gateway(&broker, &api.url, options).await;
    let mut link = broker.serve(false, Props::default()).await;
    assert_eq!(link.props.maximum_packet_size, Some(2 * 1024 * 1024));
    let payload = format!("\"{}\"", "x".repeat(100 * 1024));
    link.deliver(&Publish { payload: payload.clone().into(), ..telemetry(1, "d1") }).await;
    let call = api.call("d1").await;
    assert_eq!(call.body, payload);
    call.accept();
    assert_eq!(link.expect_puback().await, 1);
}

/// How a connection ends again and again.
struct Flap {
    /// Whether the broker lets the gateway in first.
    connack: bool,
    /// What it says then, before it closes.
    last_words: &'static [u8],
    /// What the operator reads.
    hint: &'static str,
}

/// The gateway survives it, waits longer and longer, says what is wrong, and goes on afterwards.
async fn flaps(flap: Flap) {
    let (broker, upstream) = (FakeBroker::start().await, quick(&["d1"]).await);
    let gateway = gateway(&broker, &upstream.url(), Options::default()).await;
    let began = Instant::now();
    for _ in 0..6 {
        let mut link = broker.accept().await;
        if flap.connack {
            link.connack(false, Props::default()).await;
            link.subscribed().await;
        }
        link.send_raw(flap.last_words).await;
        link.cut();
    }
    // Five waits of 0.2 to 3.2 s at most, by chance: to be as short together is one in a million.
    assert!(began.elapsed() >= Duration::from_millis(100), "a tight loop: {:?}", began.elapsed());
    let mut link = broker.serve(false, Props::default()).await;
    link.deliver(&telemetry(1, "d1")).await;
    assert_eq!(link.expect_puback().await, 1);
    let log = gateway.log();
    assert_eq!(log.matches(LOST).count(), 6, "one line for each");
    assert!(log.contains(flap.hint), "no {:?}", flap.hint);
}

const TWICE: &str = "is another client connected with the same client id?";

/// A DISCONNECT that is a reason code only, as mosquitto sends it [MQTT 5.0, 3.14.2.2].
#[tokio::test]
async fn survives_a_disconnect_with_a_reason_code_only() {
    flaps(Flap { connack: true, last_words: b"\xe0\x01\x8e", hint: TWICE }).await;
}

/// A DISCONNECT that is empty.
#[tokio::test]
async fn survives_an_empty_disconnect() {
    flaps(Flap { connack: true, last_words: b"\xe0\x00", hint: TWICE }).await;
}

/// A DISCONNECT with a Reason String: the operator reads what the broker says.
#[tokio::test]
async fn survives_a_disconnect_with_a_reason_string() {
    let last_words = b"\xe0\x09\x89\x07\x1f\x00\x04full";
    flaps(Flap { connack: true, last_words, hint: "ServerBusy full" }).await;
}

/// The CONNACK of a broker without MQTT 5 is no packet of MQTT 5.
#[tokio::test]
async fn survives_a_connack_of_mqtt_3() {
    let last_words = b"\x20\x02\x00\x01";
    flaps(Flap { connack: false, last_words, hint: "does it speak MQTT 5?" }).await;
}

/// A refusal is told by its name.
#[tokio::test]
async fn survives_a_refused_connect() {
    let last_words = b"\x20\x03\x00\x87\x00";
    flaps(Flap { connack: false, last_words, hint: "NotAuthorized" }).await;
}

/// A broker that does not read is left after a while, whatever waits to be written.
#[tokio::test]
async fn a_broker_that_stops_reading_is_left() {
    const COUNT: u16 = 20;
    let (broker, upstream) = (FakeBroker::start().await, Upstream::start().await);
    // More together than the sockets of both sides buffer.
    let large = ResponseTemplate::new(200).set_body_bytes(vec![b'x'; 1_000_000]);
    upstream.responds("POST", &path("d1"), large).await;
    let options = Options::default().set("BROKER_KEEP_ALIVE", "5s");
    let gateway = gateway(&broker, &upstream.url(), options).await;
    let mut deaf = broker.serve(false, Props::default()).await;
    for id in 1..=COUNT {
        deaf.deliver(&question(id, "d1")).await;
    }
    // Twice the keep-alive and 5 s.
    let mut link = broker.accept_within(Duration::from_secs(25)).await;
    gateway.logs("the broker has stopped reading").await;
    link.connack(false, Props::default()).await;
    link.subscribed().await;
    let mut tally = Tally::new(COUNT);
    tally.open.clear();
    while !tally.is_complete() {
        tally.take(link.next("PUBLISH").await);
        tally.release(&mut link).await;
    }
    tally.assert_in_order();
}

/// The gateway asks for its Receive Maximum, Maximum Packet Size and session, and for no topic aliases.
#[tokio::test]
async fn connect_and_subscribe_carry_what_is_configured() {
    // QoS 1, no local, no retained messages.
    let own = 0b10_0101;
    // No local is a protocol error on a shared subscription [MQTT-3.8.3-4].
    let shared = 0b10_0001;
    for (group, options, start) in
        [("", own, "v1/device/+/"), ("g", shared, "$share/g/v1/device/+/")]
    {
        let (broker, upstream) = (FakeBroker::start().await, quick(&[]).await);
        let settings = Options::default()
            .set("BROKER_SHARE_GROUP", group)
            .set("BROKER_CLIENT_ID", "here")
            .set("BROKER_MAX_PENDING", "77");
        let _gateway = gateway(&broker, &upstream.url(), settings).await;
        let mut link = broker.accept().await;
        assert_eq!(link.client_id, "here");
        assert!(!link.clean_start, "the session is kept");
        assert_eq!(link.keep_alive, 30);
        let expected = Props {
            receive_maximum: Some(77),
            session_expiry: Some(7 * 24 * 3600),
            maximum_packet_size: Some(2 * 1024 * 1024),
            ..Props::default()
        };
        assert_eq!(link.props, expected);
        link.connack(false, Props::default()).await;
        let filters = link.subscribed().await;
        assert!(filters.iter().any(|(filter, _)| *filter == format!("{start}telemetry")));
        for (filter, asked) in filters {
            assert!(filter.starts_with(start), "{filter}");
            assert_eq!(asked, options, "{filter}");
        }
    }
}

/// When as many publications are in flight as the broker takes, PUBACKs go on [MQTT-4.9.0-3].
#[tokio::test]
async fn acknowledgements_go_on_while_publications_wait() {
    const REPLIES: u16 = 4;
    let (broker, upstream) = (FakeBroker::start().await, quick(&["d1", "d2"]).await);
    let _gateway = gateway(&broker, &upstream.url(), Options::default()).await;
    let mut link = broker.serve(false, takes_at_once(REPLIES + 1)).await;
    for id in 1..=REPLIES {
        link.deliver(&question(id, "d1")).await;
        assert_eq!(answered(&link.expect_publish().await), id);
        assert_eq!(link.expect_puback().await, id);
    }
    for id in 5..20 {
        link.deliver(&telemetry(id, "d2")).await;
        assert_eq!(link.expect_puback().await, id);
    }
    // And whatever more goes out takes its acknowledgement with it.
    for id in 20..30 {
        link.deliver(&question(id, "d1")).await;
    }
    let packets = link.until_quiet(QUIET).await;
    let (publications, acknowledgements): (Vec<_>, Vec<_>) =
        packets.iter().partition(|packet| matches!(packet, Packet::Publish(_)));
    assert_eq!(publications.len(), acknowledgements.len(), "{packets:?}");
}

/// A broker that turns keep-alive off gets no pings, let alone a storm of them.
#[tokio::test]
async fn server_keep_alive_0_makes_no_storm_of_pings() {
    let (broker, upstream) = (FakeBroker::start().await, quick(&["d1"]).await);
    let _gateway = gateway(&broker, &upstream.url(), Options::default()).await;
    let off = Props { server_keep_alive: Some(0), ..Props::default() };
    let mut link = broker.serve(false, off).await;
    link.expect_nothing(QUIET).await;
    assert!(link.pings <= 1, "{} pings", link.pings);
    link.deliver(&telemetry(1, "d1")).await;
    assert_eq!(link.expect_puback().await, 1);
}

/// Any other Server Keep Alive is obeyed [MQTT-3.1.2-21].
#[tokio::test]
async fn server_keep_alive_is_obeyed() {
    let (broker, upstream) = (FakeBroker::start().await, quick(&[]).await);
    let _gateway = gateway(&broker, &upstream.url(), Options::default()).await;
    let short = Props { server_keep_alive: Some(1), ..Props::default() };
    let mut link = broker.serve(false, short).await;
    let connected = Instant::now();
    while link.pings == 0 {
        assert!(connected.elapsed() < PATIENCE, "no ping within {PATIENCE:?}");
        link.expect_nothing(Duration::from_millis(100)).await;
    }
}

/// What one CONNACK says about the connection and the session is not what the next CONNECT asks for.
#[tokio::test]
async fn every_connect_asks_for_what_is_configured() {
    let (broker, upstream) = (FakeBroker::start().await, quick(&[]).await);
    let _gateway = gateway(&broker, &upstream.url(), Options::default()).await;
    let answers = [
        Props { server_keep_alive: Some(0), ..Props::default() },
        Props { server_keep_alive: Some(7), ..Props::default() },
        Props { session_expiry: Some(7), ..Props::default() },
        Props::default(),
    ];
    for answer in answers {
        let mut link = broker.accept().await;
        assert_eq!((link.keep_alive, link.props.session_expiry), (30, Some(7 * 24 * 3600)));
        link.connack(false, answer).await;
        link.subscribed().await;
        link.cut();
    }
}

/// A Receive Maximum ends with its connection: when the next CONNACK names none, it is 65,535.
#[tokio::test]
async fn a_receive_maximum_ends_with_its_connection() {
    let (broker, upstream) = (FakeBroker::start().await, quick(&["d1"]).await);
    let _gateway = gateway(&broker, &upstream.url(), Options::default()).await;
    broker.serve(false, takes_at_once(3)).await.cut();
    let mut link = broker.serve(false, Props::default()).await;
    for id in 1..=50 {
        link.deliver(&question(id, "d1")).await;
        assert_eq!(answered(&link.expect_publish().await), id);
        assert_eq!(link.expect_puback().await, id);
    }
}

/// A connection with a smaller Receive Maximum than the one before keeps it from the first publication on.
#[tokio::test]
async fn a_smaller_receive_maximum_is_kept_from_the_first_publication_on() {
    let (broker, upstream) = (FakeBroker::start().await, quick(&["d1"]).await);
    let gateway = gateway(&broker, &upstream.url(), Options::default()).await;
    for (connection, limits) in [Props::default(), takes_at_once(5)].into_iter().enumerate() {
        let mut link = broker.serve(false, limits).await;
        for id in 1..=60 {
            link.deliver(&question(id, "d1")).await;
            let reply = link.expect_publish().await;
            assert_eq!(answered(&reply), id);
            link.puback(reply.packet_id).await;
            assert_eq!(link.expect_puback().await, id);
        }
        // Answered, so the last PUBACK above has been read and nothing goes out again.
        link.deliver(&telemetry(61, "d1")).await;
        assert_eq!(link.expect_puback().await, 61);
        assert_eq!(gateway.log().matches(LOST).count(), connection, "only the cut");
        link.cut();
    }
}

/// SUBSCRIBE shares its packet identifiers with publications: each connection begins with it, before
/// anything else, whatever waits, and it is sent once.
#[tokio::test]
async fn every_connection_begins_with_one_subscribe() {
    let (broker, upstream) = (FakeBroker::start().await, quick(&["d1"]).await);
    let gateway = gateway(&broker, &upstream.url(), Options::default()).await;
    let mut link = broker.serve(false, Props::default()).await;
    for id in 1..=10 {
        link.deliver(&question(id, "d1")).await;
    }
    gateway.metric_reaches(SETTLED, &[], 10).await;
    link.cut();
    // Cut before the SUBSCRIBE is answered, and possibly before it is sent.
    let mut link = broker.accept().await;
    link.connack(true, Props::default()).await;
    link.cut();
    let mut link = broker.serve(true, Props::default()).await;
    for packet in link.until_quiet(QUIET).await {
        assert!(matches!(packet, Packet::Publish(_)), "{packet:?}");
    }
}

/// A PUBACK that refuses a publication is counted and told, and stops nothing.
#[tokio::test]
async fn a_refused_publication_is_counted_and_the_next_one_passes() {
    let (broker, upstream) = (FakeBroker::start().await, quick(&["d1"]).await);
    let gateway = gateway(&broker, &upstream.url(), Options::default()).await;
    let mut link = broker.serve(false, takes_at_once(5)).await;
    // Not authorized, quota exceeded, and "no matching subscribers", which is no refusal.
    for (id, reason) in (1..).zip([0x87, 0x97, 0x10, 0x00, 0x87, 0x87, 0x87, 0x87, 0x00]) {
        link.deliver(&question(id, "d1")).await;
        let reply = link.expect_publish().await;
        assert_eq!(answered(&reply), id);
        link.send(&Packet::PubAck { packet_id: reply.packet_id, reason }).await;
        assert_eq!(link.expect_puback().await, id);
    }
    gateway.metric_reaches(REFUSED, &["refused"], 6).await;
    assert_eq!(gateway.metric(REFUSED, &[]).await, 6);
    gateway.logs("NotAuthorized").await;
}

/// Three messages: the first still waits for its answer, the two after it are answered.
struct SlowFirst {
    _broker: FakeBroker,
    api: Gate,
    gateway: Gateway,
    link: Link,
    began: Instant,
    slow: Call,
}

impl SlowFirst {
    async fn start(ack_hold: &str) -> Self {
        let (broker, mut api) = (FakeBroker::start().await, Gate::start().await);
        let options = Options::default().set("BROKER_ACK_HOLD", ack_hold);
        let gateway = gateway(&broker, &api.url, options).await;
        let mut link = broker.serve(false, Props::default()).await;
        let began = Instant::now();
        link.deliver(&telemetry(9, "d1")).await;
        let slow = api.call("d1").await;
        for (id, device) in [(3, "d2"), (7, "d3")] {
            link.deliver(&telemetry(id, device)).await;
            api.call(device).await.accept();
        }
        Self { _broker: broker, api, gateway, link, began, slow }
    }
}

/// [MQTT-4.6.0-2].
#[tokio::test]
async fn pubacks_go_out_in_the_order_of_arrival() {
    let mut scene = SlowFirst::start("1m").await;
    scene.gateway.metric_reaches(SETTLED, &[], 2).await;
    scene.link.expect_nothing(QUIET).await;
    scene.slow.accept();
    for id in [9, 3, 7] {
        assert_eq!(scene.link.expect_puback().await, id);
    }
    scene.api.is_quiet();
}

/// One that hangs holds back the others for `ack_hold` only, and with them the Receive Maximum.
#[tokio::test]
async fn pubacks_pass_a_message_that_is_held_longer_than_ack_hold() {
    let mut scene = SlowFirst::start("500ms").await;
    assert_eq!(scene.link.expect_puback().await, 3);
    let after = scene.began.elapsed();
    assert!(after >= Duration::from_millis(500), "already after {after:?}");
    assert_eq!(scene.link.expect_puback().await, 7);
    scene.link.expect_nothing(QUIET).await;
    // The metric has what the broker waited, not only what the API took.
    let waited = async |suffix: &str, bound: &[&str]| {
        let name = format!("mqtt_rest_gateway_acknowledgement_duration_seconds_{suffix}");
        let labels = [&["route=\"telemetry\""], bound].concat();
        scene.gateway.metric(&name, &labels).await
    };
    assert_eq!(waited("count", &[]).await, 2);
    assert_eq!(waited("bucket", &["le=\"0.25\""]).await, 0);
    scene.slow.accept();
    assert_eq!(scene.link.expect_puback().await, 9);
    assert_eq!(waited("count", &[]).await, 3);
    scene.api.is_quiet();
}
