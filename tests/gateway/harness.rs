//! The harness: a real mosquitto, a wiremock API, the compiled gateway and devices that speak raw
//! MQTT, as verbs. A test reads: start, say, expect.

use std::{
    fmt::{self, Write as _},
    fs,
    future::Future,
    net::TcpListener,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, AtomicU32, Ordering},
    },
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpSocket, TcpStream},
    process::{Child, Command},
    sync::mpsc,
    time::{Instant, sleep, timeout},
};
use wiremock::{
    Mock, MockServer, Request, ResponseTemplate,
    matchers::{method, path},
};

use crate::wire::{Packet, Props, Publish, Wire, WireWriter};

/// How long nothing may move, on a slow machine, before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// How long is waited to see that nothing comes.
pub const QUIET: Duration = Duration::from_millis(300);

/// Polls until `condition` yields a value: for one step, which takes no longer than [`PATIENCE`].
pub async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut condition: impl FnMut() -> F,
) -> T {
    while_it_moves(what, || {
        let step = condition();
        async move { step.await.ok_or(()) }
    })
    .await
}

/// Polls until `condition` yields a value: for many steps. It yields how far things have got until
/// then, and patience begins anew with every change of that: how fast the machine is decides nothing.
pub async fn while_it_moves<T, P: PartialEq + fmt::Debug, F: Future<Output = Result<T, P>>>(
    what: &str,
    mut condition: impl FnMut() -> F,
) -> T {
    let (mut before, mut moved) = (None, Instant::now());
    loop {
        let progress = match condition().await {
            Ok(value) => return value,
            Err(progress) => Some(progress),
        };
        if progress != before {
            (before, moved) = (progress, Instant::now());
        }
        assert!(moved.elapsed() < PATIENCE, "nothing moves: {what}; got to {before:?}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// A mosquitto process of this test's own, with a session store that outlives a restart.
pub struct Broker {
    dir: TempDir,
    pub port: u16,
    process: Child,
}

impl Broker {
    pub async fn start() -> Self {
        Self::configured("").await
    }

    /// With more lines for `mosquitto.conf`.
    pub async fn configured(lines: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        // As root mosquitto changes its user, who could not write to the directory.
        let conf = format!(
            "user root\nlistener {port} 127.0.0.1\nallow_anonymous true\npersistence true\n\
             persistence_location {}/\nlog_dest file {0}/log\nlog_type all\n{lines}\n",
            dir.path().display()
        );
        fs::write(dir.path().join("mosquitto.conf"), conf).unwrap();
        let process = spawn_mosquitto(dir.path());
        let broker = Self { dir, port, process };
        broker.accepts().await;
        broker
    }

    async fn accepts(&self) {
        let port = self.port;
        eventually("mosquitto accepts", || async move {
            TcpStream::connect(("127.0.0.1", port)).await.ok()
        })
        .await;
    }

    /// Stops it as an operator would; its sessions are saved.
    pub async fn stop(&mut self) {
        signal(&self.process, "TERM");
        timeout(PATIENCE, self.process.wait()).await.unwrap().unwrap();
    }

    /// Its sessions are saved as far as it has got with that: usually not at all.
    pub async fn kill(&mut self) {
        self.process.kill().await.unwrap();
    }

    pub async fn start_again(&mut self) {
        self.process = spawn_mosquitto(self.dir.path());
        self.accepts().await;
    }

    pub fn url(&self) -> String {
        format!("mqtt://127.0.0.1:{}", self.port)
    }

    /// A device that listens on everything below its own topics.
    pub async fn device(&self, id: &str) -> Device {
        Device::connect(self.port, id, &format!("v1/device/{id}/#"), None).await
    }

    /// A client that listens elsewhere.
    pub async fn observer(&self, filter: &str) -> Device {
        self.listener("observer", filter).await
    }

    /// A client with a name that listens to `filter`.
    pub async fn listener(&self, id: &str, filter: &str) -> Device {
        Device::connect(self.port, id, filter, None).await
    }

    /// A client that logs in, with this user's name as its password.
    pub async fn login(&self, id: &str, user: &str, filter: &str) -> Device {
        Device::connect(self.port, id, filter, Some(user)).await
    }
}

fn spawn_mosquitto(dir: &Path) -> Child {
    // Another version than the system's: name its program in MOSQUITTO.
    let named = std::env::var_os("MOSQUITTO").map(PathBuf::from);
    let usual = ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto", "/usr/bin/mosquitto"];
    let program = named
        .or_else(|| usual.map(PathBuf::from).into_iter().find(|program| program.exists()))
        .expect("mosquitto is not installed: apt-get install mosquitto, or run ./test");
    Command::new(program)
        .arg("-c")
        .arg(dir.join("mosquitto.conf"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}

/// A port for a program that wants to be told one: below those that the system hands out by itself,
/// and in a stretch that only this process uses.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let number = std::process::id().wrapping_mul(16) + NEXT.fetch_add(1, Ordering::Relaxed);
        let port = 10_000 + u16::try_from(number % 20_000).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// An address where nobody listens, for as long as the socket lives.
pub fn nobody() -> (TcpSocket, String) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap().to_string();
    (socket, address)
}

fn signal(process: &Child, name: &str) {
    let pid = process.id().expect("the process runs").to_string();
    assert!(
        std::process::Command::new("kill").args(["-s", name, &pid]).status().unwrap().success()
    );
}

/// The REST API.
pub struct Upstream {
    server: MockServer,
    /// wiremock prefers lower numbers: what is said later goes first.
    priority: AtomicU8,
}

impl Upstream {
    pub async fn start() -> Self {
        Self { server: MockServer::start().await, priority: AtomicU8::new(254) }
    }

    pub fn url(&self) -> String {
        self.server.uri()
    }

    /// Answers a call so, from now on, before anything that was said earlier.
    pub async fn answers(&self, verb: &str, at: &str, status: u16, body: Value) {
        self.responds(verb, at, ResponseTemplate::new(status).set_body_json(body)).await;
    }

    pub async fn responds(&self, verb: &str, at: &str, response: ResponseTemplate) {
        let mock = Mock::given(method(verb)).and(path(at)).respond_with(response);
        mock.with_priority(self.priority()).mount(&self.server).await;
    }

    /// Answers every call that matches so.
    pub async fn responds_to(
        &self,
        what: impl wiremock::Match + 'static,
        status: u16,
        body: Value,
    ) {
        let response = ResponseTemplate::new(status).set_body_json(body);
        let mock = Mock::given(what).respond_with(response);
        mock.with_priority(self.priority()).mount(&self.server).await;
    }

    /// Answers the next `times` calls so.
    pub async fn responds_times(
        &self,
        verb: &str,
        at: &str,
        times: u64,
        response: ResponseTemplate,
    ) {
        let mock = Mock::given(method(verb)).and(path(at)).respond_with(response);
        mock.up_to_n_times(times).with_priority(self.priority()).mount(&self.server).await;
    }

    fn priority(&self) -> u8 {
        self.priority.fetch_sub(1, Ordering::Relaxed)
    }

    /// What arrived, in order.
    pub async fn requests(&self) -> Vec<Request> {
        self.server.received_requests().await.unwrap()
    }

    /// `POST /path` for each request that arrived, in order.
    pub async fn calls(&self) -> Vec<String> {
        let requests = self.requests().await;
        requests.iter().map(|r| format!("{} {}", r.method, r.url.path())).collect()
    }

    pub async fn count(&self, call: &str) -> usize {
        self.calls().await.iter().filter(|c| *c == call).count()
    }

    pub async fn arrived(&self, call: &str, count: usize) {
        while_it_moves(&format!("{count} x {call}"), || async {
            let arrived = self.count(call).await;
            if arrived >= count { Ok(()) } else { Err(arrived) }
        })
        .await;
    }
}

/// The compiled gateway as a process.
pub struct Gateway {
    process: Child,
    log: Arc<Mutex<String>>,
    admin: String,
    _config: Option<TempDir>,
}

/// How to start a gateway.
#[derive(Default, Clone)]
pub struct Options {
    env: Vec<(String, String)>,
    config: Option<String>,
    /// What `ulimit` is told before.
    limit: Option<String>,
}

impl Options {
    /// Sets a configuration key through the environment: `BROKER_ACK_HOLD`.
    pub fn set(mut self, key: &str, value: &str) -> Self {
        self.env.push((format!("GATEWAY_{key}"), value.to_owned()));
        self
    }

    /// A configuration of its own instead of the shipped one.
    pub fn config(mut self, text: &str) -> Self {
        self.config = Some(text.to_owned());
        self
    }

    /// So many file descriptors and no more.
    pub fn descriptors(mut self, count: u32) -> Self {
        self.limit = Some(format!("-n {count}"));
        self
    }

    /// So many, and as many as the system allows for the asking.
    pub fn soft_descriptors(mut self, count: u32) -> Self {
        self.limit = Some(format!("-S -n {count}"));
        self
    }

    /// Starts and waits until it is ready.
    pub async fn start(self, broker: &Broker, upstream: &Upstream) -> Gateway {
        let options = self.set("BROKER_URL", &broker.url()).set("UPSTREAM_URL", &upstream.url());
        let gateway = options.spawn().await;
        gateway.ready().await;
        gateway
    }

    /// Starts, and waits for the admin endpoint only.
    pub async fn spawn(self) -> Gateway {
        self.spawn_command(&["run"]).await
    }

    /// The same to deliver what is left, ending after so much quiet.
    pub async fn drain(self, quiet: &str) -> Gateway {
        self.spawn_command(&["drain", "--quiet", quiet]).await
    }

    /// Another command that runs until it is told to stop.
    pub async fn command(self, arguments: &[&str]) -> Gateway {
        self.spawn_command(arguments).await
    }

    async fn spawn_command(self, arguments: &[&str]) -> Gateway {
        let mut command = match &self.limit {
            None => program(),
            Some(limit) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!("ulimit {limit} && exec \"$0\" \"$@\"")]);
                shell.arg(program().as_std().get_program());
                shell
            }
        };
        command.args(arguments);
        let config = self.config.map(|text| {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("config.toml"), text).unwrap();
            command.arg("--config").arg(dir.path().join("config.toml"));
            dir
        });
        command
            .env("GATEWAY_ADMIN_LISTEN", "127.0.0.1:0")
            .env("GATEWAY_UPSTREAM_RETRY_INITIAL", "20ms");
        for (name, value) in &self.env {
            command.env(name, value);
        }
        let mut process = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        tokio::spawn({
            let log = log.clone();
            async move {
                while let Ok(Some(line)) = lines.next_line().await {
                    if std::env::var_os("TEST_LOG").is_some() {
                        eprintln!("{line}");
                    }
                    writeln!(log.lock().unwrap(), "{line}").unwrap();
                }
            }
        });
        let admin = eventually("the admin endpoint", || async {
            let log = log.lock().unwrap();
            let line = log.lines().find(|line| line.contains("admin endpoint"))?;
            // As text, or as JSON.
            let address = line.split("address").nth(1)?.trim_start_matches(['=', '"', ':']);
            Some(address.split([' ', '"']).next()?.to_owned())
        })
        .await;
        Gateway { process, log, admin, _config: config }
    }
}

