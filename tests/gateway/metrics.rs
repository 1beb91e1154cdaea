//! What Prometheus gets: every series that can be known is there from the start, in both formats, and the page about
//! them is right.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::SystemTime,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use wiremock::ResponseTemplate;

use crate::{
    batch::shipped_with_batch,
    certificates::Certificates,
    harness::{Broker, Gateway, Options, Upstream, free_port, while_it_moves},
};

pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0";

pub fn text(file: &str) -> String {
    fs::read_to_string(format!("{}/{file}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// A gateway that has whatever brings a metric with it.
pub struct Everything {
    pub broker: Broker,
    pub upstream: Upstream,
    pub gateway: Gateway,
    _certificates: Certificates,
    _folder: TempDir,
}

impl Everything {
    pub async fn start() -> Self {
        let (folder, certificates, port) =
            (tempfile::tempdir().unwrap(), Certificates::new(), free_port());
        let broker = Broker::configured(&certificates.listener("127.0.0.1", port, "")).await;
        let upstream = Upstream::start().await;
        let file = folder.path().join("token");
        fs::write(&file, "a-token").unwrap();
        let header = "[upstream]\nheaders = { X-Gateway = \"Token {$token}\" }\n";
        let gateway = Options::default()
            .config(&shipped_with_batch().replacen("[upstream]\n", header, 1))
            .set("SECRETS_TOKEN_FILE", file.to_str().unwrap())
            .set("BROKER_CA_FILE", &certificates.path("ca.pem"))
            .set("BROKER_URL", &format!("mqtts://127.0.0.1:{port}"))
            .set("UPSTREAM_URL", &upstream.url())
            .spawn()
            .await;
        gateway.ready().await;
        Self { broker, upstream, gateway, _certificates: certificates, _folder: folder }
    }
}

/// The samples of a text, without their values: name and labels.
fn samples(text: &str) -> BTreeSet<&str> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.rsplit_once(' ').unwrap().0)
        .collect()
}

/// Words of the tables in the code: arms such as `=> ("word", 404)` and `=> row("word", ..)`.
fn words() -> Vec<String> {
    let sources =
        ["src/exchange/outcome.rs", "src/table/refusal.rs", "src/failure.rs"].map(text).concat();
    let arms = sources.lines().filter_map(|line| {
        let arm = line.split_once("=> ")?.1;
        let row = arm.strip_prefix("row").unwrap_or(arm).strip_prefix("(\"")?;
        Some(row.split_once('"')?.0.to_owned())
    });
    arms.collect()
}

#[tokio::test]
async fn every_series_that_is_known_begins_at_0() {
    let Everything { gateway, .. } = &Everything::start().await;
    let (_, text) = gateway.get("/metrics").await;
    let (_, table) = gateway.get("/routes").await;
    let table: Value = serde_json::from_str(&table).unwrap();
    let names = |list: &str| -> Vec<String> {
        let rows = table[list].as_array().unwrap().iter();
        rows.map(|row| row["name"].as_str().unwrap().to_owned()).collect()
    };
    let mut expected = Vec::new();
    let (routes, fetches) = (names("routes"), names("fetches"));
    assert!(routes.len() == 12 && fetches.len() > 5, "{table:#}");
    let words = words();
    assert!(words.len() > 20, "{words:?}");
    for route in routes.iter().map(String::as_str).chain(["none"]) {
        expected.push(format!("messages_received_total{{route=\"{route}\"}} 0"));
        for name in ["message", "acknowledgement"] {
            expected.push(format!("{name}_duration_seconds_count{{route=\"{route}\"}} 0"));
        }
        expected.push(format!("filter_errors_total{{route=\"{route}\"}} 0"));
        for word in &words {
            expected
                .push(format!("messages_settled_total{{route=\"{route}\",outcome=\"{word}\"}} 0"));
        }
        let labels = format!("route=\"{route}\",reason=\"rejected\",kept=\"no\"");
        expected.push(format!("dead_letters_total{{{labels}}} 0"));
    }
    for fetch in &fetches {
        expected.push(format!("filter_errors_total{{route=\"{fetch}\"}} 0"));
        for outcome in ["pushed", "repeated", "empty", "failed"] {
            expected.push(format!("fetches_total{{fetch=\"{fetch}\",outcome=\"{outcome}\"}} 0"));
        }
    }
    for line in [
        r#"attempts_total{route="telemetry",status="unreachable"} 0"#,
        r#"attempts_total{route="config",status="timeout"} 0"#,
        r#"call_duration_seconds_count{route="telemetry"} 0"#,
        r#"retries_total{route="config"} 0"#,
        r#"throttled_seconds_total{route="telemetry"} 0.0"#,
        r#"request_bytes_total{route="telemetry"} 0"#,
        r#"batch_calls_count{route="telemetry"} 0"#,
        r#"publishes_refused_total{reason="poison"} 0"#,
        r#"secret_errors_total{secret="token"} 0"#,
        r#"broker_connection_failures_total{reason="refused"} 0"#,
        "upstream_outages_total 0",
        "broker_sessions_lost_total 0",
    ] {
        expected.push(line.to_owned());
    }
    for line in expected {
        let line = format!("mqtt_rest_gateway_{line}");
        assert!(text.lines().any(|found| found == line), "{line} is not in:\n{text}");
    }
}

#[tokio::test]
async fn what_was_sent_is_in_the_figures() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let gateway = Gateway::start(&broker, &upstream).await;
    let mut device = broker.device("d1").await;
    let path = "/v1/devices/d1/telemetry";
    upstream.answers("POST", path, 200, json!({})).await;
    upstream.responds_times("POST", path, 1, ResponseTemplate::new(503)).await;
    device.ask("telemetry", json!({})).await;
    gateway.settles().await;
    let metric = async |name: &str| {
        gateway.metric(&format!("mqtt_rest_gateway_{name}"), &["telemetry"]).await
    };
    assert_eq!(metric("retries_total").await, 1);
    assert_eq!(metric("call_duration_seconds_count").await, 2);
    assert_eq!(metric("message_duration_seconds_count").await, 1);
    assert_eq!(metric("request_bytes_total").await, 4);
    assert_eq!(metric("answer_bytes_total").await, 2);
    let gauge = async |name: &str| gateway.metric(name, &[]).await;
    assert_eq!(gauge("mqtt_rest_gateway_devices_known").await, 1);
    assert_eq!(gauge("mqtt_rest_gateway_messages_pending_limit").await, 20, "mosquitto's own");
    let resident = gauge("process_resident_memory_bytes").await;
    assert!((1 << 20..1 << 30).contains(&resident), "{resident}");
    assert!(gauge("process_open_fds").await < gauge("process_max_fds").await);
}

