//! The results of a run: what is printed is kept, and stands first in bench/RESULTS.md if it is to be recorded.

use std::{
    env,
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use crate::scenarios::Figures;

/// The text so far.
pub struct Results(String);

impl Results {
    /// Begins with what it is about, when, of which commit, with which broker.
    pub fn new(about: &str) -> Self {
        let mut results = Self(String::new());
        results.say(&heading(about));
        results
    }

    pub fn say(&mut self, line: &str) {
        println!("{line}");
        self.0.push_str(line);
        self.0.push('\n');
    }

    /// A table of figures begins.
    pub fn table(&mut self) {
        self.say("| scenario | who | CPU us/msg | msg/s | p50 ms | p99 ms | p99.9 ms | peak MiB | CPU ratio | rate ratio | p50 ratio | p99 ratio |");
        self.say("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |");
    }

    /// Medians, and medians of the ratios of each round.
    pub fn row(&mut self, scenario: &str, who: &str, own: &[Figures], base: &[Figures]) {
        let of = |figure: fn(&Figures) -> f64| median(own.iter().map(figure));
        let ratio = |figure: fn(&Figures) -> f64| {
            median(own.iter().zip(base).map(|(own, base)| figure(own) / figure(base)))
        };
        self.say(&format!(
            "| {scenario} | {who} | {:.1} | {:.0} | {:.2} | {:.2} | {:.2} | {:.1} | {:.2} | {:.2} | {:.2} | {:.2} |",
            of(|f| f.cpu), of(|f| f.rate), of(|f| f.p50), of(|f| f.p99), of(|f| f.p999), of(|f| f.memory),
            ratio(|f| f.cpu), ratio(|f| f.rate), ratio(|f| f.p50), ratio(|f| f.p99),
        ));
    }

    /// The newest stands first, behind the introduction.
    pub fn record(&self) -> io::Result<()> {
        let file = folder().join("RESULTS.md");
        let results = fs::read_to_string(&file)?;
        let (before, after) = results.split_at(results.find("\n## ").unwrap_or(results.len()));
        fs::write(&file, format!("{before}\n{}{after}", self.0))
    }
}

/// Where the results, the pictures and the peers stand.
pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

pub fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = figures.collect();
    sorted.sort_unstable_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn heading(about: &str) -> String {
    let said = |program: &Path, arguments: &[&str]| {
        let output = Command::new(program).args(arguments).output();
        output
            .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
            .unwrap_or_default()
    };
    let mut text = format!("## {about}");
    text += said(Path::new("date"), &["-u", "+%Y-%m-%d"]).trim();
    let commit = said(Path::new("git"), &["describe", "--always", "--dirty"]);
    let version = said(&testkit::mosquitto(), &["-h"]);
    // Writing into a string cannot fail.
    let _ = write!(text, ", {}, {}", commit.trim(), version.lines().next().unwrap_or_default());
    if let Some(program) = env::var_os("GATEWAY") {
        let _ = write!(text, ", gateway {}", program.display());
    }
    text.push('\n');
    text
}
