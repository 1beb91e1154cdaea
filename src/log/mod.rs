//! The log: `tracing` to standard error, as text or as JSON lines.
//!
//! A line may contain text from a device. So its characters are escaped that would begin another line or control a
//! terminal, and lines that repeat are summed up.

#[cfg(test)]
pub(crate) mod fixtures;
pub(crate) mod printable;
mod repeats;

use std::{
    fmt::{Debug, Write as _},
    io::{self, IsTerminal, Write},
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;
use tracing::{
    Event, Level, Metadata,
    field::{Field, Visit},
    level_filters::LevelFilter,
};
use tracing_subscriber::{
    EnvFilter, Layer,
    field::MakeExt,
    filter::FilterExt,
    fmt::{self, format::debug_fn},
    layer::{Context, Filter, SubscriberExt},
    registry::Registry,
    util::SubscriberInitExt,
};

use self::repeats::{Kind, Repeats};

/// How often summaries of repeated lines are looked for.
const SUMMARY_CHECK: Duration = Duration::from_secs(5);
/// How many bytes of a value are compared to tell kinds of lines apart.
const MAX_COMPARED: usize = 100;
/// The names of levels.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
/// The target of the gateway's own lines begins with this.
const OWN: &str = env!("CARGO_CRATE_NAME");

/// What the configuration says about logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// A level or filter directives: `info`, or `warn,mqtt_rest_gateway=debug`.
    pub level: String,
    /// JSON lines instead of text.
    pub json: bool,
}

/// Reads a level, or directives separated by commas.
///
/// # Errors
/// A sentence that says what to write.
pub fn level(text: &str) -> Result<String, String> {
    let wanted = |why: &str| {
        Err(format!(
            "invalid log level `{text}`; write `info`, `debug` or directives such as `info,hyper=warn`{why}"
        ))
    };
    // Spaces are taken off here: tracing-subscriber finds the positions in the text without them and applies them to
    // the text with them. So it rejects `info, hyper=warn`, and panics on some directives that are not ASCII.
    let directives: Vec<_> = text.split(',').map(str::trim).collect();
    let is_level = |word: &str| word.parse::<LevelFilter>().is_ok();
    // tracing-subscriber would take any other word for the name of a target, and log that target alone.
    let bare = directives.iter().find(|word| !word.contains(['=', '[']) && !is_level(word));
    if let Some(word) = bare {
        return wanted(&nearest_level(word));
    }
    let level = directives.join(",");
    if let Err(error) = EnvFilter::try_new(&level) {
        return wanted(&format!(": {error}"));
    }
    let own = |word: &&str| is_level(word) || word.starts_with(OWN) || word.starts_with('[');
    if !directives.iter().any(own) {
        return wanted("; add a level for the gateway itself, or it would log nothing");
    }
    Ok(level)
}

fn nearest_level(word: &str) -> String {
    let word = word.to_lowercase();
    let synonym = match word.as_str() {
        "verbose" | "all" | "everything" | "finest" => Some("debug"),
        "notice" | "normal" | "default" => Some("info"),
        "critical" | "fatal" | "severe" | "alert" | "emerg" => Some("error"),
        "none" | "quiet" | "silent" | "disabled" | "false" => Some("off"),
        _ => None,
    };
    let prefix = LEVELS.iter().find(|level| word.starts_with(**level) || level.starts_with(&word));
    let similar = || {
        let likeness = |level: &&&str| strsim::jaro_winkler(level, &word);
        let nearest = LEVELS.iter().max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
        nearest.filter(|level| likeness(level) > 0.7)
    };
    match synonym.or(prefix.copied()).or_else(|| similar().copied()) {
        Some(level) => format!("; do you mean `{level}`?"),
        None => String::new(),
    }
}

/// Sends this process's logs to standard error. Only the first call has an effect.
pub fn install(settings: &Settings) {
    let lines = lines(settings, io::stderr().is_terminal(), io::stderr);
    // It fails only where a subscriber is installed already, by a test for example.
    let _ = Registry::default().with(lines).try_init();
}

