//! Processes and ports on loopback: the compiled gateway, signals, what a process has used.

use std::{
    env, fs,
    net::TcpListener,
    path::PathBuf,
    process::Stdio,
    sync::atomic::{AtomicU32, Ordering},
};

use tokio::{
    io::AsyncWriteExt,
    net::{TcpSocket, TcpStream},
    process::{Child, Command},
    time::timeout,
};

use crate::patience::{PATIENCE, eventually};

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

pub(crate) fn signal(process: &Child, name: &str) {
    let pid = process.id().expect("the process runs").to_string();
    assert!(
        std::process::Command::new("kill").args(["-s", name, &pid]).status().unwrap().success()
    );
}

/// The compiled gateway, without anything of ours in its environment.
pub fn program() -> Command {
    let mut command = Command::new(program_path());
    for (name, _) in env::vars().filter(|(name, _)| name.starts_with("GATEWAY_")) {
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

/// Where the compiled gateway is: beside this program, or beside the folder of tests or examples that
/// this one is in. `GATEWAY` names another one.
pub fn program_path() -> PathBuf {
    if let Some(named) = env::var_os("GATEWAY") {
        return named.into();
    }
    let own = env::current_exe().unwrap();
    let mut places = own.ancestors().skip(1).take(2).map(|place| place.join("mqtt-rest-gateway"));
    places
        .find(|place| place.is_file())
        .expect("the gateway is not built: cargo build, or --release")
}

/// `MOSQUITTO` names another one than the system's.
pub fn mosquitto() -> PathBuf {
    let usual = ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto", "/usr/bin/mosquitto"];
    let installed = usual.map(PathBuf::from).into_iter().find(|program| program.exists());
    env::var_os("MOSQUITTO")
        .map(PathBuf::from)
        .or(installed)
        .expect("mosquitto is not installed: apt-get install mosquitto, or run ./test")
}

/// Waits until somebody listens.
pub async fn accepts(port: u16) {
    eventually(&format!("somebody listens on {port}"), || async move {
        TcpStream::connect(("127.0.0.1", port)).await.ok()
    })
    .await;
}

/// The most memory that a process has had resident so far, in bytes.
pub fn peak_memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process runs");
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}
