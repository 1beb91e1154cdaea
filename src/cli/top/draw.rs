//! What `top` shows, as lines of text. What devices and the API say in it can do nothing to a terminal.

use url::Url;

use super::feed::{Failure, Row, Status};
use crate::log::printable;

/// How it is drawn.
pub(super) struct Style {
    /// With colours.
    pub(super) in_colour: bool,
    /// With rows that have nothing to show.
    pub(super) all_rows: bool,
}

/// Nothing but text.
pub(super) const PLAIN: Style = Style { in_colour: false, all_rows: true };

/// Select Graphic Rendition: bold, soft, red, green.
const BOLD: u8 = 1;
const SOFT: u8 = 2;
const RED: u8 = 31;
const GREEN: u8 = 32;

impl Style {
    /// The text, on one line, so that it does nothing but show.
    fn paint(&self, rendition: u8, text: &str) -> String {
        let text = printable::line(text);
        if self.in_colour { format!("\x1b[{rendition}m{text}\x1b[0m") } else { text }
    }
}

/// How a gateway stands. The failures come newest first.
pub(super) fn page<'f>(
    status: &Status,
    failures: impl Iterator<Item = &'f Failure>,
    url: &Url,
    style: &Style,
) -> Vec<String> {
    let mut lines = head(status, url, style);
    lines.push(String::new());
    lines.extend(rows(status, style));
    lines.push(String::new());
    let mut failures = failures.peekable();
    let title = if failures.peek().is_some() { "last failures" } else { "no message has failed" };
    lines.push(style.paint(BOLD, title));
    lines.extend(failures.flat_map(|failure| one(failure, style)));
    lines
}

/// What is drawn while there is nothing to show.
pub(super) fn no_answer(url: &Url, trouble: &str, style: &Style) -> Vec<String> {
    let trying = printable::line(&format!("{url} is asked again every second; Ctrl-C ends this"));
    vec![style.paint(RED, trouble), trying]
}

fn head(status: &Status, url: &Url, style: &Style) -> Vec<String> {
    let Status { version, up_seconds, broker, upstream, pending, total, .. } = status;
    let up = duration(*up_seconds);
    let mut lines =
        vec![style.paint(BOLD, &format!("mqtt-rest-gateway {version}  up for {up}  {url}"))];
    let ready = status.ready;
    lines.push(if ready { style.paint(GREEN, "ready") } else { style.paint(RED, "not ready") });
    for reason in &status.reasons {
        lines.push(style.paint(RED, &format!("  {}", reason.text)));
        if !reason.remedy.is_empty() {
            lines.push(format!("    {}", style.paint(SOFT, &reason.remedy)));
        }
    }
    lines.push(String::new());
    let connected = if broker.connected { "connected" } else { "not connected" };
    let since = duration(broker.since_seconds);
    lines.push(printable::line(&format!("broker     {connected} for {since}  {}", broker.address)));
    let down: Vec<_> = upstream
        .outages
        .iter()
        .map(|down| format!("{} for {}", down.row, duration(down.since_seconds)))
        .collect();
    let answers =
        if down.is_empty() { "answers".to_owned() } else { format!("down: {}", down.join(", ")) };
    lines.push(printable::line(&format!("API        {answers}  {}", upstream.url)));
    let (rate, failed) = (rate(total.per_second), total.failed);
    lines.push(format!("messages   {rate} a second, {} received, {failed} failed", total.messages));
    let oldest = pending
        .oldest_seconds
        .map_or(String::new(), |oldest| format!(", the oldest for {}", duration(whole(oldest))));
    lines.push(format!("under way  {} of {}{oldest}", pending.messages, pending.at_most));
    lines
}

fn rows(status: &Status, style: &Style) -> Vec<String> {
    let shown = |row: &&Row| style.all_rows || row.messages > 0;
    let name = status.rows.iter().filter(shown).map(|row| row.name.len()).max().unwrap_or(0);
    let name = name.max("row".len());
    let title = format!(
        "{:name$}  {:>8}  {:>10}  {:>9}  {:>9}  {:>9}  failed",
        "row", "a second", "messages", "under way", "API takes", "in all"
    );
    let mut lines = vec![style.paint(BOLD, &title)];
    for row in status.rows.iter().filter(shown) {
        let reasons: Vec<_> = row.reasons.iter().map(|(why, n)| format!("{why} {n}")).collect();
        let reasons =
            if reasons.is_empty() { String::new() } else { format!(" ({})", reasons.join(", ")) };
        let (rate, takes) = (rate(row.per_second), time(row.call_seconds));
        let in_all = time(row.message_seconds);
        lines.push(printable::line(&format!(
            "{:name$}  {rate:>8}  {:>10}  {:>9}  {takes:>9}  {in_all:>9}  {}{reasons}",
            row.name, row.messages, row.pending, row.failed
        )));
    }
    let idle = status.rows.iter().filter(|row| !shown(row)).count();
    if idle > 0 {
        lines.push(style.paint(SOFT, &format!("and {idle} rows without a message")));
    }
    lines
}

