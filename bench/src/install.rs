//! What the peers are made of: npm packages of pinned versions, installed once below target, and the scripts beside them.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{process::Command, time::timeout};

use crate::results::folder;

/// What is copied from bench/peers.
const FILES: [&str; 5] =
    ["package.json", "package-lock.json", "bridge.mjs", "node-red.json", "node-red.js"];
const MINUTES: u64 = 5;

/// Where they are: target/peers.
pub fn place() -> PathBuf {
    folder().join("../target/peers")
}

/// Installs what is missing.
pub async fn install() -> Result<(), String> {
    for program in ["node", "npm"] {
        let runs = Command::new(program).arg("--version").output().await;
        if !runs.is_ok_and(|output| output.status.success()) {
            return Err(format!(
                "--peers needs {program}, which does not run: install Node.js 20 or newer with npm (Debian: apt-get install nodejs npm)"
            ));
        }
    }
    let place = place();
    let is_there = same(&place).unwrap_or(false);
    if !is_there {
        // What is half installed, or of other versions; mostly there is nothing.
        let _ = fs::remove_dir_all(place.join("node_modules"));
    }
    copy(&place).map_err(|error| format!("{} cannot be written: {error}", place.display()))?;
    if is_there {
        return Ok(());
    }
    // No package's own script runs: none is needed, and it could fetch anything.
    let mut npm = Command::new("npm");
    npm.args(["ci", "--omit=dev", "--no-audit", "--no-fund", "--ignore-scripts"]);
    npm.current_dir(&place).kill_on_drop(true);
    match timeout(Duration::from_mins(MINUTES), npm.status()).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(_) => Err("npm ci failed in target/peers: see what it says above".to_owned()),
        Err(_) => Err(format!(
            "npm ci took more than {MINUTES} minutes: run it in target/peers, then try again"
        )),
    }
}

/// npm ends with this file; what was installed is what the lock says.
fn same(place: &Path) -> io::Result<bool> {
    let lock = |folder: PathBuf| fs::read(folder.join("package-lock.json"));
    let complete = place.join("node_modules/.package-lock.json").exists();
    Ok(complete && lock(place.to_owned())? == lock(folder().join("peers"))?)
}

fn copy(place: &Path) -> io::Result<()> {
    fs::create_dir_all(place)?;
    for file in FILES {
        fs::copy(folder().join("peers").join(file), place.join(file))?;
    }
    Ok(())
}
