//! The configuration: a text and the environment become a [`Config`], or a list of every mistake in
//! them. It is complete before any socket opens and never changes afterwards.

mod auth;
mod batch;
mod body;
mod broker;
mod destination;
mod echoes;
mod effective;
mod fetch;
mod files;
mod filters;
mod key_list;
mod mistake;
mod names;
pub(crate) mod reader;
mod request;
mod route;
mod scalar;
mod schema;
mod secrets;
mod series;
mod table;
mod upstream;
pub(crate) mod values;
mod warnings;
mod written;

use std::{
    collections::BTreeMap,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

#[cfg(test)]
pub(crate) use self::schema::tests::schema_errors;
use self::{
    destination::{Destinations, destinations},
    reader::{Reader, Section},
    request::Requests,
    secrets::Secrets,
    values::{capture, collector, duration, listener, non_empty, number, one_of, share},
};
pub use self::{
    effective::effective,
    mistake::{Mistake, Mistakes},
    schema::schema,
};
use crate::{
    exchange, log,
    mqtt::{self, Mode, Subscriptions},
    table::{
        Table,
        identity::Identity,
        route::{Credentials, MaxBytes},
    },
    topic::is_publishable,
    traces, upstream as api,
};

/// The shipped file: what runs without a file, and where every default stands.
pub const SHIPPED: &str = include_str!("../../config.toml");

/// Everything the gateway needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// The broker.
    pub broker: mqtt::Settings,
    /// The REST API.
    pub upstream: api::Settings,
    /// How messages are handled.
    pub exchange: exchange::Settings,
    /// The table.
    pub table: Arc<Table>,
    /// How many devices are remembered.
    pub remembered_devices: usize,
    /// Where the admin endpoint listens.
    pub admin: Option<SocketAddr>,
    /// How long stopping may take.
    pub grace: Duration,
    /// Logs.
    pub log: log::Settings,
    /// Where traces go, if anywhere.
    pub traces: Option<traces::Settings>,
    /// Keys that were left out and whose default does not fit the table, which does without them.
    pub unfit_defaults: Vec<&'static str>,
    /// Variables that Kubernetes sets for a Service whose name begins like ours.
    pub service_links: Vec<String>,
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{0}: {1}")]
    Unreadable(PathBuf, io::Error),
    /// It has mistakes.
    #[error("{0}")]
    Mistakes(Mistakes),
}

impl ConfigError {
    /// One by one; that a file cannot be read is one as well.
    pub fn mistakes(self) -> Vec<Mistake> {
        match self {
            Self::Unreadable(file, error) => {
                let place = file.display().to_string();
                vec![Mistake { line: None, place, text: error.to_string() }]
            }
            Self::Mistakes(Mistakes { mistakes, .. }) => mistakes,
        }
    }
}

/// The text of a file, or the shipped one if none is named, and what it is called.
///
/// # Errors
/// [`ConfigError::Unreadable`].
fn text(file: Option<&Path>) -> Result<(String, String), ConfigError> {
    let Some(file) = file else {
        return Ok(("config.toml (compiled in)".to_owned(), SHIPPED.to_owned()));
    };
    let text = fs::read_to_string(file);
    let text = text.map_err(|error| ConfigError::Unreadable(file.to_owned(), error))?;
    Ok((file.display().to_string(), text))
}

/// Where the admin endpoint listens.
fn admin_listener(root: &Section<'_>) -> Option<SocketAddr> {
    let admin = root.section("admin");
    let listen = admin.value("listen", listener);
    admin.finish();
    listen
}

/// `[traces]`.
fn trace_settings(root: &Section<'_>) -> Option<traces::Settings> {
    let section = root.section("traces");
    let endpoint = section.parsed("endpoint", collector);
    let sample = section.value("sample", share);
    section.finish();
    endpoint.map(|endpoint| traces::Settings { endpoint, sample })
}

/// `[log]`.
fn log_settings(root: &Section<'_>) -> log::Settings {
    let log = root.section("log");
    let settings = log::Settings {
        level: log.value("level", log::level),
        json: log.value("format", |text| one_of(text, &[("text", false), ("json", true)])),
    };
    log.finish();
    settings
}

