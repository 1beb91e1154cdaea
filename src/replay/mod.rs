//! `replay`: sends kept dead letters through the running gateway again, one by one, in order, and says what
//! became of each.
//!
//! The letters wait in a session of this command's own. A letter is acknowledged to the broker only when
//! its message has been delivered, so whatever ends a replay, the rest is there the next time.

mod error;

use std::{
    collections::{HashMap, VecDeque},
    fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use clap::Args;
use tokio::{
    sync::mpsc,
    time::{Instant, timeout, timeout_at},
};

pub(crate) use self::error::ReplayError;
use self::error::Unsendable;
use crate::{
    config::Config,
    exchange::device_property,
    log::printable,
    message::{Message, Properties, Publication, Purpose},
    metrics::Metrics,
    mqtt::{Connection, Delivery, Mode, Publisher, Settings, Status, Subscriptions},
    secrets::{Secret, password::Password},
    table::{
        Table,
        route::{Credentials, Route},
    },
    topic::{Pattern, PatternIndex, patterns::Patterns, sender::Sender},
    user_properties::UserProperties,
};

/// The level below a device's own where answers to replayed messages come.
const ANSWERS: &str = "replay";
/// The property by which a letter is known that a replayed message has become.
const REPLAYED: &str = "replayed";
/// How long the broker may take to confirm the subscriptions.
const PATIENCE: Duration = Duration::from_secs(30);
/// How much longer than a deadline an answer may take: behind the device's other messages.
const LONGER: Duration = Duration::from_secs(30);
/// The pattern of the letters; all others are those of answers.
const LETTERS: PatternIndex = PatternIndex(0);
/// How many letters and answers may wait here; the broker sends no more at once.
const WAITING: usize = 1024;

/// The arguments of the command.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Client identifier of the session that keeps the letters; without it the gateway's, with `-replay`.
    #[arg(long, value_name = "ID")]
    client_id: Option<String>,
    /// User name for the broker, with --password-file; the gateway's by default.
    #[arg(long, value_name = "NAME", requires = "password_file")]
    username: Option<String>,
    /// File with the password of --username.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// File with lines `device,key`: letters hold no keys.
    #[arg(long, value_name = "FILE")]
    keys: Option<PathBuf>,
    /// Ends when no letter has come for this time.
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = humantime::parse_duration)]
    quiet: Duration,
    /// Say what would be sent; send nothing, keep everything.
    #[arg(long)]
    dry_run: bool,
    /// Forget letters whose message is refused again.
    #[arg(long)]
    drop_refused: bool,
}

/// What became of a letter.
enum Fate {
    Delivered(String),
    Refused(String),
    /// It cannot be sent, or the gateway has not answered.
    Kept(String),
}

struct Replay {
    config: Config,
    arguments: Arguments,
    keys: HashMap<String, Secret>,
    publisher: Publisher,
    deliveries: mpsc::Receiver<Delivery>,
    /// Letters that came while an answer was awaited.
    letters: VecDeque<Delivery>,
    /// Marks the messages of this run; it is random, so that no device can forge it.
    run: String,
}

/// Replays what is kept.
///
/// # Errors
/// [`ReplayError`]: the broker cannot be used, or letters remain.
pub(crate) async fn replay(config: Config, arguments: Arguments) -> Result<(), ReplayError> {
    let keys = arguments.keys.as_deref().map_or_else(|| Ok(HashMap::new()), keys)?;
    let settings = settings(&config, &arguments)?;
    let (client_id, subscriptions) = (settings.client_id.clone(), subscriptions(&config)?);
    let connection = Connection::new(settings, subscriptions, Arc::new(Metrics::default()));
    let (connection, publisher, mut status) = connection?;
    let (sender, deliveries) = mpsc::channel(WAITING);
    let connection = tokio::spawn(connection.run(move |delivery| {
        // One that does not fit is not acknowledged and comes again.
        let _ = sender.try_send(delivery);
    }));
    let settled = |status: &Status| matches!(status, Status::Subscribed | Status::Refused(_));
    let reached = timeout(PATIENCE, status.wait_for(settled)).await.is_ok();
    let stands = status.borrow().clone();
    if !reached || stands != Status::Subscribed {
        return Err(ReplayError::Unread { client_id, status: stands });
    }
    let run = format!("{:016x}", fastrand::u64(..));
    let letters = VecDeque::new();
    let mut replay = Replay { config, arguments, keys, publisher, deliveries, letters, run };
    let result = replay.run(&client_id).await;
    // What is not settled is not acknowledged: it stays in the session.
    replay.publisher.close().await;
    let _ = connection.await;
    result
}

