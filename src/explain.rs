//! What the gateway would do, in words: the table for `routes`, one message for `explain`. Sends
//! nothing and shows no key.

use std::fmt::Write;

use serde_json::json;

use crate::{
    call::{Batch, Endpoint, JSON, Limits},
    config::Config,
    fetch::{Condition, Then},
    filter::Val,
    message::{Message, VIA},
    printable,
    refusal::Refusal,
    route::Credentials,
    secret::{self, Secret},
    table::{Ignored, NotTaken, Table, Taken},
    template::Template,
    topic::Captures,
};

/// The table in force, a line for each row.
pub fn table(table: &Table) -> String {
    let mut rows = vec![["NAME", "ON", "CALL", "REPLY", "THEN"].map(str::to_owned)];
    for route in &table.routes {
        let entries: Vec<_> = route.then.iter().map(|entry| then(table, entry)).collect();
        rows.push([
            route.name.to_string(),
            route.on.as_str().to_owned(),
            endpoint(route.call.as_ref()),
            route.reply.as_ref().map_or("-", Template::as_str).to_owned(),
            if entries.is_empty() { "-".to_owned() } else { entries.join(", ") },
        ]);
    }
    let mut text = columns(&rows);
    let mut rows = vec![["FETCH", "PUSH", "CALL", "RESPONSE TOPIC", ""].map(str::to_owned)];
    for fetch in &table.fetches {
        rows.push([
            fetch.name.to_string(),
            fetch.push.as_str().to_owned(),
            endpoint(fetch.call.as_ref()),
            fetch.response_topic.as_ref().map_or("-", Template::as_str).to_owned(),
            String::new(),
        ]);
    }
    text.push('\n');
    text + &columns(&rows)
}

fn endpoint(call: Option<&Endpoint>) -> String {
    call.map_or("-".to_owned(), |call| format!("{} {}", call.method, shown(call.path.as_str())))
}

/// A path and query without values that are likely to be secrets.
fn shown(path: &str) -> String {
    let Some((path, query)) = path.split_once('?') else { return path.to_owned() };
    let pairs = query.split('&').map(|pair| match pair.split_once('=') {
        // What a capture fills in is the device's name for something.
        Some((name, value)) if secret::sounds_secret(name) && !value.starts_with('{') => {
            format!("{name}=<hidden>")
        }
        _ => pair.to_owned(),
    });
    format!("{path}?{}", pairs.collect::<Vec<_>>().join("&"))
}

