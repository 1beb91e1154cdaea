//! Processes and what they cost: the broker, the API, and whoever is measured.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use clap::ValueEnum;
use serde_json::Value;
use tempfile::TempDir;
use testkit::Broker;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use crate::protocol::Protocol;

/// Longest wait for anything.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A process that ends with this value.
pub struct Process(Child);

impl Process {
    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped());
        Ok(Self(command.stderr(Stdio::null()).kill_on_drop(true).spawn()?))
    }

    pub fn id(&self) -> u32 {
        self.0.id().expect("the process runs")
    }

    /// The first line of its standard output.
    async fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        let output = self.0.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        BufReader::new(output).read_line(&mut line).await?;
        Ok(line.trim().to_owned())
    }

    /// CPU time of all its threads so far, as the scheduler counts it.
    pub fn cpu(&self) -> Duration {
        let threads = fs::read_dir(format!("/proc/{}/task", self.id())).expect("the process runs");
        let nanoseconds = threads.filter_map(|thread| {
            let text = fs::read_to_string(thread.ok()?.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        });
        Duration::from_nanos(nanoseconds.sum())
    }

    /// The most memory it has had resident so far, in bytes.
    pub fn peak_memory(&self) -> u64 {
        testkit::peak_memory(self.id())
    }

    /// Asks it to stop and waits until it has; one that does not is killed.
    pub async fn stop(mut self) -> io::Result<()> {
        std::process::Command::new("kill").arg(self.id().to_string()).status()?;
        match timeout(Duration::from_secs(10), self.0.wait()).await {
            Ok(ended) => ended.map(|_| ()),
            Err(_) => self.kill().await,
        }
    }

    /// Ends it as a crash does, and waits until it has.
    pub async fn kill(mut self) -> io::Result<()> {
        self.0.kill().await
    }
}

/// A mosquitto that queues without a limit and sends as much at once as it is asked to.
pub async fn broker() -> Broker {
    Broker::in_memory("max_queued_messages 0\nmax_inflight_messages 0\nset_tcp_nodelay true").await
}

/// How fast the API is, and what it speaks.
#[derive(Debug, Clone, Copy, Default)]
pub struct Upstream {
    /// Of each answer.
    pub delay: Duration,
    /// One request at a time.
    pub serial: bool,
    pub protocol: Protocol,
}

impl Upstream {
    /// Over HTTP/1.1 without TLS.
    pub fn slow(delay: Duration) -> Self {
        Self { delay, ..Self::default() }
    }
}

/// The API in a process of its own.
pub struct Api {
    pub port: u16,
    protocol: Protocol,
    asked: u16,
    dir: TempDir,
    _process: Process,
}

impl Api {
    pub async fn start(upstream: Upstream) -> io::Result<Self> {
        let Upstream { delay, serial, protocol } = upstream;
        let dir = tempfile::tempdir()?;
        let mut command = own();
        command.arg("api").arg("--certificate").arg(certificate(&dir));
        command.args(["--delay-ms", &delay.as_millis().to_string()]);
        command.args(serial.then_some("--serial"));
        let value = protocol.to_possible_value().expect("every protocol can be given");
        command.args(["--protocol", value.get_name()]);
        let mut process = Process::spawn(&mut command)?;
        let line = process.line().await?;
        let (port, asked) = line.split_once(' ').ok_or(io::ErrorKind::InvalidData)?;
        let [port, asked] = [port, asked].map(|port| port.parse().map_err(io::Error::other));
        Ok(Self { port: port?, asked: asked?, protocol, dir, _process: process })
    }

    /// What a gateway has to be told to reach it, as the environment has it.
    pub fn settings(&self) -> Vec<(&'static str, String)> {
        let encrypted = self.protocol.is_encrypted();
        let origin = if encrypted { "https://localhost" } else { "http://127.0.0.1" };
        let mut settings = vec![("GATEWAY_UPSTREAM_URL", format!("{origin}:{}", self.port))];
        if encrypted {
            let certificate = certificate(&self.dir).display().to_string();
            settings.push(("GATEWAY_UPSTREAM_CA_FILE", certificate));
        }
        if self.protocol == Protocol::Http2 {
            settings.push(("GATEWAY_UPSTREAM_HTTP_VERSION", "2".to_owned()));
        }
        settings
    }

    /// Forgets what has arrived.
    pub async fn reset(&self) -> io::Result<()> {
        get(self.asked, "/reset").await.map(|_| ())
    }

    /// What has arrived.
    pub async fn stats(&self) -> io::Result<Value> {
        get(self.asked, "/stats").await
    }

    /// Answers 503 to every message for a while.
    pub async fn down(&self, time: Duration) -> io::Result<()> {
        get(self.asked, &format!("/down/{}", time.as_millis())).await.map(|_| ())
    }

    /// The `n` of each message, in order of arrival.
    pub async fn arrivals(&self) -> io::Result<Vec<u64>> {
        let arrivals = get(self.asked, "/arrivals").await?;
        Ok(arrivals.as_array().into_iter().flatten().filter_map(Value::as_u64).collect())
    }

    /// Waits until this many messages have arrived.
    pub async fn arrived(&self, messages: u64) -> io::Result<Value> {
        let (mut last, mut since) = (0, Instant::now());
        loop {
            let stats = self.stats().await?;
            let count = stats["messages"].as_u64().unwrap_or_default();
            if count >= messages {
                return Ok(stats);
            }
            if count > last {
                (last, since) = (count, Instant::now());
            }
            if since.elapsed() > PATIENCE {
                let silence = PATIENCE.as_secs();
                let missing =
                    format!("{count} of {messages} messages arrived, then nothing for {silence} s");
                return Err(io::Error::new(io::ErrorKind::TimedOut, missing));
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until nothing has arrived for a while.
    pub async fn quiet(&self, time: Duration) -> io::Result<()> {
        let (mut last, mut since) = (Value::Null, Instant::now());
        while since.elapsed() < time {
            let requests = self.stats().await?["requests"].take();
            if requests != last {
                (last, since) = (requests, Instant::now());
            }
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }
}

fn certificate(dir: &TempDir) -> PathBuf {
    dir.path().join("certificate.pem")
}

/// This program.
pub fn own() -> Command {
    Command::new(env::current_exe().expect("a running program has a path"))
}

/// Builds the gateway as this program was built, where this program looks for it; none where `GATEWAY` names one.
pub fn build_gateway() -> Result<(), String> {
    if env::var_os("GATEWAY").is_some() {
        return Ok(());
    }
    let profile = profile();
    let arguments =
        ["build", "--profile", &profile, "--quiet", "--locked", "-p", "mqtt-rest-gateway"];
    let built = std::process::Command::new("cargo").args(arguments).status();
    if built.is_ok_and(|status| status.success()) {
        return Ok(());
    }
    Err("the gateway cannot be built: see what cargo says above".to_owned())
}

/// The profile of this program, which names the folder that it stands in.
pub fn profile() -> String {
    let profile = folder().file_name().map(|name| name.to_string_lossy().into_owned());
    profile.filter(|name| name != "debug").unwrap_or_else(|| "dev".to_owned())
}

fn folder() -> PathBuf {
    let own = env::current_exe().expect("a running program has a path");
    own.parent().unwrap_or(Path::new(".")).to_owned()
}

async fn get(port: u16, path: &str) -> io::Result<Value> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: api\r\n\r\n").as_bytes()).await?;
    stream.shutdown().await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    let body = text.split_once("\r\n\r\n").map(|(_, body)| body).unwrap_or_default();
    serde_json::from_str(body).map_err(io::Error::other)
}