impl Replay {
    async fn run(&mut self, client_id: &str) -> Result<(), ReplayError> {
        let (mut delivered, mut dropped, mut kept) = (0u64, 0u64, Vec::new());
        while let Some(letter) = self.next_letter().await {
            if self.is_echo(&letter.message) {
                // The letter it was sent for is still there.
                letter.receipt.settle().await;
                continue;
            }
            let fate = self.send(&letter.message).await;
            let (word, text) = match &fate {
                Fate::Delivered(text) => ("delivered", text),
                Fate::Refused(text) => ("refused", text),
                Fate::Kept(text) => ("kept", text),
            };
            let about = |name| letter.message.user_property(name).next().unwrap_or_default();
            say(&format!("{word:9}  {}  {}  {text}", about("received_at"), about("topic")))?;
            match fate {
                Fate::Delivered(_) => {
                    delivered += 1;
                    letter.receipt.settle().await;
                }
                Fate::Refused(_) if self.arguments.drop_refused => {
                    dropped += 1;
                    letter.receipt.settle().await;
                }
                Fate::Refused(_) | Fate::Kept(_) => kept.push(letter),
            }
        }
        say(&format!("{delivered} delivered, {dropped} dropped, {} kept", kept.len()))?;
        if delivered + dropped == 0 && kept.is_empty() {
            say(&format!("from now on the broker keeps dead letters for the client {client_id}"))?;
        }
        if kept.is_empty() || self.arguments.dry_run {
            Ok(())
        } else {
            Err(ReplayError::Remain(kept.len()))
        }
    }

    async fn next_letter(&mut self) -> Option<Delivery> {
        if let Some(letter) = self.letters.pop_front() {
            return Some(letter);
        }
        let end = Instant::now() + self.arguments.quiet;
        loop {
            let delivery = timeout_at(end, self.deliveries.recv()).await.ok()??;
            if delivery.subscription == Some(LETTERS) {
                return Some(delivery);
            }
            // An answer that came too late.
            delivery.receipt.settle().await;
        }
    }

    /// Whether it is the letter of a message that this run has sent.
    fn is_echo(&self, letter: &Message) -> bool {
        let mut marks = letter.user_property(REPLAYED);
        marks.any(|mark| *mark == self.run)
    }

    async fn send(&mut self, letter: &Message) -> Fate {
        let publication = match self.message(letter) {
            Ok(publication) => publication,
            Err(why) => return Fate::Kept(why.to_string()),
        };
        if self.arguments.dry_run {
            return Fate::Kept(format!("would be sent, {} bytes", publication.payload.len()));
        }
        let correlation = publication.properties.correlation_data.clone();
        let patience = self.config.upstream.deadline * 2 + LONGER;
        self.publisher.publish(publication).await;
        let end = Instant::now() + patience;
        while let Ok(Some(delivery)) = timeout_at(end, self.deliveries.recv()).await {
            if delivery.subscription == Some(LETTERS) {
                self.letters.push_back(delivery);
                continue;
            }
            let Delivery { message, receipt, .. } = delivery;
            receipt.settle().await;
            if message.properties.correlation_data == correlation {
                let status = message.user_property("status").next().unwrap_or_default();
                if status.starts_with('2') {
                    return Fate::Delivered(status.to_owned());
                }
                let words = String::from_utf8_lossy(&message.payload);
                return Fate::Refused(format!("{status} {}", printable::short_line(&words, 200)));
            }
        }
        Fate::Kept(format!(
            "no answer within {} s: does the gateway run, and its API? It may still be delivered",
            patience.as_secs()
        ))
    }