/// The lines of a log: which of them are written, and in which form.
fn lines<W, F>(settings: &Settings, ansi: bool, to: F) -> Box<dyn Layer<Registry> + Send + Sync>
where
    W: Write,
    F: Fn() -> W + Send + Sync + 'static,
{
    let filter = EnvFilter::try_new(&settings.level).unwrap_or_else(|_| EnvFilter::new("info"));
    let filter = filter.and(WithoutRepeats);
    if settings.json {
        let layer = fmt::layer().json().flatten_event(true).with_writer(move || EscapeJson(to()));
        layer.with_filter(filter).boxed()
    } else {
        let layer = fmt::layer()
            .fmt_fields(debug_fn(write_field).delimited(" "))
            .with_writer(to)
            .with_ansi(ansi);
        layer.with_filter(filter).boxed()
    }
}

/// A time as a number for a field whose name ends with `_seconds`, to the millisecond.
pub(crate) fn seconds(time: Duration) -> f64 {
    // Exact up to 285,000 years.
    #[expect(clippy::cast_precision_loss, reason = "as said above")]
    let milliseconds = time.as_millis() as f64;
    milliseconds / 1000.0
}

/// Writes the summaries of repeated lines, until its task is aborted.
pub async fn write_summaries() {
    loop {
        tokio::time::sleep(SUMMARY_CHECK).await;
        let summaries = repeats().summaries(Instant::now());
        for summary in summaries {
            let Kind { text, row, reason, .. } = &summary.kind;
            let more = summary.more;
            tracing::warn!(target: SUMMARY, of = text, route = row, reason, more, "and more like this");
        }
    }
}

/// The target of lines that sum up others.
const SUMMARY: &str = concat!(env!("CARGO_CRATE_NAME"), "::repeats");

static REPEATS: LazyLock<Mutex<Repeats>> = LazyLock::new(Mutex::default);

fn repeats() -> MutexGuard<'static, Repeats> {
    REPEATS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets the lines through that [`Repeats`] admits. Lines at `debug` and `trace` all pass: whoever sets such a level wants
/// every one.
struct WithoutRepeats;

impl<S> Filter<S> for WithoutRepeats {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if *metadata.level() > Level::INFO || metadata.target() == SUMMARY {
            return true;
        }
        let mut kind = Kind { place: metadata.name(), ..Kind::default() };
        event.record(&mut KindOf(&mut kind));
        repeats().admit(kind, Instant::now())
    }
}

/// Fills in a kind from the fields of a line.
struct KindOf<'k>(&'k mut Kind);

impl KindOf<'_> {
    fn part(&mut self, field: &Field) -> Option<&mut String> {
        match field.name() {
            "message" => Some(&mut self.0.text),
            "route" | "fetch" | "row" => Some(&mut self.0.row),
            "reason" => Some(&mut self.0.reason),
            _ => None,
        }
    }
}

impl Visit for KindOf<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if let Some(part) = self.part(field) {
            *part = printable::short_line(value, MAX_COMPARED);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if self.part(field).is_some() {
            self.record_str(field, &format!("{value:?}"));
        }
    }
}

/// Writes a field of a line in text form. `Debug` quotes and escapes a value that is a string; in every other value, and
/// in the message, the characters that are not printable are escaped here.
fn write_field(
    writer: &mut fmt::format::Writer<'_>,
    field: &Field,
    value: &dyn Debug,
) -> std::fmt::Result {
    if field.name() != "message" {
        write!(writer, "{}=", field.name())?;
    }
    printable::write_debug(writer, value)
}

/// Writes JSON lines and escapes the characters that JSON allows in strings although they control a terminal. Outside of
/// strings JSON has none of them.
struct EscapeJson<W>(W);

