//! The compiled gateway as a process: how to start it, and what an operator can see of it.

use std::{
    fmt::Write as _,
    fs,
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex},
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
    time::timeout,
};

use crate::{
    broker::Broker,
    patience::{PATIENCE, eventually, while_it_moves},
    process::{peak_memory, program, signal},
    upstream::Upstream,
};

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

    /// Sets a variable that is none of the gateway's own.
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
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

    /// Starts `drain`, which ends when no message has come for this long.
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

/// The compiled gateway as a process.
pub struct Gateway {
    process: Child,
    log: Arc<Mutex<String>>,
    admin: String,
    _config: Option<TempDir>,
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
        let (head, body) = self.ask(path, "").await;
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body)
    }

    /// Content type and body of an admin path for whoever accepts this.
    pub async fn get_as(&self, path: &str, accept: &str) -> (String, String) {
        let (head, body) = self.ask(path, &format!("accept: {accept}\r\n")).await;
        let kind = head.lines().find_map(|line| line.strip_prefix("content-type: ")).unwrap();
        (kind.to_owned(), body)
    }

    async fn ask(&self, path: &str, headers: &str) -> (String, String) {
        let mut stream = TcpStream::connect(&self.admin).await.unwrap();
        let request =
            format!("GET {path} HTTP/1.1\r\nhost: x\r\n{headers}connection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.to_owned(), body.to_owned())
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
            let received = self.metric("mqtt_rest_gateway_messages_received_total", &[]).await;
            match self.metric("mqtt_rest_gateway_messages_pending", &[]).await {
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
        peak_memory(self.process.id().expect("the process runs"))
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if std::thread::panicking() && std::env::var_os("TEST_LOG").is_none() {
            eprintln!("---- log of the gateway\n{}", self.log());
        }
    }
}
