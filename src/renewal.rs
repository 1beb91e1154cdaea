//! What is renewed while the gateway runs: certificates, keys, passwords and secrets, in files that are read again when
//! they have changed. SIGHUP has all of them looked at now; once a day it is said which certificate ends soon.

use std::{sync::Arc, time::Duration};

use tokio::{
    signal::unix::Signal,
    time::{Instant, interval_at},
};

use crate::{
    config::Config,
    secrets::{Secrets, key_list::KeyList, password::Password},
    tls, wall_clock,
};

/// How often the end of certificates is looked at.
const DAY: Duration = Duration::from_hours(24);

/// The files of a configuration.
pub(crate) struct Renewal {
    tls: [(&'static str, tls::Settings); 2],
    password: Option<Password>,
    secrets: Arc<Secrets>,
    keys: Option<Arc<KeyList>>,
}

impl Renewal {
    pub(crate) fn new(config: &Config) -> Self {
        let Config { broker, upstream, exchange, .. } = config;
        Self {
            tls: [("broker", broker.tls.clone()), ("upstream", upstream.tls.clone())],
            password: broker.password.clone(),
            secrets: upstream.secrets.clone(),
            keys: exchange.keys.clone(),
        }
    }

    /// Watches for as long as the gateway runs.
    pub(crate) async fn run(self, mut hangups: Signal) {
        // At start the warnings of the configuration say it.
        let mut days = interval_at(Instant::now() + DAY, DAY);
        loop {
            tokio::select! {
                hangup = hangups.recv() => match hangup {
                    Some(()) => self.look_now(),
                    // No signal can come any more.
                    None => std::future::pending().await,
                },
                _ = days.tick() => self.warn(),
            }
        }
    }

    /// Each file that has changed is read, which is logged where it happens.
    fn look_now(&self) {
        for (_, tls) in &self.tls {
            tls.look_now();
        }
        if let Some(password) = &self.password {
            password.now();
        }
        for (secret, error) in self.secrets.look_now() {
            tracing::error!(secret, %error, "its file cannot be used; the value read before stays");
        }
        if let Some(error) = self.keys.as_ref().and_then(|keys| keys.look_now()) {
            tracing::error!(%error, "[device] keys_file cannot be used; the keys read before stay");
        }
        tracing::info!(
            "SIGHUP: looked at all files with certificates, keys, passwords and secrets; the configuration itself is \
             read at start only"
        );
        self.warn();
    }

    fn warn(&self) {
        for (section, tls) in &self.tls {
            for warning in tls.warnings(section, wall_clock::now()) {
                tracing::warn!("{warning}");
            }
        }
    }
}
