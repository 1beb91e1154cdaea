//! Traces, at a collector that the test starts: one tree for each message, context in and out, and a collector that is
//! away.

use std::{collections::BTreeSet, time::Duration};

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value as AnyValue},
    trace::v1::{Span, span::SpanKind, status::StatusCode},
};
use prost::Message;
use serde_json::json;
use wiremock::ResponseTemplate;

use crate::{
    batch::shipped_with_batch,
    fixture::path,
    harness::{Broker, Device, Gateway, Options, Upstream},
};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// What takes the traces.
struct Collector {
    server: Upstream,
}

impl Collector {
    async fn start() -> Self {
        let server = Upstream::start().await;
        server.responds("POST", "/v1/traces", ResponseTemplate::new(200)).await;
        Self { server }
    }

    /// A gateway that sends its traces here.
    fn options(&self) -> Options {
        Options::default().set("TRACES_ENDPOINT", &self.server.url())
    }

    async fn requests(&self) -> Vec<ExportTraceServiceRequest> {
        let requests = self.server.requests().await;
        let bodies = requests.iter().map(|request| {
            assert_eq!(request.headers.get("content-type").unwrap(), "application/x-protobuf");
            ExportTraceServiceRequest::decode(&*request.body).unwrap()
        });
        bodies.collect()
    }

    /// Stops the gateway, which exports what is left, and returns every span.
    async fn spans(&self, mut gateway: Gateway) -> Spans {
        assert_eq!(gateway.stop().await.code(), Some(0), "{}", gateway.log());
        let spans = self.requests().await.into_iter().flat_map(|request| request.resource_spans);
        let spans = spans.flat_map(|resource| resource.scope_spans);
        Spans(spans.flat_map(|scope| scope.spans).collect())
    }
}

#[derive(Debug)]
struct Spans(Vec<Span>);

impl Spans {
    fn named(&self, name: &str) -> Vec<&Span> {
        self.0.iter().filter(|span| span.name == name).collect()
    }

    fn only(&self, name: &str) -> &Span {
        let named = self.named(name);
        assert_eq!(named.len(), 1, "{name}: {:?}", self.names());
        named[0]
    }

    fn below(&self, parent: &Span) -> Vec<&Span> {
        let mut below: Vec<&Span> =
            self.0.iter().filter(|span| span.parent_span_id == parent.span_id).collect();
        below.sort_by_key(|span| span.start_time_unix_nano);
        below
    }

    fn names(&self) -> BTreeSet<&str> {
        self.0.iter().map(|span| span.name.as_str()).collect()
    }
}

fn value(attributes: &[KeyValue], name: &str) -> String {
    let found = attributes.iter().find(|attribute| attribute.key == name);
    match found.and_then(|found| found.value.as_ref()?.value.as_ref()) {
        Some(AnyValue::StringValue(text)) => text.clone(),
        Some(AnyValue::IntValue(number)) => number.to_string(),
        other => panic!("{name}: {other:?} of {attributes:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"))
}

/// `00-trace-span-01` of a span.
fn context(span: &Span) -> String {
    format!("00-{}-{}-01", hex(&span.trace_id), hex(&span.span_id))
}

const TELEMETRY: &str = "process v1/device/{device_id}/telemetry";

