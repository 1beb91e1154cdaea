//! What the gateway would do with one message, in words: it is taken, prepared and answered by the code that runs.
//! Sends nothing and shows no key.

use std::{
    fmt::Write,
    fs,
    io::{self, Read},
    path::PathBuf,
    time::SystemTime,
};

use bytes::Bytes;
use clap::Args;
use tokio::time::Instant;

use crate::{
    call::{BatchForm, Call, Endpoint, Entries, Lifetime},
    config::Config,
    exchange::{self, Destinations, Outcome, push_topic},
    filter::Val,
    log::printable,
    message::{Message, Properties, VIA},
    secrets::Secret,
    table::{
        Ignored, Incoming, NotTaken, Taken,
        describe::{shown, then},
        refusal::Refusal,
        route::{Credentials, Route},
    },
    template::Template,
    upstream::{self, Auth},
};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Topic Name of the message.
    topic: String,
    /// File with the payload, `-` for standard input; without it the payload is empty.
    #[arg(long, value_name = "FILE")]
    payload: Option<PathBuf>,
    /// User property of the message; may be given more than once.
    #[arg(long, value_name = "K=V", value_parser = property)]
    property: Vec<(String, String)>,
    /// Response Topic of the message.
    #[arg(long, value_name = "TOPIC")]
    response_topic: Option<String>,
}

fn property(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').ok_or("missing `=`: write NAME=VALUE")?;
    Ok((pair.0.to_owned(), pair.1.to_owned()))
}

impl Arguments {
    /// The message that the arguments describe.
    ///
    /// # Errors
    /// A sentence when its payload cannot be read.
    pub(super) fn message(self) -> Result<Message, String> {
        let payload = match &self.payload {
            None => Vec::new(),
            Some(file) if file.as_os_str() == "-" => {
                let mut payload = Vec::new();
                io::stdin()
                    .read_to_end(&mut payload)
                    .map_err(|error| format!("standard input: {error}"))?;
                payload
            }
            Some(file) => fs::read(file).map_err(|error| format!("{}: {error}", file.display()))?,
        };
        Ok(Message {
            topic: self.topic,
            payload: Bytes::from(payload),
            properties: Properties {
                user: self.property.into_iter().collect(),
                response_topic: self.response_topic,
                ..Properties::default()
            },
            received_at: SystemTime::now(),
            trace: None,
            arrived: Instant::now(),
        })
    }
}

/// What would become of a message.
pub(super) struct Explained {
    /// In words.
    pub(super) text: String,
    /// Whether it would be refused.
    pub(super) is_refused: bool,
}

/// The request that a message would cause, or why it would be refused; and where the answers go.
pub(super) fn message(config: &Config, message: &Message) -> Explained {
    let table = &config.table;
    let (subscription, captures) = table.patterns.find(&message.topic).unzip();
    let captures = captures.unwrap_or_default();
    let sender = subscription.and_then(|row| table.patterns.sender(row, &captures));
    let device = sender.unwrap_or_default();
    let incoming = table.incoming(message, subscription, &captures, &device);
    // Which key would be remembered only a running gateway knows; it is not shown anyway.
    let taken = table.take(&incoming, || Some(Secret::new("<key>")));
    let request = taken.and_then(|taken| Ok(request(config, &taken)?));
    let outer = subscription.and_then(|row| table.route(table.patterns.outer(row)));
    let inside = outer.map_or(String::new(), |outer| format!(", which lies inside {}", outer.name));
    let route = incoming.route.map(|route| format!("route    {}{inside}\n", route.name));
    let route = route.unwrap_or_default();
    let (what, outcome) = match request {
        Ok(None) => {
            let text = format!(
                "{route}skipped  `when` is not true of it, as long as nothing is remembered\n"
            );
            return Explained { text, is_refused: false };
        }
        Ok(Some(request)) => (request, None),
        Err(NotTaken::Ignored(ignored)) => {
            let why = match ignored {
                Ignored::Loop => format!("it carries `{VIA}`: a gateway published it"),
                Ignored::NotARequest if incoming.route.is_none_or(Route::swallows) => {
                    "no row does anything with it".to_owned()
                }
                Ignored::NotARequest => "it carries no credentials: not a request".to_owned(),
            };
            return Explained { text: format!("{route}ignored  {why}\n"), is_refused: false };
        }
        Err(NotTaken::Refused(refusal)) => {
            let (status, code) = (refusal.status(), refusal.code());
            let what = format!("refused  {status} {code}: {refusal}\n");
            (what, Some(Outcome::Refused(refusal)))
        }
    };
    let follows = if outcome.is_none() { follows(&incoming) } else { String::new() };
    let destinations = destinations(config, &incoming, outcome.as_ref());
    Explained {
        text: format!("{route}{what}{destinations}{follows}"),
        is_refused: outcome.is_some(),
    }
}

/// What a success can set off.
fn follows(incoming: &Incoming<'_>) -> String {
    let then_of = incoming.route.iter().flat_map(|route| &route.then);
    let lines = then_of.map(|entry| {
        let push = push_topic(&entry.fetch, incoming.captures).unwrap_or_default();
        format!("then     {} -> {}\n", then(entry), printable::line(&push))
    });
    lines.collect()
}

