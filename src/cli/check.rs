//! `check`: is the configuration valid, and with `--connect`, does it work here?

use std::{collections::BTreeSet, path::Path};

use super::{error::CommandError, print};
use crate::{
    config::Config,
    failure::Transience,
    mqtt::{self, DEVICE, Report, Trial},
    template::Template,
    upstream,
};

pub(super) async fn check(
    config: &Config,
    file: Option<&Path>,
    connect: bool,
) -> Result<(), CommandError> {
    let table = &config.table;
    let source =
        file.map_or("the compiled-in configuration".to_owned(), |file| file.display().to_string());
    print(&format!(
        "{source} is valid: {} routes, {} fetches",
        table.routes.len(),
        table.fetches.len()
    ))?;
    for warning in config.warnings() {
        print(&format!("warning: {warning}"))?;
    }
    if !connect {
        return Ok(());
    }
    let trial = trial(config);
    let (broker, upstream) =
        tokio::join!(mqtt::check_broker(&config.broker, &trial), upstream::probe(&config.upstream));
    let mut bad = Vec::new();
    match broker {
        Ok(Report { lines, warnings, problems }) => {
            print(&format!("broker: {}", lines.join("\n")))?;
            for warning in warnings {
                print(&format!("warning: {warning}"))?;
            }
            bad.extend(problems.into_iter().map(|problem| format!("broker: {problem}")));
        }
        Err(error) => bad.push(format!("broker: {error}")),
    }
    let url = &config.upstream.url;
    match upstream {
        Ok(status) if Transience::of(status) == Transience::Final => {
            print(&format!("upstream: {url} answers {status}"))?;
        }
        Ok(status) => bad.push(format!("upstream: {url} answers {status}, which is an outage")),
        Err(error) => bad.push(format!("upstream: {error}")),
    }
    if bad.is_empty() { Ok(()) } else { Err(CommandError::Unreached(bad)) }
}

/// What the gateway will do at the broker, for a device that does not exist.
fn trial(config: &Config) -> Trial<'_> {
    let (table, exchange) = (&config.table, &config.exchange);
    // A secret cannot stand in a topic.
    let topic = |template: &Template| template.topic(|_| Some(DEVICE));
    let replies = table.routes.iter().filter_map(|route| route.reply.as_ref());
    let pushes = table.fetches.iter().map(|fetch| &fetch.push);
    let writes = replies.chain(pushes).chain(&exchange.errors).filter_map(topic);
    // Each once.
    let writes = writes.collect::<BTreeSet<_>>().into_iter().collect();
    let letters = exchange.dead_letter.as_ref().and_then(topic);
    Trial { patterns: table.patterns.outermost(), writes, letters }
}