#[tokio::test]
async fn a_message_is_one_tree_from_its_arrival_to_its_puback() {
    let collector = Collector::start().await;
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let gateway = collector.options().start(&broker, &upstream).await;
    let mut device = broker.device("d1").await;
    upstream.answers("POST", &path("d1"), 201, json!({"command": true})).await;
    upstream.answers("GET", "/v1/devices/d1/command", 200, json!({"id": 7})).await;
    upstream.responds_times("POST", &path("d1"), 1, ResponseTemplate::new(503)).await;
    let mut message = device.message("telemetry", "{}");
    message.props.response_topic = Some(device.topic("answers"));
    let parent = format!("00-{TRACE}-{PARENT}-01");
    let own = [("traceparent", parent.as_str()), ("tracestate", "vendor=value")];
    message.props.user.extend(own.map(|(name, value)| (name.to_owned(), value.to_owned())));
    device.publish(message).await;
    let reply = device.on("v1/device/d1/answers").await;
    let push = device.on("v1/device/d1/commands").await;
    // Without the probe, which belongs to no message.
    let mut requests = upstream.requests().await;
    requests.retain(|request| request.url.path() != "/");
    let spans = collector.spans(gateway).await;

    let root = spans.only(TELEMETRY);
    assert_eq!((hex(&root.trace_id), hex(&root.parent_span_id)), (TRACE.into(), PARENT.into()));
    assert_eq!(root.kind, SpanKind::Consumer as i32);
    for (name, expected) in [
        ("messaging.system", "mqtt"),
        ("messaging.destination.name", "v1/device/d1/telemetry"),
        ("messaging.destination.template", "v1/device/{device_id}/telemetry"),
        ("messaging.message.body.size", "2"),
        ("mqtt_rest_gateway.row", "telemetry"),
        ("mqtt_rest_gateway.device", "d1"),
        ("mqtt_rest_gateway.outcome", "delivered"),
        ("mqtt_rest_gateway.status", "201"),
    ] {
        assert_eq!(value(&root.attributes, name), expected, "{name}");
    }
    assert!(spans.0.iter().all(|span| span.trace_id == root.trace_id), "one tree");
    assert!(spans.0.iter().all(|span| span.end_time_unix_nano <= root.end_time_unix_nano));

    let below: Vec<_> = spans.below(root).into_iter().map(|span| span.name.as_str()).collect();
    assert_eq!(below, ["POST telemetry", "POST telemetry", "send reply", "fetch command"]);
    let attempts = spans.named("POST telemetry");
    assert_eq!(value(&attempts[0].attributes, "http.response.status_code"), "503");
    assert_eq!(value(&attempts[0].attributes, "error.type"), "503");
    assert_eq!(attempts[0].status.as_ref().unwrap().code, StatusCode::Error as i32);
    assert_eq!(value(&attempts[1].attributes, "http.response.status_code"), "201");
    assert_eq!(value(&attempts[1].attributes, "http.request.resend_count"), "1");
    let url = format!("{}{}", upstream.url(), path("d1"));
    assert_eq!(value(&attempts[1].attributes, "url.full"), url);
    let fetch = spans.only("fetch command");
    let below: Vec<_> = spans.below(fetch).into_iter().map(|span| span.name.as_str()).collect();
    assert_eq!(below, ["GET command", "send push"]);
    assert_eq!(value(&fetch.attributes, "mqtt_rest_gateway.result"), "pushed");

    // Each request has the context of its attempt, and each publication that of its own span.
    let of_attempts = attempts.iter().map(|span| context(span));
    let expected: Vec<_> = of_attempts.chain([context(spans.only("GET command"))]).collect();
    let sent: Vec<_> =
        requests.iter().map(|r| r.headers["traceparent"].to_str().unwrap().to_owned()).collect();
    assert_eq!(sent, expected);
    assert!(requests.iter().all(|request| request.headers["tracestate"] == "vendor=value"));
    assert_eq!(reply.user("traceparent"), context(spans.only("send reply")));
    assert_eq!(push.user("traceparent"), context(spans.only("send push")));
    assert_eq!(push.user("tracestate"), "vendor=value");
}

#[tokio::test]
async fn a_message_whose_puback_is_held_back_lasts_until_it_leaves() {
    let collector = Collector::start().await;
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let options = collector.options().set("BROKER_ACK_HOLD", "forever");
    let gateway = options.start(&broker, &upstream).await;
    let (mut slow, mut quick) = (broker.device("slow").await, broker.device("quick").await);
    let late = ResponseTemplate::new(201).set_body_json(json!({}));
    upstream.responds("POST", &path("slow"), late.set_delay(Duration::from_millis(400))).await;
    upstream.answers("POST", &path("quick"), 201, json!({})).await;
    slow.send("telemetry", json!({})).await;
    upstream.arrived(&format!("POST {}", path("slow")), 1).await;
    quick.send("telemetry", json!({})).await;
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["delivered"], 2).await;
    let spans = collector.spans(gateway).await;
    let of = |device: &str| {
        let messages = spans.named(TELEMETRY).into_iter();
        let mut messages =
            messages.filter(|span| value(&span.attributes, "mqtt_rest_gateway.device") == device);
        let message = messages.next().unwrap();
        (message, spans.below(message)[0])
    };
    let ((quick, quick_attempt), (_, slow_attempt)) = (of("quick"), of("slow"));
    assert!(quick_attempt.end_time_unix_nano < slow_attempt.end_time_unix_nano);
    assert!(quick.end_time_unix_nano >= slow_attempt.end_time_unix_nano, "its PUBACK waited");
}