/// Where the reply goes, where a failure is told, and where a message ends that cannot be delivered. `outcome` if it
/// is known already.
fn destinations(config: &Config, incoming: &Incoming<'_>, outcome: Option<&Outcome>) -> String {
    let exchange::Settings { errors, dead_letter, .. } = &config.exchange;
    let to = Destinations::of(incoming, errors.as_ref(), dead_letter.as_ref());
    let mut text = String::new();
    // Writing into a string cannot fail, here and below.
    let mut line = |name: &str, topic: Option<&String>| {
        let topic = topic.map_or("none".to_owned(), |topic| printable::line(topic));
        let _ = writeln!(text, "{name:8} {topic}");
    };
    if let Some(outcome) = outcome {
        line("reply", to.reply_with(outcome));
    } else {
        let name = if to.retain { "retained" } else { "reply" };
        line(name, to.reply.as_ref());
        line("failure", to.failure());
    }
    line("letter", to.dead_letter.as_ref());
    text
}

/// What it becomes; `None` if it does not pass the row's `when`.
fn request(config: &Config, taken: &Taken<'_>) -> Result<Option<String>, Refusal> {
    let Taken { message, route, .. } = taken;
    let exchange::Settings { deadline, max_bytes, .. } = &config.exchange;
    route.check_size(message, max_bytes)?;
    if !taken.passes(|| Val::Null)? {
        return Ok(None);
    }
    Ok(Some(match &route.call {
        None if route.answer.is_some() => {
            "answer   from what is remembered of the device\n".to_owned()
        }
        None => "call     none\n".to_owned(),
        Some(endpoint) => {
            let expires = message.expires();
            let lifetime = Lifetime { deadline: *deadline, expires, since: None };
            // Nothing is remembered here.
            let call = taken.call(endpoint, || Val::Null, max_bytes, lifetime)?;
            http(config, taken, &call)
        }
    }))
}

/// What the gateway shows of its own beside those headers.
fn own(settings: &upstream::Settings, call: &Call) -> String {
    let mut text = match settings.auth.as_deref() {
        Some(Auth::Basic(user)) => format!("         authorization: Basic {user}\n"),
        Some(Auth::ClientCredentials(credentials)) => {
            let from = &credentials.token_url;
            format!("         authorization: Bearer <a token of {from}>\n")
        }
        None => String::new(),
    };
    if let Some(sign) = &call.sign {
        let _ = writeln!(text, "         {sign}");
    }
    text
}

