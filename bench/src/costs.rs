//! Where a message's CPU goes: instructions by whose code they are (callgrind), and system calls (perf), of one message that
//! comes alone, of one among many, and of one among many in batches. `cargo run --profile profiling -p bench -- --costs`, as root, which counting system calls takes.
//! What is inlined counts as of whoever wrote it; but Rust's own library as of whoever it is inlined into.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    path::Path,
    process::Stdio,
    time::Duration,
};

use testkit::Broker;
use tokio::{
    process::Command,
    time::{Instant, sleep},
};

use crate::{
    devices::{Load, TELEMETRY, publish},
    process::{Api, PATIENCE, Upstream, broker, build_gateway, profile},
    results::Results,
    scenarios::crosses,
    subject::{Kind, Subject},
};

/// A message that comes alone: each finds everybody asleep, under valgrind as well.
const ALONE: Load = Load { messages: 300, devices: 100, size: 0, per_second: Some(50) };
const SATURATED: Load = Load { messages: 5000, devices: 100, size: 0, per_second: None };
const MASS: Load = Load { messages: 10_000, devices: 1000, ..SATURATED };
/// What is compared, with the load under callgrind and the native one, for which there is time for more.
const COLUMNS: [(&str, Kind, Load, Load); 6] = [
    ("alone: least bridge, one thread", Kind::BridgeOneThread, ALONE, STEADY),
    ("alone: gateway", Kind::Gateway, ALONE, STEADY),
    ("saturated: least bridge, one thread", Kind::BridgeOneThread, SATURATED, MANY),
    ("saturated: gateway", Kind::Gateway, SATURATED, MANY),
    ("mass: least bridge, batch", Kind::BridgeBatch, MASS, MASSES),
    ("mass: gateway, batch", Kind::GatewayBatch, MASS, MASSES),
];
const STEADY: Load = Load { messages: 5000, per_second: Some(500), ..ALONE };
const MANY: Load = Load { messages: 100_000, ..SATURATED };
const MASSES: Load = Load { messages: 100_000, ..MASS };
/// The column by which rows are ordered.
const ORDERED_BY: usize = 1;
/// Whose code it is: the first with one of these in the path of its source file.
const OWNERS: [(&str, &[&str]); 6] = [
    (
        "HTTP: hyper, reqwest, tower",
        &[
            "/hyper",
            "/http",
            "/reqwest",
            "/tower",
            "/h2-",
            "/url-",
            "/want-",
            "/idna-",
            "/percent-",
        ],
    ),
    ("MQTT: rumqttc", &["/rumqttc"]),
    ("tokio, futures", &["/tokio", "/mio-", "/futures", "/flume", "/parking_lot", "/pin-project"]),
    ("JSON, jq", &["/serde", "/jaq", "/hifijson", "/itoa"]),
    ("other crates", &["/registry/"]),
    (LIBRARY, &["/rustc/", "/library/"]),
];
const LIBRARY: &str = "Rust's library";
const OWN: &str = "its own";
const LIBC: &str = "libc: malloc, memcpy";
const CALLS: [&str; 6] = ["epoll_wait", "recvfrom", "sendto", "writev", "write", "futex"];

type Costs = BTreeMap<String, f64>;

/// Measures all columns, and prints.
pub async fn run(record: bool) -> Result<(), String> {
    if profile() != "profiling" {
        return Err("--costs needs the lines that instructions come from: cargo run --profile profiling -p bench -- --costs".to_owned());
    }
    for program in ["valgrind", "callgrind_control", "perf"] {
        let runs = Command::new(program).arg("--version").output().await;
        if !runs.is_ok_and(|output| output.status.success()) {
            return Err(format!(
                "--costs needs {program} (Debian: apt-get install valgrind linux-perf)"
            ));
        }
    }
    build_gateway()?;
    let mut results = Results::new("Costs, ");
    tables(&mut results).await.map_err(|error| error.to_string())?;
    if record {
        results.record().map_err(|error| error.to_string())?;
    }
    Ok(())
}

async fn tables(results: &mut Results) -> io::Result<()> {
    let (mut instructions, mut calls) = (Vec::new(), Vec::new());
    for (_, kind, load, _) in COLUMNS {
        instructions.push(callgrind(kind, load).await?);
    }
    for (_, kind, _, load) in COLUMNS {
        calls.push(perf(kind, load).await?);
    }
    table(results, "instructions", 0, &instructions);
    table(results, "system calls", 2, &calls);
    Ok(())
}

