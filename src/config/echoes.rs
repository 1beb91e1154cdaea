//! Finds rows that would take what the gateway publishes for a device's message. Elsewhere its mark, the user property
//! `via`, tells the two apart; a row that asks for no credentials serves devices and bridges that speak MQTT 3.1.1, where
//! a message loses its properties on the way.

use super::reader::Section;
use crate::{
    message::VIA,
    table::route::{Credentials, Route},
    template::Template,
    topic::Pattern,
};

/// Notes each row that asks for no credentials and listens where a row replies or pushes. `rows` are those of `routes`,
/// in the same order. Failures and dead letters are looked at with their own keys, for every row.
pub(super) fn check(rows: &[Section<'_>], routes: &[Route]) {
    let published: Vec<_> = routes.iter().flat_map(published).collect();
    for (row, route) in rows.iter().zip(routes) {
        if route.credentials != Credentials::None {
            continue;
        }
        let own = published
            .iter()
            .filter(|(_, topic)| Pattern::of_template(topic.as_str()).overlaps(&route.on));
        // Several rows may push the same fetch.
        let mut own: Vec<_> = own.map(|(what, topic)| (what, topic.as_str())).collect();
        own.dedup();
        for (what, topic) in own {
            let text = format!(
                "the gateway publishes on `{topic}` ({what}), and a row with credentials = \"none\" would take \
                 that for a device's message wherever MQTT 3.1.1 drops the property `{VIA}`; let it publish, or \
                 listen, elsewhere"
            );
            row.mistake(None, "on", text);
        }
    }
}

/// Where answers to a row's messages are published, and what for.
fn published(route: &Route) -> impl Iterator<Item = (String, &Template)> {
    let reply = route.reply.iter().map(|topic| (format!("reply of route `{}`", route.name), topic));
    let pushes = route.then.iter().map(|then| &then.fetch);
    reply.chain(pushes.map(|fetch| (format!("push of fetch `{}`", fetch.name), &fetch.push)))
}