#[tokio::test]
async fn what_is_held_is_seen_while_it_is_held() {
    let (mut broker, upstream) = (Broker::start().await, Upstream::start().await);
    let gateway = Gateway::start(&broker, &upstream).await;
    let path = "/v1/devices/d1/telemetry";
    let hangs = ResponseTemplate::new(200).set_delay(std::time::Duration::from_hours(1));
    upstream.responds("POST", path, hangs).await;
    broker.device("d1").await.send("telemetry", json!({})).await;
    upstream.arrived(&format!("POST {path}"), 1).await;
    assert_eq!(gateway.metric("mqtt_rest_gateway_calls_in_flight", &[]).await, 1);
    assert!(gateway.metric("mqtt_rest_gateway_messages_pending_bytes", &[]).await > 0);
    let seconds = async |name: &str| -> f64 {
        let name = format!("mqtt_rest_gateway_{name} ");
        let (_, text) = gateway.get("/metrics").await;
        let line = text.lines().find(|line| line.starts_with(&name)).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    broker.stop().await;
    for name in ["oldest_pending_seconds", "broker_disconnected_seconds_total"] {
        let before = seconds(name).await;
        while_it_moves(&format!("{name} grows"), || async {
            let now = seconds(name).await;
            if now > before { Ok(()) } else { Err(0) }
        })
        .await;
    }
    gateway
        .metric_reaches("mqtt_rest_gateway_broker_connection_failures_total", &["unreachable"], 1)
        .await;
    assert!(seconds("busy_seconds_total").await > 0.0);
}

#[tokio::test]
async fn both_formats_have_the_same_samples_and_no_device() {
    let Everything { broker, upstream, gateway, .. } = &Everything::start().await;
    let mut device = broker.device("d1").await;
    let answer = json!({"command": true});
    upstream.answers("POST", "/v1/devices/telemetries", 200, json!({ "d1": answer })).await;
    device.ask("telemetry", json!({})).await;
    gateway.settles().await;
    let (plain_kind, plain) = gateway.get_as("/metrics", "*/*").await;
    let (open_kind, open) = gateway.get_as("/metrics", OPENMETRICS).await;
    assert!(plain_kind.starts_with("text/plain; version=0.0.4"), "{plain_kind}");
    assert!(open_kind.starts_with("application/openmetrics-text; version=1.0.0"), "{open_kind}");
    assert_eq!(samples(&plain), samples(&open));
    assert!(open.ends_with("# EOF\n") && !plain.contains("# EOF"));
    let unit = "# UNIT mqtt_rest_gateway_last_settled_timestamp_seconds seconds\n";
    assert!(open.contains(unit) && !plain.contains("# UNIT"));
    let settled = "\nmqtt_rest_gateway_last_settled_timestamp_seconds ";
    let settled: f64 =
        plain.split_once(settled).unwrap().1.lines().next().unwrap().parse().unwrap();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64();
    assert!(settled > now - 600.0 && settled <= now, "{settled}, and it is {now}");
    assert!(!open.contains("d1"), "never a device");
}

/// What a text says of each metric: its type and its labels.
fn described(text: &str) -> BTreeMap<String, (String, BTreeSet<String>)> {
    let mut metrics = BTreeMap::new();
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    for (name, kind) in types {
        metrics.insert(name.to_owned(), (kind.to_owned(), BTreeSet::new()));
    }
    for sample in samples(text) {
        let (name, labels) = sample.split_once('{').unwrap_or((sample, ""));
        let parts = ["_bucket", "_sum", "_count"];
        let family = parts.iter().find_map(|part| name.strip_suffix(part));
        let family = family.filter(|family| metrics.contains_key(*family)).unwrap_or(name);
        let labels = labels.trim_end_matches('}').split(',').filter_map(|l| l.split_once('='));
        let labels = labels.map(|(label, _)| label.to_owned()).filter(|label| label != "le");
        metrics.get_mut(family).unwrap_or_else(|| panic!("{sample} has no type")).1.extend(labels);
    }
    metrics
}

#[tokio::test]
async fn the_page_names_every_metric_with_its_type_and_labels() {
    let Everything { gateway, .. } = &Everything::start().await;
    let (_, text) = gateway.get("/metrics").await;
    let page = self::text("docs/metrics.md");
    let rows = page.lines().filter(|line| line.starts_with("| `")).map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let labels = cells[3].split(", ").map(|label| label.trim_matches('`').to_owned());
        let labels = labels.filter(|label| !label.is_empty()).collect();
        (cells[1].trim_matches('`').to_owned(), (cells[2].to_owned(), labels))
    });
    let page: BTreeMap<_, (String, BTreeSet<String>)> = rows.collect();
    let found = described(&text);
    for (name, found) in &found {
        assert_eq!(page.get(name), Some(found), "{name} in docs/metrics.md");
    }
    for name in page.keys() {
        assert!(found.contains_key(name), "docs/metrics.md names {name}, which is not exposed");
    }
}