/// One row for each name, the most expensive first; then their sum.
fn table(results: &mut Results, what: &str, digits: usize, columns: &[Costs]) {
    let titles = COLUMNS.map(|(title, ..)| title).join(" | ");
    results.say(&format!(
        "\n| {what} of one message | {titles} |\n| --- |{}",
        " --- |".repeat(COLUMNS.len())
    ));
    let mut names: Vec<&String> = columns.iter().flat_map(Costs::keys).collect();
    names.sort_unstable();
    names.dedup();
    let of = |column: &Costs, name: &str| column.get(name).copied().unwrap_or_default();
    names.sort_by(|a, b| of(&columns[ORDERED_BY], b).total_cmp(&of(&columns[ORDERED_BY], a)));
    for name in names {
        let cells: Vec<_> =
            columns.iter().map(|column| format!("{:.digits$}", of(column, name))).collect();
        results.say(&format!("| {name} | {} |", cells.join(" | ")));
    }
    let sums: Vec<_> =
        columns.iter().map(|column| format!("{:.digits$}", column.values().sum::<f64>())).collect();
    results.say(&format!("| together | {} |", sums.join(" | ")));
}

/// Instructions in the process for each message, by owner.
async fn callgrind(kind: Kind, load: Load) -> io::Result<Costs> {
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("callgrind.out");
    let under = ["valgrind", "-q", "--tool=callgrind", "--instr-atstart=no"].map(str::to_owned);
    let under = [&under[..], &[format!("--callgrind-out-file={}", out.display())]].concat();
    let broker = broker().await;
    let api = Api::start(Upstream::default()).await?;
    let subject = Subject::start_under(&under, kind, broker.port, &api)?;
    warm(&broker, &api, load).await?;
    let pid = subject.process.id().to_string();
    control(&["-i", "on", &pid]).await?;
    publish(broker.port, load).await?;
    api.arrived(load.messages).await?;
    sleep(Duration::from_secs(1)).await;
    control(&["-i", "off", &pid]).await?;
    control(&["-d", &pid]).await?;
    let dump = dir.path().join("callgrind.out.1");
    let since = Instant::now();
    while fs::metadata(&dump).map_or(0, |file| file.len()) == 0 {
        if since.elapsed() > PATIENCE {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "callgrind wrote nothing"));
        }
        sleep(Duration::from_millis(100)).await;
    }
    // It ends only when all is written.
    subject.process.stop().await?;
    Ok(by_owner(&fs::read_to_string(&dump)?, load.messages))
}

async fn warm(broker: &Broker, api: &Api, load: Load) -> io::Result<()> {
    crosses(broker, api, TELEMETRY).await?;
    sleep(Duration::from_millis(500)).await;
    api.reset().await?;
    publish(broker.port, Load { messages: load.devices * 3, ..load }).await?;
    api.arrived(load.devices * 3).await?;
    sleep(Duration::from_secs(1)).await;
    api.reset().await
}

async fn control(arguments: &[&str]) -> io::Result<()> {
    let status = Command::new("callgrind_control")
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .await?;
    if status.success() { Ok(()) } else { Err(io::Error::other("callgrind_control failed")) }
}

/// Sums what each line of a callgrind profile costs itself.
fn by_owner(profile: &str, messages: u64) -> Costs {
    let (mut files, mut objects) = (HashMap::new(), HashMap::new());
    let (mut file, mut object, mut function) = (String::new(), String::new(), String::new());
    let mut costs = Costs::new();
    let mut of_a_call = false;
    for line in profile.lines() {
        if let Some((key, value)) = line.split_once('=') {
            match key {
                "fl" => {
                    file = named(&mut files, value);
                    function.clone_from(&file);
                }
                "fi" | "fe" => file = named(&mut files, value),
                "ob" => object = named(&mut objects, value),
                // A name is given where it comes first, which may be a callee's.
                "cfi" | "cfl" => drop(named(&mut files, value)),
                "cob" => drop(named(&mut objects, value)),
                "calls" => of_a_call = true,
                _ => {}
            }
        } else if line.starts_with(|first: char| first.is_ascii_digit() || "+-*".contains(first)) {
            // What stands behind a call is the callee's, and is counted there.
            if !std::mem::take(&mut of_a_call) {
                let cost = line.split(' ').nth(1).and_then(|cost| cost.parse::<f64>().ok());
                let owner = owner(&file, &function, &object).to_owned();
                *costs.entry(owner).or_default() += cost.unwrap_or_default() / messages as f64;
            }
        }
    }
    costs
}

