//! Finds rows that would take what the gateway publishes for a device's message. Elsewhere its mark, the user property
//! `via`, tells the two apart; a row that asks for no credentials serves devices and bridges that speak MQTT 3.1.1, where
//! a message loses its properties on the way.

use super::{reader::Section, route::Known};
use crate::{
    message::VIA,
    table::{
        fetch::Fetch,
        route::{Credentials, Route},
    },
    template::Template,
    topic::{Pattern, PatternIndex, patterns::Patterns},
};

/// Notes each row that asks for no credentials and listens where a row replies or pushes, or a fetch pushes that runs by
/// itself. `rows` are those of `routes`, in the same order. Failures and dead letters are looked at with their own keys,
/// for every row.
pub(super) fn check(
    rows: &[Section<'_>],
    patterns: &Patterns,
    routes: &[Route],
    fetches: &[Known],
) {
    let mut noted: Vec<(&str, String)> = Vec::new();
    let by_themselves = fetches.iter().filter_map(|known| known.fetch.as_deref());
    let by_themselves = by_themselves.filter(|fetch| fetch.every.is_some());
    let by_themselves = by_themselves.map(push).map(|(what, topic)| (what, topic, None));
    for (what, topic, on) in routes.iter().flat_map(published).chain(by_themselves) {
        let topics = Pattern::of_template(topic.as_str(), on);
        let keyless = |route: &&Route| route.credentials == Credentials::None;
        for route in listening(&topics, patterns, routes).into_iter().filter(keyless) {
            let topic = topic.as_str();
            let text = format!(
                "the gateway publishes on `{topic}` ({what}), and a row with credentials = \"none\" would take \
                 that for a device's message wherever MQTT 3.1.1 drops the property `{VIA}`; let it publish, or \
                 listen, elsewhere"
            );
            // Several rows may push the same fetch.
            if !noted.contains(&(&route.name, text.clone())) {
                let row = routes.iter().zip(rows).find(|(other, _)| other.name == route.name);
                if let Some((_, row)) = row {
                    row.mistake(None, "on", &*text);
                }
                noted.push((&route.name, text));
            }
        }
    }
}

/// The rows that would take something for a message of these topics: not those that swallow it, nor those that lie
/// around one that has it.
pub(super) fn listening<'r>(
    topics: &Pattern,
    patterns: &Patterns,
    routes: &'r [Route],
) -> Vec<&'r Route> {
    let rows = patterns.inner_first().iter().filter_map(|PatternIndex(row)| routes.get(*row));
    let mut listening: Vec<&Route> = Vec::new();
    for route in rows.filter(|route| route.on.overlaps(topics)) {
        listening.extend((!route.swallows()).then_some(route));
        if route.on.covers(topics) {
            break;
        }
    }
    listening
}

/// Where answers to a row's messages are published, what for, and the row's pattern.
fn published(route: &Route) -> impl Iterator<Item = (String, &Template, Option<&Pattern>)> {
    let reply = route.reply.iter().map(|topic| (format!("reply of route `{}`", route.name), topic));
    let pushes = route.then.iter().map(|then| push(&then.fetch));
    reply.chain(pushes).map(|(what, topic)| (what, topic, Some(&route.on)))
}

fn push(fetch: &Fetch) -> (String, &Template) {
    (format!("push of fetch `{}`", fetch.name), &fetch.push)
}