fn columns(rows: &[[String; 5]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..5).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// The table in force, for programs.
pub fn table_json(table: &Table) -> String {
    let call = |call: &Option<Endpoint>| call.as_ref().map(|call| endpoint(Some(call)));
    let text = |template: &Option<Template>| template.as_ref().map(|t| t.as_str().to_owned());
    let routes = table.routes.iter().map(|route| {
        json!({
            "name": &*route.name,
            "on": route.on.as_str(),
            "filter": route.on.filter(),
            "call": call(&route.call),
            "reply": text(&route.reply),
            "credentials": route.credentials.word(),
            "batch": route.batch.as_ref().map(|batch| endpoint(Some(&batch.endpoint))),
            "then": route.then.iter().map(|entry| then(table, entry)).collect::<Vec<_>>(),
        })
    });
    let fetches = table.fetches.iter().map(|fetch| {
        json!({
            "name": &*fetch.name,
            "call": call(&fetch.call),
            "push": fetch.push.as_str(),
            "response_topic": text(&fetch.response_topic),
        })
    });
    let (routes, fetches): (Vec<_>, Vec<_>) = (routes.collect(), fetches.collect());
    json!({ "routes": routes, "fetches": fetches }).to_string()
}

/// One entry of `then`, in words.
fn then(table: &Table, then: &Then) -> String {
    let name = &table.fetches[then.fetch].name;
    match &then.condition {
        Condition::Always => name.to_string(),
        Condition::When(when) => format!("{name} when {}", when.as_str()),
        Condition::OnChange(value) => format!("{name} on change of {}", value.as_str()),
    }
}

/// The request that a message would cause, or why it would be refused.
pub fn message(config: &Config, message: &Message) -> String {
    let table = &config.table;
    let (index, captures) = match config.subscriptions().find(&message.topic) {
        Some((index, captures)) => (Some(index), captures),
        None => (None, Captures::default()),
    };
    let route = index.map(|index| &table.routes[index]);
    let mut text = route.map(|route| format!("route    {}\n", route.name)).unwrap_or_default();
    let device = captures.sender(&table.identity.capture).unwrap_or_default();
    // Which key would be remembered only a running gateway knows; it is not shown anyway.
    let remembered = || Some(Secret::new(""));
    let explained = match table.take(message, route, &captures, &device, remembered) {
        Ok(taken) => taken_message(config, &taken),
        Err(NotTaken::Refused(refusal)) => Err(refusal),
        Err(NotTaken::Ignored(Ignored::Loop)) => {
            Ok(format!("ignored  it carries `{VIA}`: a gateway published it\n"))
        }
        Err(NotTaken::Ignored(Ignored::NotARequest)) => {
            Ok("ignored  it carries no credentials: not a request\n".to_owned())
        }
    };
    text += &explained.unwrap_or_else(|refusal| {
        format!("refused  {} {}: {refusal}\n", refusal.status(), refusal.code())
    });
    text
}

fn taken_message(config: &Config, taken: &Taken<'_>) -> Result<String, Refusal> {
    let Taken { message, route, caller } = taken;
    let mut text = match &route.call {
        None if route.answer.is_some() => {
            "answer   from what is remembered of the device\n".to_owned()
        }
        None => "call     none\n".to_owned(),
        Some(endpoint) => request(config, taken, endpoint)?,
    };
    let rendered = |template: &Template| {
        template.topic(|name| caller.captures.get(name)).map(|topic| printable::line(&topic))
    };
    let named = message.properties.response_topic.as_deref().map(printable::line);
    let reply = named.or_else(|| route.reply.as_ref().and_then(rendered));
    // Writing into a string cannot fail, here and below.
    let _ = writeln!(text, "reply    {}", reply.as_deref().unwrap_or("none"));
    for entry in &route.then {
        let push = rendered(&config.table.fetches[entry.fetch].push).unwrap_or_default();
        let _ = writeln!(text, "then     {} -> {push}", then(&config.table, entry));
    }
    Ok(text)
}

fn request(config: &Config, taken: &Taken<'_>, endpoint: &Endpoint) -> Result<String, Refusal> {
    let Taken { message, route, caller } = taken;
    let upstream = &config.upstream;
    let body = route.body(endpoint, message, || Val::Null, &config.exchange.max_bytes)?;
    let limits = Limits { deadline: upstream.deadline, expires: None, since: None };
    let call = endpoint.call(&route.name, caller, body, route.retry, limits)?;
    let base = upstream.url.as_str().trim_end_matches('/');
    let whose = match route.credentials {
        Credentials::Remembered => "the message's key, or the one remembered",
        _ => "the message's key",
    };
    let mut text = format!("request  {} {base}{}\n", call.method, shown(&call.path));
    let _ = writeln!(text, "         {}: <redacted: {whose}>", upstream.key_header);
    if let Some(batch) = &route.batch {
        let Batch { endpoint, max, .. } = &**batch;
        let _ = writeln!(
            text,
            "         or with others: {} {base}{}, {max} at most",
            endpoint.method,
            shown(endpoint.path.as_str())
        );
    }
    if let Some(body) = &call.body {
        let _ = writeln!(text, "         content-type: {JSON}");
        let _ = writeln!(text, "body     {}", String::from_utf8_lossy(body));
    }
    Ok(text)
}