#[tokio::test]
async fn the_end_of_a_certificate_follows_its_file() {
    const END: &str = "mqtt_rest_gateway_tls_certificate_not_after_seconds";
    let certificates = Certificates::new();
    let ends = |year| {
        let end = rcgen::date_time_ymd(year, 1, 1);
        let (certificate, key) = certificates.sign("client", |params| params.not_after = end);
        let files = [("client.pem".to_owned(), certificate), ("client.key".to_owned(), key)];
        certificates.change(&files);
    };
    ends(2026);
    let gateway = Options::default()
        .set("BROKER_URL", "mqtts://127.0.0.1:1")
        .set("BROKER_CA_FILE", &certificates.path("ca.pem"))
        .set("BROKER_CERT_FILE", &certificates.path("client.pem"))
        .set("BROKER_KEY_FILE", &certificates.path("client.key"))
        .spawn()
        .await;
    assert_eq!(gateway.metric(END, &["broker"]).await, 1_767_225_600);
    ends(2027);
    gateway.signal("HUP");
    gateway.metric_reaches(END, &["broker"], 1_798_761_600).await;
}

#[tokio::test]
async fn what_waits_for_a_rate_limit_is_counted() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let options = Options::default().set("UPSTREAM_RATE_TOTAL", "5/s");
    let gateway = options.start(&broker, &upstream).await;
    let mut device = broker.device("d1").await;
    upstream.answers("POST", "/v1/devices/d1/telemetry", 200, json!({})).await;
    for _ in 0..8 {
        device.send("telemetry", json!({})).await;
    }
    gateway.metric_is("mqtt_rest_gateway_messages_settled_total", &["delivered"], 8).await;
    let (_, text) = gateway.get("/metrics").await;
    let name = "mqtt_rest_gateway_throttled_seconds_total{route=\"telemetry\"} ";
    let seconds: f64 =
        text.lines().find_map(|line| line.strip_prefix(name)).unwrap().parse().unwrap();
    // Five may go at once, and three wait a fifth of a second each.
    assert!(seconds > 0.3, "{seconds}");
}