/// The program, without anything of ours in its environment.
pub fn program() -> Command {
    // An example is not told where the program is: it lies beside the folder of examples.
    let told = option_env!("CARGO_BIN_EXE_mqtt-rest-gateway").map(PathBuf::from);
    let mut command = Command::new(told.unwrap_or_else(|| {
        let own = std::env::current_exe().unwrap();
        own.ancestors().nth(2).unwrap().join("mqtt-rest-gateway")
    }));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("GATEWAY_")) {
        command.env_remove(name);
    }
    command
}

/// Runs the program to its end; exit code, standard output, standard error.
pub async fn run(arguments: &[&str], input: &str) -> (i32, String, String) {
    let mut process = program()
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    process.stdin.take().unwrap().write_all(input.as_bytes()).await.unwrap();
    let output = timeout(PATIENCE, process.wait_with_output()).await.unwrap().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

impl Gateway {
    pub async fn start(broker: &Broker, upstream: &Upstream) -> Self {
        Options::default().start(broker, upstream).await
    }

    pub async fn ready(&self) {
        eventually("ready", || async { (self.get("/readyz").await.0 == 200).then_some(()) }).await;
    }

    /// Status and body of an admin path.
    pub async fn get(&self, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.admin).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let body = answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap();
        (status, body)
    }

    /// The value of a metric; every given label must be there.
    pub async fn metric(&self, name: &str, labels: &[&str]) -> u64 {
        let (_, text) = self.get("/metrics").await;
        let lines = text.lines().filter(|line| {
            line.split(['{', ' ']).next() == Some(name)
                && labels.iter().all(|label| line.contains(label))
        });
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }

    pub async fn metric_reaches(&self, name: &str, labels: &[&str], value: u64) {
        while_it_moves(&format!("{name} {labels:?} >= {value}"), || async {
            let reached = self.metric(name, labels).await;
            if reached >= value { Ok(()) } else { Err(reached) }
        })
        .await;
    }

    /// Waits until it has this value, no more and no less: a reply is on its way before its message
    /// is counted.
    pub async fn metric_is(&self, name: &str, labels: &[&str], value: u64) {
        self.metric_reaches(name, labels, value).await;
        assert_eq!(self.metric(name, labels).await, value, "{name} {labels:?}");
    }

    /// Waits until every message that came is settled.
    pub async fn settles(&self) {
        while_it_moves("everything is settled", || async {
            let received = self.metric("gateway_messages_received_total", &[]).await;
            match self.metric("gateway_messages_pending", &[]).await {
                0 => Ok(()),
                pending => Err((received, pending)),
            }
        })
        .await;
    }

    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub async fn logs(&self, text: &str) {
        eventually(&format!("a log line with {text:?}"), || async {
            self.log().contains(text).then_some(())
        })
        .await;
    }

    pub fn signal(&self, name: &str) {
        signal(&self.process, name);
    }

    pub async fn ended(&mut self) -> ExitStatus {
        timeout(PATIENCE, self.process.wait()).await.expect("the gateway ends").unwrap()
    }

    /// Stops it as an orchestrator would.
    pub async fn stop(&mut self) -> ExitStatus {
        self.signal("TERM");
        self.ended().await
    }

    pub async fn kill(&mut self) {
        self.process.kill().await.unwrap();
    }

    /// Where the admin endpoint listens.
    pub fn admin(&self) -> &str {
        &self.admin
    }

    /// How many files it has open.
    pub fn open_files(&self) -> usize {
        let pid = self.process.id().expect("the process runs");
        fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
    }

    /// How many it may have open.
    pub fn descriptors(&self) -> u64 {
        let pid = self.process.id().expect("the process runs");
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        line.split_whitespace().nth(3).unwrap().parse().unwrap()
    }

    /// The most memory that the process has had resident so far, in bytes.
    pub fn peak_memory(&self) -> u64 {
        let pid = self.process.id().expect("the process runs");
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if std::thread::panicking() && std::env::var_os("TEST_LOG").is_none() {
            eprintln!("---- log of the gateway\n{}", self.log());
        }
    }
}

