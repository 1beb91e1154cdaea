//! A real mosquitto, a process for each test.

use std::{fs, path::Path, process::Stdio};

use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    time::timeout,
};

use crate::{
    device::Device,
    patience::PATIENCE,
    plain_device::PlainDevice,
    process::{accepts, free_port, mosquitto, signal},
};

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
        let persistence = format!(
            "persistence true\npersistence_location {}/\nlog_dest file {0}/log\nlog_type all",
            dir.path().display()
        );
        Self::launch(dir, &format!("{persistence}\n{lines}")).await
    }

    /// That writes neither sessions nor a log: as quick as it can be.
    pub async fn in_memory(lines: &str) -> Self {
        Self::launch(tempfile::tempdir().unwrap(), lines).await
    }

    async fn launch(dir: TempDir, lines: &str) -> Self {
        let port = free_port();
        // As root mosquitto changes its user, who could not write to the directory.
        let conf = format!("user root\nlistener {port} 127.0.0.1\nallow_anonymous true\n{lines}\n");
        fs::write(dir.path().join("mosquitto.conf"), conf).unwrap();
        let process = spawn(dir.path());
        accepts(port).await;
        Self { dir, port, process }
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
        self.process = spawn(self.dir.path());
        accepts(self.port).await;
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

    /// A device that speaks MQTT 3.1.1 and listens to `filter`.
    pub async fn plain_device(&self, id: &str, filter: &str) -> PlainDevice {
        PlainDevice::connect(self.port, id, filter).await
    }

    /// A client that logs in, with this user's name as its password.
    pub async fn login(&self, id: &str, user: &str, filter: &str) -> Device {
        Device::connect(self.port, id, filter, Some(user)).await
    }
}

fn spawn(dir: &Path) -> Child {
    Command::new(mosquitto())
        .arg("-c")
        .arg(dir.join("mosquitto.conf"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap()
}