    /// The message as the device sent it, with a key and a place for the answer, or why not.
    fn message(&self, letter: &Message) -> Result<Publication, Unsendable> {
        let table = &self.config.table;
        let topic = letter.user_property("topic").next().ok_or(Unsendable::OtherMessage)?;
        if letter.user_property("payload").next().is_some() {
            return Err(Unsendable::PayloadCut);
        }
        let (index, captures) = table.patterns.find(topic).ok_or(Unsendable::UnknownTopic)?;
        let route = table.route(Some(index)).ok_or(Unsendable::UnknownTopic)?;
        let identity = &table.identity;
        let device = &*route.sender.id(&captures).unwrap_or_default();
        let asks = route.credentials != Credentials::None;
        let brings_key =
            matches!(route.credentials, Credentials::Message | Credentials::MessageOrIgnore);
        let key = self.keys.get(device).filter(|_| asks);
        if key.is_none() && brings_key {
            return Err(Unsendable::KeyMissing);
        }
        let own = letter.properties.user.iter().filter_map(|(name, value)| {
            let name = device_property(name)?;
            let spoken_for = [&*identity.id_property, &*identity.key_property, REPLAYED];
            (!spoken_for.contains(&name)).then_some((name, value))
        });
        let mut user: UserProperties = own.collect();
        if let Some(key) = key {
            user.push(&identity.id_property, device);
            user.push(&identity.key_property, key.expose());
        }
        user.push(REPLAYED, &self.run);
        let below = route.sender.own(&route.on, topic).map(|own| format!("{own}/{ANSWERS}"));
        let sender = table.patterns.sender(index, &captures).unwrap_or_default();
        let below = below.filter(|below| !table.patterns.is_anothers(below, &sender));
        let answers = below.or_else(|| table.replays.as_deref().map(str::to_owned));
        Ok(Publication {
            purpose: Purpose::Push,
            topic: topic.to_owned(),
            payload: letter.payload.clone(),
            retain: false,
            properties: Properties {
                user,
                response_topic: Some(answers.ok_or(Unsendable::AnswerImpossible)?),
                correlation_data: Some(Bytes::from(format!("{:016x}", fastrand::u64(..)))),
                content_type: letter.properties.content_type.clone(),
                ..Properties::default()
            },
        })
    }
}

fn settings(config: &Config, arguments: &Arguments) -> Result<Settings, ReplayError> {
    let broker = config.broker.clone();
    let client_id = match &arguments.client_id {
        Some(client_id) => client_id.as_str().into(),
        None => format!("{}-replay", broker.client_id).into(),
    };
    if client_id == broker.client_id {
        return Err(ReplayError::OwnSession);
    }
    let broker = match (&arguments.username, &arguments.password_file) {
        (None, None) => broker,
        (username, password_file) => Settings {
            username: username.clone(),
            password: password_file.as_deref().map(password).transpose()?,
            ..broker
        },
    };
    Ok(Settings {
        client_id,
        share_group: None,
        // For ever [MQTT 5.0, 3.1.2.11.2]: letters wait for a person.
        session_expiry: Duration::from_secs(u32::MAX.into()),
        // In order, however long one takes.
        ack_hold: None,
        ..broker
    })
}

/// The letters first, then the places of answers: below every device, and one for all that have none.
fn subscriptions(config: &Config) -> Result<Subscriptions, ReplayError> {
    let letters = config.exchange.dead_letter.as_ref();
    let letters = letters.ok_or(ReplayError::NothingKept)?;
    // The letters first, see `LETTERS`.
    let mut patterns = vec![pattern(letters.as_str())?];
    let table = &config.table;
    let Table { routes, replays, .. } = &**table;
    for route in routes {
        let below = route.sender.levels(&route.on).and_then(|levels| {
            let levels: Vec<_> =
                route.on.as_str().split('/').take(levels).chain([ANSWERS]).collect();
            // A name of many levels leaves nothing below it.
            Pattern::parse(&levels.join("/")).ok()
        });
        patterns.extend(below);
    }
    // Only where it is needed: a broker's access list has to allow it.
    let nowhere = |route: &Route| !route.swallows() && route.sender.levels(&route.on).is_none();
    if table.patterns.is_mixed() || routes.iter().any(nowhere) {
        patterns.extend(replays.as_deref().map(pattern).transpose()?);
    }
    let rows = patterns.into_iter().map(|on| (on.clone(), Sender::Made(on)));
    let patterns = Arc::new(Patterns::new(rows.collect()));
    Ok(Subscriptions { patterns, names: Vec::new(), mode: Mode::Serve })
}

fn pattern(topic: &str) -> Result<Pattern, ReplayError> {
    Pattern::parse(topic).map_err(|trouble| ReplayError::Topic { topic: topic.to_owned(), trouble })
}

fn password(file: &Path) -> Result<Password, ReplayError> {
    Password::file(file).map_err(|error| ReplayError::Password { file: file.to_owned(), error })
}

fn keys(file: &Path) -> Result<HashMap<String, Secret>, ReplayError> {
    let text = fs::read_to_string(file)
        .map_err(|error| ReplayError::Unreadable { file: file.to_owned(), error })?;
    let mut keys = HashMap::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.is_empty()) {
        // Not echoed: it holds a key.
        let pair =
            line.split_once(',').filter(|(device, key)| !device.is_empty() && !key.is_empty());
        let (device, key) =
            pair.ok_or_else(|| ReplayError::NoKeys { file: file.to_owned(), line: number + 1 })?;
        keys.insert(device.trim().to_owned(), Secret::new(key.trim()));
    }
    Ok(keys)
}

fn say(text: &str) -> Result<(), ReplayError> {
    writeln!(io::stdout(), "{}", printable::line(text)).map_err(ReplayError::Output)
}
