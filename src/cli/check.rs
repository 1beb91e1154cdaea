//! `check`: is the configuration valid, and with `--connect`, does it work here?

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use clap::Args;
use serde::Serialize;

use super::{
    error::{BAD_CONFIGURATION, CommandError, FAILED},
    print,
};
use crate::{
    config::{Config, ConfigError, Mistake},
    failure::Transience,
    mqtt::{self, DEVICE, Report, Trial},
    template::Template,
    upstream,
};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Also try to reach the broker, the API, and where its tokens are had.
    #[arg(long)]
    connect: bool,
    /// Print what is found as one JSON object, all on standard output; exit codes are the same.
    #[arg(long)]
    json: bool,
}

/// What is found, as `--json` prints it.
#[derive(Default, Serialize)]
struct Findings {
    /// The file, or what stands for it.
    source: String,
    /// Whether a gateway would start with it.
    valid: bool,
    mistakes: Vec<Mistake>,
    routes: usize,
    fetches: usize,
    /// What is hardly meant, or can lose messages.
    warnings: Vec<String>,
    /// What does not work.
    problems: Vec<String>,
    /// What each of them said, if it was asked.
    broker: Option<BTreeMap<&'static str, Vec<String>>>,
    token_endpoint: Option<String>,
    upstream: Option<String>,
}

pub(super) async fn check(
    arguments: &Arguments,
    file: Option<&Path>,
    config: Result<Config, ConfigError>,
) -> Result<(), CommandError> {
    let source =
        file.map_or("the compiled-in configuration".to_owned(), |file| file.display().to_string());
    let mut findings = Findings { source, ..Findings::default() };
    let config = match config {
        Err(error) if arguments.json => {
            findings.mistakes = error.mistakes();
            return findings.json(BAD_CONFIGURATION);
        }
        config => config?,
    };
    findings.valid = true;
    findings.routes = config.table.routes.len();
    findings.fetches = config.table.fetches.len();
    findings.warnings = config.warnings();
    if !arguments.json {
        let Findings { source, routes, fetches, .. } = &findings;
        print(&format!("{source} is valid: {routes} routes, {fetches} fetches"))?;
        findings.warn(0)?;
    }
    if arguments.connect {
        let told = findings.warnings.len();
        let lines = Box::pin(findings.connect(&config)).await;
        if !arguments.json {
            lines.iter().try_for_each(|line| print(line))?;
            findings.warn(told)?;
        }
    }
    match (arguments.json, findings.problems.is_empty()) {
        (true, good) => findings.json(if good { 0 } else { FAILED }),
        (false, true) => Ok(()),
        (false, false) => Err(CommandError::Unreached(findings.problems)),
    }
}

impl Findings {
    /// Prints the warnings from this one on.
    fn warn(&self, from: usize) -> Result<(), CommandError> {
        self.warnings.iter().skip(from).try_for_each(|text| print(&format!("warning: {text}")))
    }

    fn json(&self, code: u8) -> Result<(), CommandError> {
        print(&serde_json::to_string_pretty(self).map_err(|error| error.to_string())?)?;
        if code == 0 { Ok(()) } else { Err(CommandError::Printed(code)) }
    }

    /// Asks all that the gateway will speak with; what they say, for people.
    async fn connect(&mut self, config: &Config) -> Vec<String> {
        let trial = trial(config);
        let (broker, token, upstream) = tokio::join!(
            mqtt::check_broker(&config.broker, &trial),
            upstream::probe_tokens(&config.upstream),
            upstream::probe(&config.upstream)
        );
        let mut lines = Vec::new();
        match broker {
            Ok(Report { facts, warnings, problems }) => {
                let mut before = "";
                let mut said = BTreeMap::<_, Vec<_>>::new();
                for (what, text) in facts {
                    lines.push(match what {
                        "connection" => format!("broker: {text}"),
                        _ => format!("  {:<20} {text}", if what == before { "" } else { what }),
                    });
                    before = what;
                    said.entry(what).or_default().push(text);
                }
                self.broker = Some(said);
                self.warnings.extend(warnings);
                self.problems.extend(problems.into_iter().map(|text| format!("broker: {text}")));
            }
            Err(error) => self.problems.push(format!("broker: {error}")),
        }
        if let (Some(url), Some(result)) = (config.upstream.token_url(), token) {
            match result {
                Ok(()) => self.token_endpoint = Some(format!("{url} gives a token")),
                Err(error) => {
                    self.problems.push(format!(
                        "token endpoint: {url}: {error}; see [upstream.auth.oauth2]"
                    ));
                }
            }
        }
        let url = &config.upstream.url;
        match upstream {
            Ok(status) if Transience::of(status) == Transience::Final => {
                self.upstream = Some(format!("{url} answers {status}"));
            }
            Ok(status) => {
                self.problems.push(format!("upstream: {url} answers {status}, which is an outage"));
            }
            Err(error) => self.problems.push(format!("upstream: {error}")),
        }
        let others = [("token endpoint", &self.token_endpoint), ("upstream", &self.upstream)];
        let others = others.into_iter().filter_map(|(who, said)| Some((who, said.as_ref()?)));
        lines.extend(others.map(|(who, said)| format!("{who}: {said}")));
        lines
    }
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