/// An MQTT client that keeps what it receives and acknowledges it at once.
pub struct Device {
    pub id: String,
    writer: WireWriter,
    inbox: mpsc::Receiver<Publish>,
    replies: mpsc::Receiver<Packet>,
    next_id: u16,
    /// Read, but not what was looked for.
    aside: Vec<Publish>,
}

impl Device {
    async fn connect(port: u16, id: &str, filter: &str, user: Option<&str>) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (mut reader, mut writer) = Wire::new(stream).split();
        let connect = Packet::Connect {
            // A user chooses its client id as it likes.
            client_id: user.map_or_else(|| format!("device-{id}"), |_| id.to_owned()),
            clean_start: true,
            keep_alive: 0,
            username: user.map(str::to_owned),
            password: user.map(|user| user.as_bytes().to_vec()),
            props: Props::default(),
        };
        writer.send(&connect).await.unwrap();
        // QoS 1, no local: a device does not hear itself.
        let filters = vec![(filter.to_owned(), 0b101)];
        writer.send(&Packet::Subscribe { packet_id: 1, filters }).await.unwrap();
        let (inbox_sender, inbox) = mpsc::channel(10_000);
        let (reply_sender, replies) = mpsc::channel(10_000);
        tokio::spawn(async move {
            while let Ok(Some(packet)) = reader.receive().await {
                // A test that has ended does not care.
                let _ = match packet {
                    Packet::Publish(publish) => inbox_sender.send(publish).await.map_err(|_| ()),
                    other => reply_sender.send(other).await.map_err(|_| ()),
                };
            }
        });
        let mut device =
            Self { id: id.to_owned(), writer, inbox, replies, next_id: 1, aside: Vec::new() };
        assert!(matches!(device.reply().await, Packet::ConnAck { reason: 0, .. }));
        assert!(matches!(device.reply().await, Packet::SubAck { reasons, .. } if reasons == [1]));
        device
    }

    async fn reply(&mut self) -> Packet {
        timeout(PATIENCE, self.replies.recv())
            .await
            .expect("an answer of the broker")
            .expect("open")
    }

    pub fn topic(&self, below: &str) -> String {
        format!("v1/device/{}/{below}", self.id)
    }

    /// A message of this device with its credentials, not sent yet.
    pub fn message(&self, below: &str, payload: impl Into<Vec<u8>>) -> Publish {
        let user = vec![
            ("device_id".to_owned(), self.id.clone()),
            ("access_key".to_owned(), format!("key-of-{}", self.id)),
        ];
        Publish {
            topic: self.topic(below),
            payload: payload.into(),
            qos: 1,
            dup: false,
            retain: false,
            packet_id: 0,
            props: Props { user, ..Props::default() },
        }
    }

    /// Publishes and waits for the broker's PUBACK.
    pub async fn publish(&mut self, mut message: Publish) {
        self.next_id = if self.next_id == u16::MAX { 1 } else { self.next_id + 1 };
        message.packet_id = if message.qos == 0 { 0 } else { self.next_id };
        let qos = message.qos;
        self.writer.send(&Packet::Publish(message)).await.unwrap();
        if qos > 0 {
            match self.reply().await {
                Packet::PubAck { packet_id, reason } => {
                    assert_eq!(packet_id, self.next_id);
                    // 16: nobody listens, which is the test's business.
                    assert!(matches!(reason, 0 | 16), "the broker refuses: {reason}");
                }
                other => panic!("no PUBACK: {other:?}"),
            }
        }
    }

    /// Sends JSON below the device's topics, with its credentials.
    pub async fn send(&mut self, below: &str, payload: Value) {
        let message = self.message(below, payload.to_string());
        self.publish(message).await;
    }

    /// The same with a Response Topic and Correlation Data; the answer.
    pub async fn ask(&mut self, below: &str, payload: Value) -> Publish {
        let mut message = self.message(below, payload.to_string());
        message.props.response_topic = Some(self.topic("answers"));
        self.next_id += 1;
        let correlation = format!("q-{}", self.next_id).into_bytes();
        message.props.correlation = Some(correlation.clone());
        self.publish(message).await;
        let topic = self.topic("answers");
        let answer = self.on(&topic).await;
        assert_eq!(answer.props.correlation, Some(correlation));
        answer
    }

    /// The next message, whatever its topic.
    pub async fn next(&mut self) -> Publish {
        if !self.aside.is_empty() {
            return self.aside.remove(0);
        }
        self.receive().await
    }

    /// The next message on this topic; others stay for later.
    pub async fn on(&mut self, topic: &str) -> Publish {
        if let Some(index) = self.aside.iter().position(|message| message.topic == topic) {
            return self.aside.remove(index);
        }
        loop {
            let message = self.receive_for(topic).await;
            if message.topic == topic {
                return message;
            }
            self.aside.push(message);
        }
    }

    async fn receive(&mut self) -> Publish {
        self.receive_for("any topic").await
    }

    async fn receive_for(&mut self, what: &str) -> Publish {
        let message = timeout(PATIENCE, self.inbox.recv())
            .await
            .unwrap_or_else(|_| panic!("{}: nothing on {what}; aside: {:?}", self.id, self.aside))
            .expect("the broker keeps the connection");
        if message.qos == 1 {
            let ack = Packet::PubAck { packet_id: message.packet_id, reason: 0 };
            self.writer.send(&ack).await.unwrap();
        }
        message
    }

    /// Nothing comes for a while.
    pub async fn silent(&mut self) {
        assert!(self.aside.is_empty(), "there is {:?}", self.aside);
        if let Ok(message) = timeout(QUIET, self.receive()).await {
            panic!("{} hears {message:?}", self.id);
        }
    }
}

impl Publish {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.payload)
            .unwrap_or_else(|_| panic!("no JSON: {}", String::from_utf8_lossy(&self.payload)))
    }

    /// The value of a user property.
    pub fn user(&self, name: &str) -> &str {
        let mut values = self.props.user.iter().filter(|(n, _)| n == name);
        values.next().map_or("", |(_, value)| value)
    }
}
