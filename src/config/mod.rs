//! The configuration: a text and the environment become a [`Config`], or a list of every mistake in
//! them. It is complete before any socket opens and never changes afterwards.

mod files;
mod reader;
mod table;
mod values;
mod warnings;

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use url::Url;

pub use self::reader::Mistake;
use self::{
    files::{certificates, secret},
    reader::{Reader, Section},
    table::one_of,
    values::{
        address, base_url, capture, duration, key_header, key_prefix, number, positive_duration,
        proxy, size, word,
    },
};
use crate::{
    backoff::Backoff,
    exchange,
    mqtt::{self, Subscriptions, Transport},
    table::{
        Table,
        identity::Identity,
        route::{MaxBytes, Route},
    },
    telemetry,
    template::Template,
    topic::Pattern,
    upstream,
};

/// The shipped file, which is the default.
pub const SHIPPED: &str = include_str!("../../config.toml");

/// Everything the gateway needs to know.
#[derive(Debug, Clone)]
pub struct Config {
    /// The broker.
    pub broker: mqtt::Settings,
    /// The REST API.
    pub upstream: upstream::Settings,
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
    pub log: telemetry::Settings,
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

/// Every mistake, and where they were made.
#[derive(Debug)]
pub struct Mistakes {
    /// The file, or what stands for it.
    pub source: String,
    /// In the order of lines, those of the environment first.
    pub mistakes: Vec<Mistake>,
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for mistake in &self.mistakes {
            let of_environment =
                mistake.line.is_none() && mistake.place.starts_with(reader::PREFIX);
            let source = if of_environment { "environment" } else { &self.source };
            writeln!(f, "{source}: {mistake}")?;
        }
        match self.mistakes.len() {
            1 => write!(f, "1 mistake"),
            count => write!(f, "{count} mistakes"),
        }
    }
}

impl Config {
    /// Reads a file, or the shipped configuration if none is named.
    ///
    /// # Errors
    /// [`ConfigError`] with every mistake there is.
    pub fn load(file: Option<&Path>, env: &BTreeMap<String, String>) -> Result<Self, ConfigError> {
        let (source, text) = match file {
            None => ("config.toml (compiled in)".to_owned(), SHIPPED.to_owned()),
            Some(file) => {
                let text = fs::read_to_string(file);
                let text = text.map_err(|error| ConfigError::Unreadable(file.to_owned(), error))?;
                (file.display().to_string(), text)
            }
        };
        Self::parse(&text, env)
            .map_err(|mistakes| ConfigError::Mistakes(Mistakes { source, mistakes }))
    }

    /// Reads a text.
    ///
    /// # Errors
    /// Every mistake in the text and in those variables of `env` that begin with `GATEWAY_`.
    pub fn parse(text: &str, env: &BTreeMap<String, String>) -> Result<Self, Vec<Mistake>> {
        let reader = Reader::new(text, env);
        let root = reader.root();
        let broker = broker(&root);
        let device = root.section("device");
        let upstream = upstream(&root, &device);
        let identity = Identity {
            capture: device.or("capture", "device_id", capture).into(),
            id_property: device.or("id_property", "device_id", word).into(),
            key_property: device.or("key_property", "access_key", word).into(),
        };
        let remembered_devices = device.or("remembered", "100000", number);
        device.finish();
        let table = table::read(&reader, &root, identity);

        let errors =
            destination(&root, "replies", "errors", "v1/device/{device_id}/errors", &table, &[]);
        let default = "mqtt-rest-gateway/dead-letter/{route}";
        let dead_letter = destination(&root, "dead_letter", "topic", default, &table, &["route"]);
        let admin = root.section("admin");
        let listen = admin.or("listen", "127.0.0.1:9180", |text| match text {
            "" => Ok(None),
            text => text
                .parse()
                .map(Some)
                .map_err(|_| format!("`{text}` is no address; write `127.0.0.1:9180`")),
        });
        admin.finish();
        let shutdown = root.section("shutdown");
        let grace = shutdown.or("grace", "25s", duration);
        shutdown.finish();
        let log = root.section("log");
        let log_settings = telemetry::Settings {
            level: log.or("level", "info", telemetry::level),
            json: log.or("format", "text", |text| one_of(text, &[("text", false), ("json", true)])),
        };
        log.finish();
        root.finish();

        let service_links = reader.service_links();
        let mistakes = reader.finish();
        let rates = table.routes.iter().filter_map(|route| Some((route.name.clone(), route.rate?)));
        let rates = rates.collect();
        match upstream {
            Some(upstream) if mistakes.is_empty() => Ok(Self {
                exchange: exchange::Settings {
                    via: broker.client_id.clone(),
                    deadline: upstream.deadline,
                    max_bytes: MaxBytes {
                        request: upstream.max_request_bytes,
                        filter: upstream.max_filter_bytes,
                    },
                    errors,
                    dead_letter,
                },
                broker,
                upstream: upstream::Settings {
                    rates: upstream::Rates { rows: rates, ..upstream.rates },
                    ..upstream
                },
                table: Arc::new(table),
                remembered_devices,
                admin: listen,
                grace,
                log: log_settings,
                service_links,
            }),
            _ => Err(mistakes),
        }
    }