fn http(config: &Config, taken: &Taken<'_>, call: &Call) -> String {
    let settings = &config.upstream;
    let base = settings.base();
    let whose = match taken.route.credentials {
        Credentials::Remembered => "the message's key, or the one remembered",
        Credentials::Listed => "the message's key, or the one listed",
        // A row without keys has no call that would carry one.
        Credentials::Message | Credentials::MessageOrIgnore | Credentials::None => {
            "the message's key"
        }
    };
    let path = shown(call.path.as_str());
    let mut text = format!("request  {} {base}{path}\n", call.method);
    let endpoint = taken.route.call.as_ref();
    // What is the same for every message needs no explanation.
    let from = |template: &Template| {
        let names = template.names().next().is_some();
        names.then(|| format!("from {}", shown(template.as_str())))
    };
    if let Some(from) = endpoint.and_then(|endpoint| from(&endpoint.path)) {
        let _ = writeln!(text, "         {from}");
    }
    // A template and what it has become, in the same order.
    let templates = endpoint.into_iter().flat_map(|endpoint| endpoint.headers.templates());
    for (header, (_, template)) in call.headers.iter().zip(templates) {
        let from = from(template).map_or(String::new(), |from| format!("  {from}"));
        let _ = writeln!(text, "         {header}{from}");
    }
    text.push_str(&own(settings, call));
    if call.authorization.speakers_key().is_some() && !call.places_key() {
        let _ = writeln!(text, "         {}: <redacted: {whose}>", settings.key_header);
    }
    for (name, value) in upstream::always_sent() {
        if call.headers.iter().all(|header| header.name != name) {
            let value = String::from_utf8_lossy(value.as_bytes()).into_owned();
            let _ = writeln!(text, "         {name}: {value}  always");
        }
    }
    let values = taken.route.values.iter().map(|(name, _)| format!("{{{name}}}"));
    let values = values.collect::<Vec<_>>().join(", ");
    if !values.is_empty() {
        let _ = writeln!(text, "         {values} of the payload");
    }
    if let Some(batch) = &call.batch {
        let max = batch.max;
        let _ = match &batch.form {
            BatchForm::Entries(Entries { endpoint: Endpoint { method, path, .. }, .. }) => {
                let path = shown(path.as_str());
                writeln!(text, "         or with others: {method} {base}{path}, {max} at most")
            }
            BatchForm::Joined(_) => {
                writeln!(text, "         or with others: the same, bodies joined, {max} at most")
            }
        };
    }
    if let Some(body) = &call.body {
        let content_type = String::from_utf8_lossy(call.content_type.as_bytes());
        let _ = writeln!(text, "         content-type: {content_type}");
        let _ = match std::str::from_utf8(body) {
            Ok(body) => writeln!(text, "body     {body}"),
            Err(_) => writeln!(text, "body     {} bytes, no text", body.len()),
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures;

    const TABLE: &str = r#"
[upstream]
url = "http://hub/api/"
max_request_bytes = 20
[replies]
errors = "d/{device_id}/errors"
[dead_letter]
topic = "dead/{route}"
[[route]]
name = "tells"
on   = "d/{device_id}/tells"
call = "POST /{device_id}?token=s3cret"
then = ["news"]
[[route]]
name  = "asks"
on    = "d/{device_id}/asks"
reply = "d/{device_id}/answers"
[[fetch]]
name = "news"
call = "GET /{device_id}/news"
push = "d/{device_id}/news"
"#;
    const SPEAKER: [(&str, &str); 2] = [("device_id", "d1"), ("access_key", "open-sesame")];

    fn explain(topic: &str, user: &[(&str, &str)], payload: &[u8]) -> String {
        let explained = message(&fixtures::config(TABLE), &fixtures::message(topic, user, payload));
        assert_eq!(explained.is_refused, explained.text.contains("\nrefused "));
        explained.text.replace(env!("CARGO_PKG_VERSION"), "VERSION")
    }

    #[test]
    fn a_request_is_shown_with_everything_that_can_come_of_it() {
        assert_eq!(
            explain("d/d1/tells", &SPEAKER, b"{\"a\":1}"),
            "route    tells\n\
             request  POST http://hub/api/d1?token=<hidden>\n\
             \x20        from /{device_id}?token=<hidden>\n\
             \x20        authorization: <redacted: the message's key>\n\
             \x20        accept: */*  always\n\
             \x20        user-agent: mqtt-rest-gateway/VERSION  always\n\
             \x20        content-type: application/json\n\
             body     {\"a\":1}\n\
             reply    none\n\
             failure  d/d1/errors\n\
             letter   dead/tells\n\
             then     news -> d/d1/news\n"
        );
        assert_eq!(
            explain("d/d1/asks", &SPEAKER, b"no JSON"),
            "route    asks\ncall     none\nreply    d/d1/answers\nfailure  d/d1/answers\n\
             letter   dead/asks\n"
        );
    }

    #[test]
    fn a_refusal_is_shown_with_where_it_is_told() {
        assert_eq!(
            explain("d/d1/tells", &SPEAKER, b"\"longer than twenty bytes\""),
            "route    tells\n\
             refused  413 too_large: the payload has 26 bytes; at most 20 are taken\n\
             reply    d/d1/errors\nletter   dead/tells\n"
        );
        assert_eq!(
            explain("d/d2/tells", &SPEAKER, b"{}"),
            "route    tells\n\
             refused  403 identity: the user property `device_id` is not the device of the topic\n\
             reply    d/d2/errors\nletter   dead/tells\n"
        );
        let ours = explain("d/d1/tells", &[(VIA, "gw")], b"{}");
        assert_eq!(ours, "route    tells\nignored  it carries `via`: a gateway published it\n");
    }
    const SECRETS: &str = r#"
[secrets]
bot    = "s3cret"
influx = "s3cret"
[upstream]
url = "http://hub"
headers = { Authorization = "Token {$influx}", Accept = "text/csv", X-Device-Key = "{$key}", X-Token = "s3cret" }
[[route]]
name    = "r"
on      = "d/{device_id}/r"
call    = "POST /bot{$bot}/{device_id}?token={$influx}"
headers = { Accept = "", X-Source = "{device_id}" }
"#;

    #[test]
    fn a_secret_is_shown_by_its_name() {
        let explain = |device: &str| {
            let user = [("device_id", device), ("access_key", "open-sesame")];
            let topic = format!("d/{device}/r");
            let message = fixtures::message(&topic, &user, b"{}");
            let explained = super::message(&fixtures::config(SECRETS), &message);
            explained.text.replace(env!("CARGO_PKG_VERSION"), "VERSION")
        };
        assert_eq!(
            explain("d1"),
            "route    r\n\
             request  POST http://hub/bot<bot>/d1?token=<influx>\n\
             \x20        from /bot{$bot}/{device_id}?token={$influx}\n\
             \x20        authorization: Token <influx>\n\
             \x20        x-device-key: <key>\n\
             \x20        x-token: <hidden>\n\
             \x20        x-source: d1  from {device_id}\n\
             \x20        accept: */*  always\n\
             \x20        user-agent: mqtt-rest-gateway/VERSION  always\n\
             \x20        content-type: application/json\n\
             body     {}\n\
             reply    none\nfailure  v1/device/d1/errors\n\
             letter   mqtt-rest-gateway/dead-letter/r\n"
        );
        let refused = explain("\u{fc}");
        assert!(refused.contains("refused  400 bad_header: the header `x-source`"), "{refused}");
    }
}