#[tokio::test]
async fn a_failure_is_an_error_and_its_dead_letter_goes_on() {
    let collector = Collector::start().await;
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let gateway = collector.options().start(&broker, &upstream).await;
    let mut letters = broker.observer("mqtt-rest-gateway/dead-letter/#").await;
    let mut device = broker.device("d1").await;
    upstream.answers("POST", &path("d1"), 422, json!({})).await;
    let mut message = device.message("telemetry", "{}");
    // As good as none.
    message.props.user.push(("traceparent".to_owned(), "00-1-2-01".to_owned()));
    device.publish(message).await;
    let letter = letters.next().await;
    let spans = collector.spans(gateway).await;
    let root = spans.only(TELEMETRY);
    assert_eq!(root.parent_span_id, Vec::<u8>::new(), "what is malformed is ignored");
    assert_eq!(value(&root.attributes, "mqtt_rest_gateway.outcome"), "rejected");
    assert_eq!(value(&root.attributes, "error.type"), "rejected");
    assert_eq!(root.status.as_ref().unwrap().code, StatusCode::Error as i32);
    let sent = spans.only("send dead letter");
    let contexts: Vec<_> =
        letter.props.user.iter().filter(|(name, _)| name == "traceparent").collect();
    assert_eq!(contexts.len(), 1, "{contexts:?}");
    assert_eq!(contexts[0].1, context(sent));
}

#[tokio::test]
async fn calls_that_travel_together_are_linked_with_their_messages() {
    let collector = Collector::start().await;
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let options = collector.options().config(&shipped_with_batch());
    let gateway = options.set("UPSTREAM_MAX_IN_FLIGHT", "100").start(&broker, &upstream).await;
    let mass = "/v1/devices/telemetries";
    let mut devices: Vec<Device> = Vec::new();
    for id in ["a", "b", "c"] {
        devices.push(broker.device(id).await);
    }
    upstream.answers("POST", mass, 201, json!({"a": {}, "b": {}})).await;
    let first = ResponseTemplate::new(201).set_body_json(json!({"c": {}}));
    upstream.responds_times("POST", mass, 1, first.set_delay(Duration::from_millis(500))).await;
    devices[2].send("telemetry", json!({})).await;
    upstream.arrived(&format!("POST {mass}"), 1).await;
    for device in &mut devices[..2] {
        device.send("telemetry", json!({})).await;
    }
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["delivered"], 3).await;
    let requests = upstream.requests().await;
    let spans = collector.spans(gateway).await;
    let messages = spans.named(TELEMETRY);
    assert_eq!(messages.len(), 3);
    let batches = spans.named("batch telemetry");
    let batch = batches.iter().find(|batch| batch.links.len() == 2).expect("two together");
    assert_eq!(value(&batch.attributes, "messaging.batch.message_count"), "2");
    for link in &batch.links {
        let message = messages.iter().find(|message| message.span_id == link.span_id).unwrap();
        assert_eq!(message.links.len(), 1);
        assert_eq!(message.links[0].span_id, batch.span_id, "and the other way");
        assert_ne!(message.trace_id, batch.trace_id);
    }
    let attempt = spans.below(batch);
    assert_eq!(attempt.len(), 1, "{attempt:?}");
    let sent = requests.iter().any(|r| r.headers["traceparent"] == *context(attempt[0]));
    assert!(sent, "the request has the context of the batch's attempt");
}