    /// What to subscribe to.
    pub fn subscriptions(&self) -> Subscriptions {
        Subscriptions {
            patterns: self.table.routes.iter().map(|route| route.on.clone()).collect(),
            sender: self.table.identity.capture.clone(),
            drain: false,
        }
    }
}

fn broker(root: &Section<'_>) -> mqtt::Settings {
    let broker = root.section("broker");
    let address = broker.or("url", "mqtt://127.0.0.1:1883", address);
    let encrypted = matches!(address.transport, Transport::Mqtts | Transport::Wss);
    let (password, password_file) = secret(&broker, "password", "password_file");
    let settings = mqtt::Settings {
        address,
        client_id: broker.or("client_id", "mqtt-rest-gateway", word).into(),
        share_group: broker.parsed("share_group", group),
        former_share_groups: broker.parsed("former_share_group", group).into_iter().collect(),
        reconnect_max: broker.or("reconnect_max", "2s", positive_duration),
        session_expiry: broker.or("session_expiry", "7d", duration),
        keep_alive: broker.or("keep_alive", "30s", |text| {
            let keep_alive = duration(text)?;
            if (5..=65_535).contains(&keep_alive.as_secs()) {
                Ok(keep_alive)
            } else {
                Err(format!("`{text}` is out of range; write 5s to 18h"))
            }
        }),
        max_pending: broker.or("max_pending", "2048", |text| {
            let wanted = "a number from 1 to 65535 is wanted here";
            text.parse().ok().filter(|n| *n > 0).ok_or_else(|| format!("`{text}`: {wanted}"))
        }),
        max_pending_bytes: broker.or("max_pending_bytes", "64MiB", size),
        max_packet: broker.or("max_packet", "2MiB", |text| {
            u32::try_from(size(text)?)
                .map_err(|_| format!("`{text}` is too large; a packet has at most 256MiB"))
        }),
        ack_hold: broker.or("ack_hold", "100ms", |text| match text {
            "forever" => Ok(None),
            text => duration(text).map(Some).map_err(|error| format!("{error}, or `forever`")),
        }),
        username: broker.parsed("username", |text| Ok(text.to_owned())),
        password,
        password_file,
        tls: certificates(&broker, Some(encrypted)),
    };
    broker.finish();
    settings
}

/// The name of a group of a shared subscription [MQTT-4.8.2-1].
fn group(text: &str) -> Result<Box<str>, String> {
    if text.contains(['/', '+', '#']) {
        Err(format!("`{text}` is no group name; it has no `/`, `+` or `#`"))
    } else {
        word(text).map(Into::into)
    }
}

