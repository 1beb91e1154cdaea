//! Load that is accounted for: devices that number their messages and see each through to the
//! broker, an API that writes down what arrives, and the account over the two.

mod account;

use std::{
    collections::{BTreeMap, BTreeSet},
    env, io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering},
    },
    time::Duration,
};

use fastrand::Rng;
use serde_json::{Map, Value, json};
use tokio::{
    sync::MutexGuard,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

pub use self::account::Account;
use crate::{
    scripted_api::{Reply, Seen, answer_each},
    telemetry,
    wire::{Packet, Wire},
};

/// How long a device waits for the broker before it connects again.
const BROKER_PATIENCE: Duration = Duration::from_secs(3);

/// Where chance comes from: `FAULT_SEED`, or a new seed. It is told when a test fails.
pub struct Seed {
    number: u64,
    _alone: MutexGuard<'static, ()>,
}

impl Seed {
    /// Waits for the test that has one: load upon load would measure the machine.
    pub async fn new() -> Self {
        static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        let told = env::var("FAULT_SEED").ok().map(|text| text.parse().unwrap());
        let number = told.unwrap_or_else(|| fastrand::u64(..));
        Self { number, _alone: ALONE.lock().await }
    }

    pub fn rng(&self) -> Rng {
        Rng::with_seed(self.number)
    }
}

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- again with FAULT_SEED={}", self.number);
        }
    }
}

/// Somewhere between, evenly.
pub fn between(rng: &mut Rng, low: u64, high: u64) -> Duration {
    Duration::from_millis(rng.u64(low..=high))
}

/// A message at the API.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// Which gateway brought it, by the path it was told: what was in flight at the end of one
    /// cannot be taken for the next one's.
    pub incarnation: u32,
    pub device: String,
    pub n: u64,
    pub at: Instant,
    /// It got a success: what did not is no duplicate when it comes again.
    pub taken: bool,
}

#[derive(Default)]
struct Desk {
    arrivals: Mutex<Vec<Arrival>>,
    delay: AtomicU64,
    /// 0 is 200.
    status: AtomicU16,
    /// Devices that get a 500, for as long as they stand here.
    failing: Mutex<BTreeSet<String>>,
    batches: AtomicU64,
}

/// What the name of a device begins with that the API serves badly, always.
pub const POISON: &str = "poison-";

/// The API: takes telemetry and writes down who sent what, in order of arrival.
#[derive(Clone)]
pub struct Api {
    pub port: u16,
    desk: Arc<Desk>,
}

impl Api {
    pub async fn start() -> Self {
        let desk = Arc::<Desk>::default();
        let port = answer_each({
            let desk = desk.clone();
            move |request| desk.reply(request)
        })
        .await;
        Self { port, desk }
    }

    /// Answers take up to this long, from the next message on.
    pub fn delay(&self, by: Duration) {
        let millis = u64::try_from(by.as_millis()).unwrap();
        self.desk.delay.store(millis, Ordering::Relaxed);
    }

    /// Everybody gets this status; 200 is the normal one.
    pub fn answers(&self, status: u16) {
        self.desk.status.store(status, Ordering::Relaxed);
    }

    /// These devices get a 500, nobody else.
    pub fn fails(&self, devices: impl IntoIterator<Item = String>) {
        *self.desk.failing.lock().unwrap() = devices.into_iter().collect();
    }

    /// What has arrived, in order.
    pub fn arrivals(&self) -> Vec<Arrival> {
        self.desk.arrivals.lock().unwrap().clone()
    }

    /// How many calls came that were for many devices.
    pub fn batches(&self) -> u64 {
        self.desk.batches.load(Ordering::Relaxed)
    }

    /// How many different messages it has answered with a success.
    pub fn distinct(&self) -> usize {
        let arrivals = self.desk.arrivals.lock().unwrap();
        let taken = arrivals.iter().filter(|arrival| arrival.taken);
        taken.map(|arrival| (&*arrival.device, arrival.n)).collect::<BTreeSet<_>>().len()
    }
}

impl Desk {
    fn reply(&self, request: &Seen) -> Reply {
        // The path begins with the number of the gateway that was told it.
        match *request.path.split('/').collect::<Vec<_>>() {
            ["", incarnation, "v1", "devices", "telemetries"] => {
                self.take_many(incarnation.parse().unwrap(), &request.body)
            }
            ["", incarnation, "v1", "devices", device, "telemetry"] => {
                if let Some(fault) = device.strip_prefix(POISON) {
                    return poison(fault);
                }
                let n =
                    serde_json::from_str::<Value>(&request.body).unwrap()["n"].as_u64().unwrap();
                let (status, delay) = self.note(incarnation.parse().unwrap(), device, n);
                Reply::status(status).after(delay)
            }
            _ => Reply::status(404),
        }
    }

    /// As the page of this call has it: each device gets its own answer.
    fn take_many(&self, incarnation: u32, body: &str) -> Reply {
        let entries: Map<String, Value> = serde_json::from_str(body).unwrap();
        self.batches.fetch_add(1, Ordering::Relaxed);
        let (mut answers, mut after, mut all) = (Map::new(), Duration::ZERO, true);
        for (device, entry) in entries {
            assert_eq!(entry["access_token"], format!("key-of-{device}"));
            let (status, delay) = self.note(incarnation, &device, entry["n"].as_u64().unwrap());
            all &= status == 200;
            after += delay;
            let answer = if status == 200 { json!({}) } else { json!({"error": "not now"}) };
            answers.insert(device, answer);
        }
        let status = if all { 201 } else { 422 };
        Reply::status(status).body(Value::from(answers).to_string()).after(after)
    }

