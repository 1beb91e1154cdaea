//! What crossed, and how it is told.

use std::{
    fmt::{self, Display, Write as _},
    io::{self, Write as _},
};

/// Width of the column that says who does what.
const WHO: usize = 16;
/// Width of the column of topics and requests.
const WHERE: usize = 42;
/// Width of the column of payloads; longer ones go on in the next line.
const WHAT: usize = 56;
/// No payload takes more lines.
const LINES: usize = 5;

/// Something that was seen to happen outside the gateway.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// The API answered a request.
    Exchange(Exchange),
    /// A device received a message.
    Arrival(Arrival),
    /// The operator received a dead letter.
    DeadLetter(Arrival),
}

/// A request to the API and its answer.
#[derive(Debug, Clone)]
pub(crate) struct Exchange {
    /// The device in the path.
    pub device: String,
    /// HTTP method.
    pub method: String,
    /// Path.
    pub path: String,
    /// Body of the request.
    pub body: String,
    /// Status of the answer.
    pub status: u16,
    /// Body of the answer.
    pub answer: String,
}

/// A message that reached a subscriber.
#[derive(Debug, Clone)]
pub(crate) struct Arrival {
    /// The device it is for.
    pub device: String,
    /// Topic Name.
    pub topic: String,
    /// Its payload.
    pub payload: String,
    /// Whether the gateway has published it.
    pub by_gateway: bool,
    /// The user property `status`: replies have it, pushes do not.
    pub status: Option<String>,
    /// Response Topic.
    pub response_topic: Option<String>,
    /// Correlation Data.
    pub correlation: Option<String>,
}

impl Event {
    /// The device it is about.
    pub(crate) fn device(&self) -> &str {
        match self {
            Self::Exchange(exchange) => &exchange.device,
            Self::Arrival(arrival) | Self::DeadLetter(arrival) => &arrival.device,
        }
    }

    /// Tells it in full, as lines of a block. `said` is what the device published before: a body
    /// that is just that need not be shown again.
    pub(crate) fn block(&self, said: &str) -> String {
        match self {
            Self::Exchange(exchange) => {
                let Exchange { method, path, body, status, answer, .. } = exchange;
                let mut text = line(
                    "gateway calls",
                    &format!("{method} {path}"),
                    &format!("-> {status} {answer}"),
                );
                if !body.is_empty() && body != said {
                    text += &line("", "  with this body instead:", body);
                }
                text
            }
            Self::Arrival(arrival) => {
                let Arrival { topic, payload, by_gateway, status, .. } = arrival;
                let who = match (by_gateway, status) {
                    (false, _) => "somebody says",
                    (true, None) => "gateway pushes",
                    (true, Some(_)) => "gateway replies",
                };
                let mut text = line(who, topic, payload);
                for (name, value) in [
                    ("Response Topic", &arrival.response_topic),
                    ("Correlation Data", &arrival.correlation),
                ] {
                    if let Some(value) = value {
                        text += &line("", "", &format!("{name}: {value}"));
                    }
                }
                text
            }
            Self::DeadLetter(arrival) => line("a dead letter", &arrival.topic, &arrival.payload),
        }
    }
}

/// Tells it in short, as a link of a chain.
impl Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exchange(Exchange { method, path, status, .. }) => {
                write!(f, "{method} {path} -> {status}")
            }
            Self::Arrival(Arrival { topic, by_gateway: true, .. }) => f.write_str(topic),
            Self::Arrival(Arrival { topic, .. }) => write!(f, "(by hand) {topic}"),
            Self::DeadLetter(Arrival { topic, .. }) => write!(f, "(dead letter) {topic}"),
        }
    }
}

/// One line of a block; more if the payload is long.
pub(crate) fn line(who: &str, place: &str, what: &str) -> String {
    let mut text = String::new();
    let mut wrapped = wrap(what).into_iter();
    let first = wrapped.next().unwrap_or_default();
    let mut add = |who: &str, place: &str, what: &str| {
        let line = format!("  {who:WHO$}{place:WHERE$} {what}");
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{}", line.trim_end());
    };
    add(who, place, &first);
    for rest in wrapped {
        add("", "", &format!("   {rest}"));
    }
    text
}

/// Breaks a text after commas and spaces, as a reader of JSON would.
fn wrap(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for piece in text.split_inclusive([',', ' ']) {
        let full = lines.last().is_some_and(|line| line.len() + piece.len() > WHAT);
        if full && lines.len() == LINES {
            lines.push("...".to_owned());
            break;
        }
        if full {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            line.push_str(piece);
        }
    }
    lines
}

/// Prints. A reader who went away, `head` for example, is no reason to fail.
pub(crate) fn tell(text: impl Display) {
    let _ = writeln!(io::stdout(), "{text}");
}