#[tokio::test]
async fn a_collector_that_is_away_or_hangs_slows_nothing() {
    let hangs = Upstream::start().await;
    let slow = ResponseTemplate::new(200).set_delay(Duration::from_mins(10));
    hangs.responds("POST", "/v1/traces", slow).await;
    let (_nobody, address) = crate::harness::nobody();
    let away = format!("http://{address}");
    for (endpoint, said) in [(away, "Connection refused"), (hangs.url(), "")] {
        let (broker, upstream) = (Broker::start().await, Upstream::start().await);
        let mut gateway = Options::default()
            .set("TRACES_ENDPOINT", &endpoint)
            .variable("OTEL_BSP_SCHEDULE_DELAY", "20")
            .start(&broker, &upstream)
            .await;
        let mut device = broker.device("d1").await;
        upstream.answers("POST", &path("d1"), 201, json!({})).await;
        for count in 1..=50 {
            device.send("telemetry", json!({"n": count})).await;
        }
        gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["delivered"], 50).await;
        gateway.logs(said).await;
        assert!(said.is_empty() || gateway.log().contains("spans are lost"), "{}", gateway.log());
        let began = tokio::time::Instant::now();
        assert_eq!(gateway.stop().await.code(), Some(0), "{}", gateway.log());
        // The grace is 25 s, and an exchange may take 10 s.
        assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn without_traces_nothing_changes() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let collector = Collector::start().await;
    // A variable of the environment alone turns nothing on.
    let gateway = Options::default()
        .variable("OTEL_EXPORTER_OTLP_ENDPOINT", &collector.server.url())
        .start(&broker, &upstream)
        .await;
    let mut device = broker.device("d1").await;
    upstream.answers("POST", &path("d1"), 201, json!({})).await;
    let mut message = device.message("telemetry", "{}");
    message.props.response_topic = Some(device.topic("answers"));
    let parent = format!("00-{TRACE}-{PARENT}-01");
    message.props.user.push(("traceparent".to_owned(), parent));
    device.publish(message).await;
    let reply = device.on("v1/device/d1/answers").await;
    assert!(reply.props.user.iter().all(|(name, _)| name != "traceparent"), "{reply:?}");
    let requests = upstream.requests().await;
    assert!(requests.iter().all(|request| !request.headers.contains_key("traceparent")));
    assert_eq!(collector.spans(gateway).await.0, []);
}

#[tokio::test]
async fn no_key_and_no_secret_is_exported_and_the_standard_variables_hold() {
    const SECRETS: [&str; 3] = ["RECOGNISABLE-KEY", "RECOGNISABLE-PATH", "RECOGNISABLE-HEADER"];
    let collector = Collector::start().await;
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let table = "[upstream]\nheaders = { X-Own = \"{$header}\" }\n[[route]]\nname = \"r\"\n\
                 on = \"v1/device/{device_id}/r\"\ncall = \"POST /{$path}/{$key}?q={$path}\"\n";
    let gateway = collector
        .options()
        .config(table)
        .set("SECRETS_PATH", SECRETS[1])
        .set("SECRETS_HEADER", SECRETS[2])
        .variable("OTEL_SERVICE_NAME", "plant-7")
        .variable("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
        .variable("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=seven")
        .start(&broker, &upstream)
        .await;
    let mut device = broker.device("d1").await;
    let everything = json!({"key": SECRETS[0], "path": SECRETS[1]});
    upstream.responds_to(wiremock::matchers::any(), 422, everything).await;
    let mut message = device.message("r", format!("{{\"key\": \"{}\"}}", SECRETS[0]));
    for (name, value) in &mut message.props.user {
        if name == "access_key" {
            SECRETS[0].clone_into(value);
        }
    }
    device.publish(message).await;
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["rejected"], 1).await;
    let asked = upstream.requests().await;
    assert!(asked.iter().all(|r| r.url.as_str().contains(SECRETS[0])), "the key was used");
    let spans = collector.spans(gateway).await;
    let attempt = spans.only("POST r");
    assert!(value(&attempt.attributes, "url.full").ends_with("/<path>/<key>?q=<path>"));
    for request in collector.server.requests().await {
        let text = String::from_utf8_lossy(&request.body).into_owned();
        for secret in SECRETS {
            assert!(!text.contains(secret), "{secret} is exported");
        }
        assert_eq!(request.headers["x-tenant"], "seven");
    }
    for request in collector.requests().await {
        let resource = request.resource_spans[0].resource.as_ref().unwrap();
        assert_eq!(value(&resource.attributes, "service.name"), "plant-7");
        assert_eq!(value(&resource.attributes, "deployment.environment.name"), "test");
        assert_eq!(value(&resource.attributes, "service.version"), env!("CARGO_PKG_VERSION"));
    }
}