    /// Writes down what came; the status that it gets, and after how long.
    fn note(&self, incarnation: u32, device: &str, n: u64) -> (u16, Duration) {
        let failing = self.failing.lock().unwrap().contains(device);
        let status = match self.status.load(Ordering::Relaxed) {
            0 | 200 if failing => 500,
            0 => 200,
            status => status,
        };
        let (at, taken) = (Instant::now(), status == 200);
        let seed = device.bytes().fold(n, |seed, byte| seed.wrapping_mul(31) + u64::from(byte));
        let device = device.to_owned();
        self.arrivals.lock().unwrap().push(Arrival { incarnation, device, n, at, taken });
        // As the message has it, not as the clock: the same seed gives the same answers.
        let delay = Rng::with_seed(seed).u64(0..=self.delay.load(Ordering::Relaxed));
        (status, Duration::from_millis(delay))
    }
}

/// What an API does to devices that it serves badly, always; by the end of their names.
fn poison(fault: &str) -> Reply {
    match fault {
        "busy" => Reply::status(429).with("retry-after", "0"),
        "patience" => Reply::status(429).with("retry-after", "40"),
        "hang" => Reply::Hang,
        "page" => Reply::status(200).body("<html>log in</html>"),
        "coded" => Reply::status(200).with("content-encoding", "gzip"),
        "wordy" => {
            Reply::status(200).with("content-type", &"x".repeat(5000)).body(vec![b'['; 500_000])
        }
        _ => Reply::status(500),
    }
}

/// How much is sent.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub devices: usize,
    /// By each of them; 0 is until told to end.
    pub messages: u64,
    /// Longest wait between two of one device.
    pub pause: Duration,
}

/// Devices at work.
pub struct Sending {
    tasks: JoinSet<()>,
    log: Arc<Log>,
}

/// What was sent.
#[derive(Default)]
pub struct Log {
    /// How many of each device the broker has acknowledged.
    sent: Mutex<BTreeMap<String, u64>>,
    /// Sent again because no PUBACK came: the broker may have these twice, and rightly.
    repeated: Mutex<BTreeSet<(String, u64)>>,
    /// Devices finish the message they are at.
    ending: AtomicBool,
}

impl Load {
    /// Lets the devices loose on the broker at this port.
    pub fn start(self, port: u16, rng: &mut Rng) -> Sending {
        let (mut tasks, log) = (JoinSet::new(), Arc::<Log>::default());
        for number in 0..self.devices {
            let device =
                Sender { port, id: format!("d{number}"), rng: rng.fork(), log: log.clone() };
            tasks.spawn(device.run(self));
        }
        Sending { tasks, log }
    }
}

impl Sending {
    /// Waits until everything is sent.
    pub async fn sent(&mut self) {
        while let Some(done) = self.tasks.join_next().await {
            done.unwrap();
        }
    }

    /// Sends nothing more after what is being sent.
    pub async fn end(&mut self) {
        self.log.ending.store(true, Ordering::Relaxed);
        self.sent().await;
    }

    /// How many messages the broker has.
    pub fn count(&self) -> u64 {
        self.log.sent.lock().unwrap().values().sum()
    }

    /// What became of it all.
    pub fn account(&self, api: &Api) -> Account {
        let (sent, repeated) = (self.log.sent.lock().unwrap(), self.log.repeated.lock().unwrap());
        Account::of(&sent, &repeated, &api.arrivals())
    }
}

/// A device that sends one message after the other, each until the broker has it.
struct Sender {
    port: u16,
    id: String,
    rng: Rng,
    log: Arc<Log>,
}

impl Sender {
    async fn run(mut self, load: Load) {
        let (mut wire, mut n) = (None, 0);
        while (load.messages == 0 || n < load.messages) && !self.log.ending.load(Ordering::Relaxed)
        {
            let pause = u64::try_from(load.pause.as_millis()).unwrap();
            sleep(between(&mut self.rng, 0, pause)).await;
            while !matches!(timeout(BROKER_PATIENCE, self.send(&mut wire, n)).await, Ok(Ok(()))) {
                // The broker is away, or was before it answered. Devices come back by themselves.
                wire = None;
                sleep(between(&mut self.rng, 20, 100)).await;
            }
            n += 1;
            self.log.sent.lock().unwrap().insert(self.id.clone(), n);
        }
    }

    /// One message, until its PUBACK.
    async fn send(&mut self, wire: &mut Option<Wire>, n: u64) -> io::Result<()> {
        let wire = match wire {
            Some(wire) => wire,
            None => wire.insert(Wire::connect(self.port, &Packet::connect(&self.id)).await?),
        };
        let message = telemetry(1, &self.id, json!({"n": n}).to_string());
        // Until the PUBACK is here nobody knows whether the broker has it.
        let unsure = (self.id.clone(), n);
        let sure = self.log.repeated.lock().unwrap().insert(unsure.clone());
        wire.send(&Packet::Publish(message)).await?;
        match wire.receive().await? {
            Some(Packet::PubAck { packet_id: 1, .. }) => {}
            other => return Err(io::Error::other(format!("no PUBACK: {other:?}"))),
        }
        if sure {
            self.log.repeated.lock().unwrap().remove(&unsure);
        }
        Ok(())
    }
}