impl Config {
    /// Reads a file, or the shipped configuration if none is named.
    ///
    /// # Errors
    /// [`ConfigError`] with every mistake there is.
    pub fn load(file: Option<&Path>, env: &BTreeMap<String, String>) -> Result<Self, ConfigError> {
        let (source, text) = text(file)?;
        Self::parse(&text, env)
            .map_err(|mistakes| ConfigError::Mistakes(Mistakes { source, mistakes }))
    }

    /// The same for a command that connects to nothing: no secret and no certificate is read, so that it works where
    /// there are none. In place of a secret stands its name.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn load_without_secrets(
        file: Option<&Path>,
        env: &BTreeMap<String, String>,
    ) -> Result<Self, ConfigError> {
        let (source, text) = text(file)?;
        Self::read(Reader::new(&text, env).without_secrets())
            .map_err(|mistakes| ConfigError::Mistakes(Mistakes { source, mistakes }))
    }

    /// Reads a text.
    ///
    /// # Errors
    /// Every mistake in the text and in those variables of `env` that begin with `GATEWAY_`.
    pub fn parse(text: &str, env: &BTreeMap<String, String>) -> Result<Self, Vec<Mistake>> {
        Self::read(Reader::new(text, env))
    }

    fn read(reader: Reader<'_>) -> Result<Self, Vec<Mistake>> {
        let root = reader.root();
        let broker = broker::read(&root);
        let device = root.section("device");
        let secrets = Secrets::read(&root);
        let (upstream, common) = upstream::read(&root, &device, &secrets);
        let identity = Identity {
            capture: device.value("capture", capture).into(),
            id_property: device.value("id_property", non_empty).into(),
            key_property: device.value("key_property", non_empty).into(),
        };
        let remembered_devices = device.value("remembered", number);
        let credentials = device.value("credentials", |text| one_of(text, &Credentials::WORDS));
        let keys = key_list::read(&device);
        let requests = Requests::new(&secrets, common, &upstream);
        let is_member = broker.share_group.is_some();
        let table = table::read(&reader, &root, identity, credentials, &requests, is_member);
        let table = Table { replays: replays(&broker.client_id), ..table };
        key_list::check(&device, &table, keys.as_ref());
        device.finish();
        let secrets = Arc::new(secrets.finish());
        let Destinations { errors, dead_letter, unfit_defaults } = destinations(&root, &table);
        let admin = admin_listener(&root);
        let shutdown = root.section("shutdown");
        let grace = shutdown.value("grace", duration);
        shutdown.finish();
        let log = log_settings(&root);
        let traces = trace_settings(&root);
        root.finish();

        let service_links = reader.service_links();
        let mistakes = reader.finish();
        if !mistakes.is_empty() {
            return Err(mistakes);
        }
        let rates = table.routes.iter().filter_map(|route| Some((route.name.clone(), route.rate?)));
        let rates = api::Rates { rows: rates.collect(), ..upstream.rates };
        let longest_payload = upstream.max_response_bytes;
        Ok(Self {
            exchange: exchange::Settings {
                via: broker.client_id.clone(),
                deadline: upstream.deadline,
                max_bytes: MaxBytes {
                    request: upstream.max_request_bytes,
                    filter: upstream.max_filter_bytes,
                },
                errors,
                dead_letter,
                secrets: secrets.clone(),
                keys,
            },
            broker: mqtt::Settings { retains: table.retains(), longest_payload, ..broker },
            upstream: api::Settings { secrets, rates, ..upstream },
            table: Arc::new(table),
            remembered_devices,
            admin,
            grace,
            log,
            traces,
            unfit_defaults,
            service_links,
        })
    }

    /// What to subscribe to.
    pub fn subscriptions(&self) -> Subscriptions {
        let patterns = self.table.patterns.clone();
        Subscriptions { patterns, names: self.table.names().cloned().collect(), mode: Mode::Serve }
    }
}

/// The topic by which `replay` asks, if a client id makes one.
fn replays(client_id: &str) -> Option<Box<str>> {
    let topic = format!("{client_id}/replay");
    is_publishable(&topic).then(|| topic.into())
}