/// `(7) name` names 7, and `(7)` is that name again.
fn named(names: &mut HashMap<String, String>, value: &str) -> String {
    match value.split_once(' ') {
        Some((id, name)) => {
            names.insert(id.to_owned(), name.to_owned());
            name.to_owned()
        }
        None => names.get(value).cloned().unwrap_or_default(),
    }
}

/// Of a line of this file, in a function of that one.
fn owner(file: &str, function: &str, object: &str) -> &'static str {
    if object.contains(".so") {
        return LIBC;
    }
    let of = |file: &str| {
        let owner = OWNERS.iter().find(|(_, parts)| parts.iter().any(|part| file.contains(part)));
        owner.map_or(OWN, |(name, _)| *name)
    };
    match of(file) {
        LIBRARY => of(function),
        owner => owner,
    }
}

/// System calls of the process for each message.
async fn perf(kind: Kind, load: Load) -> io::Result<Costs> {
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("perf.csv");
    let broker = broker().await;
    let api = Api::start(Upstream::default()).await?;
    let subject = Subject::start(kind, broker.port, &api)?;
    warm(&broker, &api, load).await?;
    let mut counting = count(&out, subject.process.id()).spawn()?;
    // It has no sign that it has begun.
    sleep(Duration::from_millis(500)).await;
    publish(broker.port, load).await?;
    api.arrived(load.messages).await?;
    sleep(Duration::from_millis(500)).await;
    let pid = counting.id().ok_or(io::ErrorKind::NotFound)?.to_string();
    Command::new("kill").args(["-INT", &pid]).status().await?;
    counting.wait().await?;
    Ok(counted(&fs::read_to_string(&out)?, load.messages))
}

fn count(out: &Path, pid: u32) -> Command {
    let single = CALLS.map(|call| format!("syscalls:sys_enter_{call}"));
    let events = format!("raw_syscalls:sys_enter,{}", single.join(","));
    let mut command = Command::new("perf");
    command.args(["stat", "-x", ",", "-e", &events, "-p", &pid.to_string(), "-o"]).arg(out);
    command.stdin(Stdio::null()).stdout(Stdio::null()).kill_on_drop(true);
    command
}

fn counted(csv: &str, messages: u64) -> Costs {
    let mut costs = Costs::new();
    for line in csv.lines() {
        let fields: Vec<_> = line.split(',').collect();
        if let [count, _, event, ..] = fields[..] {
            let count = count.parse::<f64>().unwrap_or_default() / messages as f64;
            costs.insert(event.trim_start_matches("syscalls:sys_enter_").to_owned(), count);
        }
    }
    let all = costs.remove("raw_syscalls:sys_enter").unwrap_or_default();
    let others = all - costs.values().sum::<f64>();
    costs.insert("others".to_owned(), others);
    costs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_line_costs_itself_is_its_owners_and_a_call_is_not() {
        let profile = "positions: line
ob=(1) /bin/gateway
fl=(1) src/mqtt/session.rs
fn=(1) own
10 100
+2 20
cob=(2) /lib/libc.so.6
cfi=(2) malloc.c
cfn=(2) malloc
calls=3 20
* 5000
fi=(3) /home/registry/src/host/hyper-1.0.0/src/lib.rs
7 40
fi=(4) /rustc/1/library/core/src/ptr.rs
* 2
ob=(2)
fl=(2)
fn=(2)
1 60
";
        let costs = by_owner(profile, 2);
        let of = |owner: &str| costs.get(owner).copied();
        assert_eq!(of(OWN), Some(61.0));
        assert_eq!(of("HTTP: hyper, reqwest, tower"), Some(20.0));
        assert_eq!(of(LIBC), Some(30.0));
        assert_eq!(costs.len(), 3);
    }

    #[test]
    fn system_calls_that_are_not_listed_are_the_rest() {
        let csv =
            "10,,raw_syscalls:sys_enter,1,100.00,,\n4,,syscalls:sys_enter_writev,1,100.00,,\n";
        let costs = counted(csv, 2);
        assert_eq!(costs.get("writev"), Some(&2.0));
        assert_eq!(costs.get("others"), Some(&3.0));
    }
}