impl<W: Write> Write for EscapeJson<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        let mut escaped = String::with_capacity(text.len());
        for letter in text.chars() {
            if letter == '\n' || printable::is_printable(letter) {
                escaped.push(letter);
            } else {
                // Writing into a string cannot fail.
                let _ = write!(escaped, "\\u{:04x}", u32::from(letter));
            }
        }
        // A whole line at once, so that lines of two threads do not mix.
        self.0.write_all(escaped.as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::{fixtures::Page, *};

    #[test]
    fn spaces_around_directives_mean_nothing() {
        assert_eq!(level(" info , hyper=warn"), Ok("info,hyper=warn".to_owned()));
        assert_eq!(level("off, \u{fc}=debug"), Ok("off,\u{fc}=debug".to_owned()));
        assert!(level(" ü=+=9").is_err());
    }

    #[test]
    fn a_word_that_is_no_level_silences_nobody() {
        for (word, nearest) in [
            ("verbose", "debug"),
            ("warning", "warn"),
            ("inf", "info"),
            ("INFORMATION", "info"),
            ("err", "error"),
            ("critical", "error"),
            ("debgu", "debug"),
            ("tarce", "trace"),
            ("none", "off"),
            ("info,hyper,warning", ""),
        ] {
            let mistake = level(word).unwrap_err();
            let hint = format!("do you mean `{nearest}`?");
            assert!(nearest.is_empty() || mistake.ends_with(&hint), "{word}: {mistake}");
        }
        assert!(level("hyper=debug").unwrap_err().contains("would log nothing"));
        for right in
            ["info", "WARN", "off", "warn,mqtt_rest_gateway=debug", "mqtt_rest_gateway=info"]
        {
            assert!(level(right).is_ok(), "{right}");
        }
    }

    #[test]
    fn numbers_are_numbers_and_text_is_quoted_once() {
        let page = Page::open();
        {
            let (device, present, of) = ("say \"hi\"", true, Some(3_u32));
            let lasted_seconds = seconds(Duration::from_micros(1_200_400));
            let attempts: Option<u32> = None;
            tracing::warn!(device, present, of, attempts, lasted_seconds, "values");
        }
        let lines = page.lines();
        let [line] = &*lines else { panic!("{lines:?}") };
        assert_eq!(line["device"], "say \"hi\"");
        assert_eq!(line["present"], true);
        assert_eq!(line["of"], 3);
        assert_eq!(line["lasted_seconds"], 1.2);
        assert_eq!(line.get("attempts"), None, "what is not there is left out");
        assert_eq!(line["message"], "values");
    }

    #[test]
    fn each_row_and_reason_is_limited_by_itself() {
        let page = Page::open();
        for _ in 0..50 {
            for route in ["a", "b"] {
                for reason in ["deadline", "bad_payload"] {
                    tracing::warn!(route, reason, "not delivered, of a test");
                }
            }
            tracing::info!(route = "a", "another place, of a test");
        }
        let lines = page.lines();
        for (route, reason) in
            [("a", "deadline"), ("a", "bad_payload"), ("b", "deadline"), ("b", "bad_payload")]
        {
            let same =
                lines.iter().filter(|line| line["route"] == route && line["reason"] == reason);
            assert_eq!(same.count(), 10, "{route} {reason}");
        }
        assert_eq!(lines.len(), 50, "ten each of five kinds");
    }

    #[test]
    fn json_stays_json_and_does_nothing_to_a_terminal() {
        let mut out = Vec::new();
        let text = "a\u{9b}2J\u{202e}\u{7f}ü";
        let line = format!("{}\n", serde_json::json!({ "topic": text }));
        EscapeJson(&mut out).write_all(line.as_bytes()).unwrap();
        let out = String::from_utf8(out).unwrap();
        assert_eq!(out, "{\"topic\":\"a\\u009b2J\\u202e\\u007fü\"}\n");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&out).unwrap()["topic"], text);
    }
}