fn upstream(root: &Section<'_>, device: &Section<'_>) -> Option<upstream::Settings> {
    let section = root.section("upstream");
    let url = section.required("url", base_url, "missing: where the REST API lives");
    let attempt_timeout = section.or("attempt_timeout", "10s", positive_duration);
    let deadline = section.or("deadline", "30s", positive_duration);
    if attempt_timeout > deadline {
        let text =
            "an attempt may take longer than the whole message; write at most the `deadline`";
        section.mistake(None, "attempt_timeout", text);
    }
    let retry = section.section("retry");
    let backoff = Backoff {
        initial: retry.or("initial", "200ms", duration),
        max: retry.or("max", "10s", duration),
    };
    if backoff.initial > backoff.max {
        retry.mistake(
            None,
            "initial",
            "the first wait is longer than the longest; write at most `max`",
        );
    }
    retry.finish();
    let breaker = section.section("breaker");
    let breaker_settings = upstream::BreakerSettings {
        devices: breaker.or("devices", "3", number),
        probe: Backoff {
            initial: breaker.or("probe", "1s", duration),
            max: breaker.or("probe_max", "30s", duration),
        },
        probe_path: {
            let path = breaker.or("probe_path", "/", |text| {
                if text.is_empty() || text.starts_with('/') && !text.contains([' ', '#']) {
                    Ok(text.to_owned())
                } else {
                    Err(format!("`{text}` is no path; write `/health`, or \"\" for no probe"))
                }
            });
            (!path.is_empty()).then(|| path.into())
        },
    };
    breaker.finish();
    let rate = section.section("rate");
    let rates = upstream::Rates {
        total: rate.parsed("total", str::parse),
        per_device: rate.parsed("per_device", str::parse),
        // These come with the table.
        rows: Vec::new(),
    };
    rate.finish();
    let settings = upstream::Settings {
        attempt_timeout,
        deadline,
        max_in_flight: section.or("max_in_flight", "256", number),
        max_request_bytes: section.or("max_request_bytes", "1MiB", size),
        max_response_bytes: section.or("max_response_bytes", "1MiB", size),
        max_held_response_bytes: section.or("max_held_response_bytes", "32MiB", size),
        max_filter_bytes: section.or("max_filter_bytes", "256KiB", size),
        key_header: device.or("key_header", "Authorization", key_header),
        key_prefix: device.or("key_prefix", "", key_prefix).into(),
        proxy: section.parsed("proxy", proxy),
        tls: certificates(&section, url.as_ref().map(|url| url.scheme() == "https")),
        backoff,
        breaker: breaker_settings,
        rates,
        // The settings are not used when it is wrong; everything else is read all the same.
        url: url.clone().unwrap_or_else(|| Url::parse("http://-").expect("this is a URL")),
    };
    section.finish();
    url.map(|_| settings)
}

/// A topic for replies or dead letters; empty is none. Every route must be able to fill it in.
fn destination(
    root: &Section<'_>,
    section: &'static str,
    key: &'static str,
    default: &str,
    table: &Table,
    given: &[&str],
) -> Option<Template> {
    let section = root.section(section);
    let names = |template: &Template| -> Result<(), String> {
        for name in template.names().filter(|name| !given.contains(name)) {
            if let Some(route) = table.routes.iter().find(|route| !route.on.captures(name)) {
                return Err(format!("`{{{name}}}` is not captured by route `{}`", route.name));
            }
        }
        Ok(())
    };
    let scalar = section.scalar(key);
    let written = scalar.is_some();
    let (text, span, place) = match scalar {
        Some(scalar) => (scalar.text.into_owned(), scalar.span, scalar.place),
        None => (default.to_owned(), None, section.place(key)),
    };
    section.finish();
    if text.is_empty() {
        return None;
    }
    match table::topic_template(&text).and_then(|template| names(&template).map(|()| template)) {
        Ok(template) => {
            // A row would take what the gateway says there for a device's message.
            let pattern = Pattern::parse(template.as_str()).ok();
            let listens = |route: &&Route| pattern.as_ref().is_some_and(|p| p.overlaps(&route.on));
            if let Some(route) = table.routes.iter().find(listens) {
                let text =
                    format!("route `{}` listens there; write another topic, or \"\"", route.name);
                root.mistake_at(span, &place, text);
            }
            Some(template)
        }
        // A default that does not fit another table's captures is simply not used.
        Err(_) if !written => None,
        Err(text) => {
            root.mistake_at(span, &place, text);
            None
        }
    }
}
