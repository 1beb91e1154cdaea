//! A real Prometheus with the shipped configuration, rules and dashboard: it can read what a gateway says, every query
//! finds its series, and alerts fire on the first event.

use std::{collections::BTreeSet, fs, process::Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    io::AsyncWriteExt,
    process::{Child, Command},
};

use crate::{
    harness::{Gateway, eventually, free_port},
    metrics::{Everything, text},
};

const RULES: &str = "deploy/prometheus/mqtt-rest-gateway.rules.yml";
const RULE_TESTS: &str = "deploy/prometheus/mqtt-rest-gateway.test.yml";

/// A Prometheus that scrapes one gateway and has the shipped rules.
struct Prometheus {
    url: String,
    _process: Child,
    _folder: TempDir,
}

impl Prometheus {
    async fn start(gateway: &Gateway) -> Self {
        let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
        let config = text("deploy/prometheus/prometheus.yml");
        assert!(config.contains("127.0.0.1:9180") && config.contains("interval: 15s"));
        let config = config.replace("127.0.0.1:9180", gateway.admin());
        let config = config.replace("interval: 15s", "interval: 1s");
        let file = folder.path().join("prometheus.yml");
        fs::write(&file, config).unwrap();
        fs::write(folder.path().join("mqtt-rest-gateway.rules.yml"), text(RULES)).unwrap();
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", folder.path().join("data").display()))
            .arg(format!("--web.listen-address=127.0.0.1:{port}"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let url = format!("http://127.0.0.1:{port}");
        let prometheus = Self { url, _process: process, _folder: folder };
        prometheus.finds("up == 1").await;
        prometheus
    }

    /// The lines of an answer, or what is wrong with the query.
    async fn query(&self, query: &str) -> Result<String, String> {
        let mut command = Command::new("promtool");
        let output = command.args(["query", "instant", &self.url, query]).output().await.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().trim().to_owned();
        if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
    }

    /// Waits until a query has a result.
    async fn finds(&self, query: &str) {
        eventually(query, || async {
            self.query(query).await.ok().filter(|found| !found.is_empty()).map(drop)
        })
        .await;
    }
}

/// What `promtool` with these arguments says; it has to be content.
async fn promtool(arguments: &[&str], input: &str) -> String {
    let mut command = Command::new("promtool");
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut process = command.spawn().unwrap();
    process.stdin.take().unwrap().write_all(input.as_bytes()).await.unwrap();
    let output = process.wait_with_output().await.unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(output.status.success(), "{arguments:?}: {said}");
    said
}

/// The queries of the rules.
fn queries_of_rules() -> Vec<String> {
    let rules = text(RULES);
    let queries = rules.lines().filter_map(|line| line.trim().strip_prefix("expr: '"));
    queries.map(|query| query.strip_suffix('\'').unwrap().replace("''", "'")).collect()
}

/// The queries of the dashboard, with Grafana's variables filled in.
fn queries_of_dashboard() -> Vec<String> {
    fn collect(value: &Value, queries: &mut Vec<String>) {
        match value {
            Value::Array(items) => items.iter().for_each(|item| collect(item, queries)),
            Value::Object(members) => {
                queries.extend(members.get("expr").and_then(Value::as_str).map(str::to_owned));
                members.values().for_each(|member| collect(member, queries));
            }
            _ => {}
        }
    }
    let dashboard: Value = serde_json::from_str(&text("deploy/grafana/dashboard.json")).unwrap();
    let mut queries = Vec::new();
    collect(&dashboard, &mut queries);
    let fill = |query: String| {
        let query = query.replace("$__rate_interval", "1m");
        query.replace("$job", ".*").replace("$instance", ".*")
    };
    queries.into_iter().map(fill).collect()
}

/// The series that a query reads: names of metrics, with the braces behind them.
fn selectors(query: &str) -> BTreeSet<String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found = BTreeSet::new();
    for (at, _) in query.char_indices() {
        let (before, rest) = query.split_at(at);
        let begins = ["mqtt_rest_gateway_", "process_", "up{"].iter().any(|p| rest.starts_with(p));
        if !begins || before.ends_with(is_name) {
            continue;
        }
        let (name, behind) = rest.split_at(rest.find(|c| !is_name(c)).unwrap_or(rest.len()));
        let braces = behind.strip_prefix('{').and_then(|inner| inner.split_once('}'));
        let braces = braces.map(|(inner, _)| format!("{{{inner}}}")).unwrap_or_default();
        found.insert(format!("{name}{braces}"));
    }
    found
}

#[test]
fn the_series_that_a_query_reads_are_found() {
    let query =
        r#"sum by (a) (rate(mqtt_rest_gateway_x_total{b="c"}[1m])) / process_y > up{d="e"}"#;
    let found = selectors(query).into_iter().collect::<Vec<_>>();
    assert_eq!(found, [r#"mqtt_rest_gateway_x_total{b="c"}"#, "process_y", r#"up{d="e"}"#]);
}

#[tokio::test]
async fn promtool_has_no_complaint_about_what_a_gateway_says() {
    let Everything { gateway, .. } = &Everything::start().await;
    let (_, text) = gateway.get("/metrics").await;
    assert_eq!(promtool(&["check", "metrics"], &text).await, "");
}

#[tokio::test]
async fn every_alert_fires_in_the_tests_of_the_rules() {
    promtool(&["check", "config", "deploy/prometheus/prometheus.yml"], "").await;
    promtool(&["test", "rules", RULE_TESTS], "").await;
    let (rules, tests) = (text(RULES), text(RULE_TESTS));
    let names = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: "));
    let mut count = 0;
    for name in names {
        assert!(tests.contains(&format!("alertname=\"{name}\"")), "{name} is not tested");
        count += 1;
    }
    assert_eq!(count, queries_of_rules().len(), "each alert has a query");
    assert!(count > 20, "{count} alerts");
}

#[tokio::test]
async fn every_query_of_rules_and_dashboard_finds_its_series() {
    let Everything { gateway, .. } = &Everything::start().await;
    let prometheus = Prometheus::start(gateway).await;
    let queries = [queries_of_rules(), queries_of_dashboard()].concat();
    assert!(queries.len() > 60, "{} queries", queries.len());
    let mut series = BTreeSet::new();
    for query in &queries {
        prometheus.query(query).await.unwrap_or_else(|error| panic!("{query}: {error}"));
        let read = selectors(query);
        assert!(!read.is_empty() || query.contains("ALERTS"), "{query} reads nothing");
        series.extend(read);
    }
    for selector in &series {
        let found = prometheus.query(selector).await.unwrap();
        assert!(!found.is_empty(), "no series of the gateway matches {selector}");
    }
}

#[tokio::test]
async fn the_first_message_that_fails_raises_its_alerts() {
    let Everything { broker, upstream, gateway, .. } = &Everything::start().await;
    let prometheus = Prometheus::start(gateway).await;
    prometheus.finds("mqtt_rest_gateway_dead_letters_total == 0").await;
    assert_eq!(prometheus.query("ALERTS").await, Ok(String::new()));
    upstream.answers("POST", "/v1/devices/d1/config", 422, json!({})).await;
    broker.device("d1").await.send("config/update", json!({})).await;
    for alert in ["GatewayMessagesFailed", "GatewayDeadLettersLost"] {
        prometheus.finds(&format!("ALERTS{{alertname=\"{alert}\",alertstate=\"firing\"}}")).await;
    }
}
