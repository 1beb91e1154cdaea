//! An MQTT v5 broker inside this process: in memory, on loopback, gone with the process.

use std::{error::Error, net::SocketAddr, time::Duration};

use mqtt5::broker::{
    BrokerConfig, BrokerShutdownHandle, MqttBroker,
    config::{AuthConfig, StorageBackend, StorageConfig},
};
use tokio::{task::JoinHandle, time::timeout};

/// Where people expect a broker.
const USUAL_PORT: u16 = 1883;
/// How long the broker may take to say good-bye to its clients.
const PATIENCE: Duration = Duration::from_secs(5);

/// A broker that accepts connections.
pub(crate) struct Broker {
    address: SocketAddr,
    shutdown: BrokerShutdownHandle,
    task: JoinHandle<mqtt5::Result<()>>,
}

impl Broker {
    /// Starts on the usual port, or on any free one if that is taken.
    pub(crate) async fn start() -> Result<Self, Box<dyn Error>> {
        let mut broker = match MqttBroker::with_config(config(USUAL_PORT)).await {
            Ok(broker) => broker,
            // Most likely taken by a broker that is installed here. If it is anything else, the
            // second try fails as well and tells.
            Err(_) => MqttBroker::with_config(config(0)).await?,
        };
        let address = broker.local_addr().ok_or("the broker has no address")?;
        let shutdown = broker.shutdown_handle();
        let mut ready = broker.ready_receiver();
        let task = tokio::spawn(async move { broker.run().await });
        if ready.wait_for(|ready| *ready).await.is_err() {
            // It ended before it was ready; its result says why.
            task.await??;
            return Err("the broker ended before it was ready".into());
        }
        Ok(Self { address, shutdown, task })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same as a URL.
    pub(crate) fn url(&self) -> String {
        format!("mqtt://{}", self.address)
    }

    /// Stops it.
    pub(crate) async fn stop(self) -> Result<(), Box<dyn Error>> {
        self.shutdown.shutdown();
        timeout(PATIENCE, self.task).await.map_err(|_| "the broker does not stop")???;
        Ok(())
    }
}

fn config(port: u16) -> BrokerConfig {
    BrokerConfig::default()
        .with_bind_address(([127, 0, 0, 1], port))
        .with_auth(AuthConfig::new().with_allow_anonymous(true))
        // The default keeps files in the current directory.
        .with_storage(StorageConfig::new().with_backend(StorageBackend::Memory))
        .with_sys_topics_enabled(false)
}