fn one(failure: &Failure, style: &Style) -> Vec<String> {
    let Failure { at, topic, route, reason, status, trouble, answer, remedy } = failure;
    let mut lines = vec![
        printable::line(&format!("{at}  {topic}  row {route}")),
        format!("  {}", style.paint(RED, &format!("{status} {reason}: {trouble}"))),
    ];
    if let Some(answer) = answer {
        lines.push(printable::line(&format!("  the API said: {answer}")));
    }
    lines.push(format!("  {}", style.paint(SOFT, &format!("to do: {remedy}"))));
    lines
}

fn rate(per_second: Option<f64>) -> String {
    per_second.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}"))
}

fn time(seconds: Option<f64>) -> String {
    let Some(seconds) = seconds else { return "-".to_owned() };
    if seconds < 10.0 { format!("{:.1} ms", seconds * 1000.0) } else { format!("{seconds:.1} s") }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "for people")]
fn whole(seconds: f64) -> u64 {
    seconds as u64
}

fn duration(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..172_800 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        172_800.. => format!("{} days", seconds / 86400),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status() -> Status {
        let status = json!({
            "version": "1", "up_seconds": 200, "ready": false,
            "reasons": [{"text": "broker: not\u{1b}[2J connected", "remedy": "see \u{9b}2J"}],
            "broker": {"address": "mqtt://b\n:1", "connected": false, "since_seconds": 5},
            "upstream": {"url": "http://u", "outages": [{"row": "up\u{1b}c", "since_seconds": 7200}]},
            "pending": {"messages": 3, "at_most": 20, "oldest_seconds": 61.5},
            "total": {"messages": 12, "failed": 2, "per_second": 1.25},
            "rows": [
                {"name": "up", "messages": 12, "pending": 3, "failed": 2,
                 "reasons": {"rejected": 2}, "per_second": 1.25, "call_seconds": 0.0123, "message_seconds": 12.5},
                {"name": "idle", "messages": 0, "pending": 0, "failed": 0, "reasons": {}},
            ],
            "failures": [{
                "at": "2026-01-02T03:04:05.678Z", "topic": "a/\u{1b}]0;owned\u{7}/b", "route": "up",
                "reason": "rejected", "status": 422, "trouble": "no\r\n\u{202e}", "answer": "\u{1b}[31m",
                "remedy": "see",
            }],
        });
        serde_json::from_value(status).unwrap()
    }

    #[test]
    fn everything_is_said_once_and_nothing_acts_on_a_terminal() {
        let (status, url) = (status(), Url::parse("http://127.0.0.1:9180").unwrap());
        let plain = page(&status, status.failures.iter(), &url, &PLAIN).join("\n");
        for text in [
            "mqtt-rest-gateway 1  up for 3 min",
            "not ready\n  broker: not\\u{1b}[2J connected\n    see \\u{9b}2J\n",
            "not connected for 5 s  mqtt://b\\n:1",
            "down: up\\u{1b}c for 2 h 0 min",
            "1.2 a second, 12 received, 2 failed",
            "3 of 20, the oldest for 1 min",
            "up         1.2          12          3    12.3 ms     12.5 s  2 (rejected 2)",
            "idle         -           0          0          -          -  0",
            "a/\\u{1b}]0;owned\\u{7}/b  row up",
            "422 rejected: no\\r\\n\\u{202e}",
            "the API said: \\u{1b}[31m",
        ] {
            assert!(plain.contains(text), "{text} is not in\n{plain}");
        }
        let colourful = Style { in_colour: true, all_rows: false };
        let lines = page(&status, status.failures.iter(), &url, &colourful);
        for line in lines {
            let mut bare = line;
            for rendition in [BOLD, SOFT, RED, GREEN, 0] {
                bare = bare.replace(&format!("\x1b[{rendition}m"), "");
            }
            assert!(bare.chars().all(printable::is_printable), "{bare:?}");
            assert!(!bare.starts_with("idle"), "{bare}");
        }
    }
}
