//! Load that is accounted for: devices that number their messages and see each through to the
//! broker, an API that writes down what arrives, and the verdict over the two.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fmt, io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::{
        StatusCode,
        header::{CONTENT_ENCODING, CONTENT_TYPE, RETRY_AFTER},
    },
    response::{IntoResponse, Response},
    routing::post,
};
use fastrand::Rng;
use serde_json::{Map, Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::MutexGuard,
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::wire::{Packet, Props, Publish, Wire};

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
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let desk = Arc::<Desk>::default();
        let router = Router::new()
            .route("/{incarnation}/v1/devices/{device}/telemetry", post(take))
            .route("/{incarnation}/v1/devices/telemetries", post(take_many))
            .with_state(desk.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
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
    #[allow(dead_code, reason = "the soak sends none")]
    pub fn batches(&self) -> u64 {
        self.desk.batches.load(Ordering::Relaxed)
    }

    /// How many different messages it has taken.
    pub fn distinct(&self) -> usize {
        let arrivals = self.desk.arrivals.lock().unwrap();
        let taken = arrivals.iter().filter(|arrival| arrival.taken);
        taken.map(|arrival| (&*arrival.device, arrival.n)).collect::<BTreeSet<_>>().len()
    }
}

async fn take(
    State(desk): State<Arc<Desk>>,
    Path((incarnation, device)): Path<(u32, String)>,
    body: Bytes,
) -> Response {
    if let Some(fault) = device.strip_prefix(POISON) {
        return poison(fault).await;
    }
    let n = serde_json::from_slice::<Value>(&body).unwrap()["n"].as_u64().unwrap();
    let status = note(&desk, incarnation, device, n).await;
    let status = StatusCode::from_u16(status).unwrap();
    (status, [(CONTENT_TYPE, "application/json")], "{}").into_response()
}

/// What an API does to devices that it serves badly, always; by the end of their names.
async fn poison(fault: &str) -> Response {
    let json = [(CONTENT_TYPE, "application/json")];
    match fault {
        "busy" => (StatusCode::TOO_MANY_REQUESTS, [(RETRY_AFTER, "0")]).into_response(),
        "patience" => (StatusCode::TOO_MANY_REQUESTS, [(RETRY_AFTER, "40")]).into_response(),
        "hang" => std::future::pending().await,
        "page" => (StatusCode::OK, json, "<html>log in</html>").into_response(),
        "coded" => (StatusCode::OK, [(CONTENT_ENCODING, "gzip")], "{}").into_response(),
        "wordy" => {
            let long = "x".repeat(5000);
            (StatusCode::OK, [(CONTENT_TYPE, long)], vec![b'['; 500_000]).into_response()
        }
        _ => (StatusCode::INTERNAL_SERVER_ERROR, json, "{}").into_response(),
    }
}

/// As the page of this call has it: each device gets its own answer.
async fn take_many(
    State(desk): State<Arc<Desk>>,
    Path(incarnation): Path<u32>,
    body: Bytes,
) -> impl IntoResponse {
    let entries: Map<String, Value> = serde_json::from_slice(&body).unwrap();
    desk.batches.fetch_add(1, Ordering::Relaxed);
    let mut answers = Map::new();
    for (device, entry) in entries {
        assert_eq!(entry["access_token"], format!("key-of-{device}"));
        let status = note(&desk, incarnation, device.clone(), entry["n"].as_u64().unwrap()).await;
        let answer = if status == 200 { json!({}) } else { json!({"error": "not now"}) };
        answers.insert(device, answer);
    }
    let all = answers.values().all(|answer| answer == &json!({}));
    let status = if all { StatusCode::CREATED } else { StatusCode::UNPROCESSABLE_ENTITY };
    (status, [(CONTENT_TYPE, "application/json")], Value::from(answers).to_string())
}

/// Writes down what came and says what it gets, after a while.
async fn note(desk: &Desk, incarnation: u32, device: String, n: u64) -> u16 {
    let failing = desk.failing.lock().unwrap().contains(&device);
    let status = match desk.status.load(Ordering::Relaxed) {
        0 | 200 if failing => 500,
        0 => 200,
        status => status,
    };
    let (at, taken) = (Instant::now(), status == 200);
    let seed = device.bytes().fold(n, |seed, byte| seed.wrapping_mul(31) + u64::from(byte));
    desk.arrivals.lock().unwrap().push(Arrival { incarnation, device, n, at, taken });
    // As the message has it, not as the clock: the same seed gives the same answers.
    let delay = Rng::with_seed(seed).u64(0..=desk.delay.load(Ordering::Relaxed));
    sleep(Duration::from_millis(delay)).await;
    status
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
    #[allow(dead_code, reason = "the soak ends so, the tests count")]
    pub async fn end(&mut self) {
        self.log.ending.store(true, Ordering::Relaxed);
        self.sent().await;
    }

    /// How many messages the broker has.
    pub fn count(&self) -> u64 {
        self.log.sent.lock().unwrap().values().sum()
    }

    /// What became of it all.
    pub fn verdict(&self, api: &Api) -> Verdict {
        let (sent, repeated) = (self.log.sent.lock().unwrap(), self.log.repeated.lock().unwrap());
        Verdict::of(&sent, &repeated, &api.arrivals())
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
            None => wire.insert(self.connect().await?),
        };
        let (id, key) = (self.id.clone(), format!("key-of-{}", self.id));
        let user = vec![("device_id".to_owned(), id), ("access_key".to_owned(), key)];
        let message = Publish {
            topic: format!("v1/device/{}/telemetry", self.id),
            payload: json!({"n": n}).to_string().into_bytes(),
            qos: 1,
            packet_id: 1,
            props: Props { user, ..Props::default() },
            ..Publish::default()
        };
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

    async fn connect(&self) -> io::Result<Wire> {
        let mut wire = Wire::new(TcpStream::connect(("127.0.0.1", self.port)).await?);
        let connect = Packet::Connect {
            client_id: self.id.clone(),
            clean_start: true,
            keep_alive: 0,
            username: None,
            password: None,
            props: Props::default(),
        };
        wire.send(&connect).await?;
        match wire.receive().await? {
            Some(Packet::ConnAck { reason: 0, .. }) => Ok(wire),
            other => Err(io::Error::other(format!("no CONNACK: {other:?}"))),
        }
    }
}

/// What became of the messages.
#[derive(Default)]
pub struct Verdict {
    pub sent: u64,
    pub arrived: u64,
    /// Sent and never arrived.
    pub lost: Vec<(String, u64)>,
    /// First arrived after a later one of its device; or came, on the same gateway, after a later.
    pub disordered: Vec<(String, u64)>,
    /// Taken by the API again from another gateway: was in flight when the first ended.
    pub again: u64,
    /// Taken again from the same gateway, though the device sent it once.
    pub twice: Vec<(String, u64)>,
    /// Longest time without an arrival.
    pub stall: Duration,
}

impl Verdict {
    fn of(
        sent: &BTreeMap<String, u64>,
        repeated: &BTreeSet<(String, u64)>,
        arrivals: &[Arrival],
    ) -> Self {
        let mut verdict = Self { sent: sent.values().sum(), ..Self::default() };
        // By device and message, which gateways brought it to a success.
        let mut taken: BTreeMap<(&str, u64), BTreeSet<u32>> = BTreeMap::new();
        let mut highest: BTreeMap<&str, u64> = BTreeMap::new();
        let mut last: BTreeMap<(&str, u32), u64> = BTreeMap::new();
        for arrival in arrivals {
            let (device, n, incarnation) = (&*arrival.device, arrival.n, arrival.incarnation);
            let name = || (device.to_owned(), n);
            let top = highest.entry(device).or_insert(n);
            let previous = last.insert((device, incarnation), n);
            let first = !taken.contains_key(&(device, n));
            if previous.is_some_and(|previous| previous > n) || first && *top > n {
                verdict.disordered.push(name());
            }
            *top = n.max(*top);
            if !arrival.taken {
                continue;
            }
            let gateways = taken.entry((device, n)).or_default();
            if !gateways.insert(incarnation) {
                if !repeated.contains(&name()) {
                    verdict.twice.push(name());
                }
            } else if gateways.len() > 1 {
                verdict.again += 1;
            }
        }
        let all = sent.iter().flat_map(|(device, count)| (0..*count).map(move |n| (&**device, n)));
        let missing = all.filter(|message| !taken.contains_key(message));
        verdict.lost = missing.map(|(device, n)| (device.to_owned(), n)).collect();
        verdict.arrived = verdict.sent - verdict.lost.len() as u64;
        let gaps = arrivals.windows(2).map(|pair| pair[1].at - pair[0].at);
        verdict.stall = gaps.max().unwrap_or_default();
        verdict
    }

    /// What is promised in any case.
    pub fn nothing_lost_and_all_in_order(&self) {
        assert!(self.lost.is_empty() && self.disordered.is_empty(), "{self:?}");
    }

    /// What is promised to a gateway that lives on: nothing twice.
    pub fn exactly_once(&self) {
        self.nothing_lost_and_all_in_order();
        assert!(self.twice.is_empty() && self.again == 0, "{self:?}");
    }
}

impl fmt::Debug for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sent, arrived, lost, disordered, again, twice, stall } = self;
        let some = |list: &[(String, u64)]| format!("{:?}", &list[..list.len().min(8)]);
        writeln!(f, "sent {sent}, arrived {arrived}, longest stall {stall:?}")?;
        writeln!(f, "lost          {:5} {}", lost.len(), some(lost))?;
        writeln!(f, "out of order  {:5} {}", disordered.len(), some(disordered))?;
        writeln!(f, "twice         {:5} {}", twice.len(), some(twice))?;
        write!(f, "from the next {again:5}")
    }
}
