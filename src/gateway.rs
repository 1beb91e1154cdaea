//! Wires the parts together, starts them in order and stops them in order.

use std::{fmt, io, net::SocketAddr, sync::Arc, time::Duration};

use futures_util::future::join;
use tokio::{
    net::TcpListener,
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use crate::{
    admin::{self, About, Health, Pages},
    arrivals::{Arrivals, Arrived},
    config::Config,
    exchange::{Exchange, Lanes, Poller},
    log,
    metrics::Metrics,
    mqtt::{Connection, ConnectionSetupError, Ended, Mode, Publisher, Status, Subscriptions},
    renewal::Renewal,
    table::describe,
    traces::{Traces, TracesError},
    upstream::{ClientError, Upstream},
};

/// How long the gateway waits at the end of the grace for due PUBACKs to be written.
const FINAL_ACKNOWLEDGEMENTS: Duration = Duration::from_secs(3);
/// How long it waits for the collector to take the last spans.
const FINAL_TRACES: Duration = Duration::from_secs(2);

/// A gateway whose sockets are bound and whose parts are wired, not yet connected to the broker.
pub struct Gateway {
    connection: Connection,
    publisher: Publisher,
    broker: watch::Receiver<Status>,
    exchange: Arc<Exchange>,
    poller: Arc<Poller>,
    upstream: Upstream,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    admin: Option<TcpListener>,
    traces: Option<Traces>,
    config: Config,
}

/// Why a gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The admin endpoint's address is taken, for example.
    #[error("the admin endpoint cannot listen on {0}: {1}; set `[admin] listen`, or \"\" for none")]
    Admin(SocketAddr, io::Error),
    /// The broker's settings.
    #[error(transparent)]
    Broker(#[from] ConnectionSetupError),
    /// The upstream's settings.
    #[error(transparent)]
    Upstream(#[from] ClientError),
    /// What exports traces.
    #[error(transparent)]
    Traces(#[from] TracesError),
}

/// How a gateway stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// Everything under way was finished, and the broker got a DISCONNECT.
    Clean,
    /// The grace ran out; the broker delivers what was unfinished to the next gateway.
    GraceRanOut,
    /// The connection task ended by itself, on a defect. Without it nothing is forwarded, whatever else
    /// still lives; the next gateway goes on where this one stopped.
    Failed,
    /// It was draining a session that another client uses: nothing of it is ended.
    SessionInUse,
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Clean => "clean",
            Self::GraceRanOut => "grace_ran_out",
            Self::Failed => "failed",
            Self::SessionInUse => "session_in_use",
        })
    }
}

impl Gateway {
    /// Binds the admin endpoint and wires everything.
    ///
    /// # Errors
    /// [`StartError`] when a port or a certificate file cannot be had.
    pub async fn bind(config: Config) -> Result<Self, StartError> {
        let subscriptions = config.subscriptions();
        Self::assemble(config, subscriptions).await
    }

    /// The same for a gateway that takes nothing new: it delivers what its session still holds.
    ///
    /// # Errors
    /// [`StartError`] as with [`Gateway::bind`].
    pub async fn bind_draining(config: Config) -> Result<Self, StartError> {
        let subscriptions = Subscriptions { mode: Mode::Drain, ..config.subscriptions() };
        // The gateway that is drained may have stood on the same host, and its successor may stand there.
        let taken = match config.admin {
            Some(address) => TcpListener::bind(address).await.is_err(),
            None => false,
        };
        if taken {
            tracing::info!("the admin endpoint's address is in use; draining without one");
        }
        let admin = config.admin.filter(|_| !taken);
        Self::assemble(Config { admin, ..config }, subscriptions).await
    }

    async fn assemble(config: Config, subscriptions: Subscriptions) -> Result<Self, StartError> {
        let admin = match config.admin {
            None => None,
            Some(at) => Some(TcpListener::bind(at).await.map_err(|e| StartError::Admin(at, e))?),
        };
        let metrics = Arc::new(Metrics::new(&config.known_series()));
        let upstream = Upstream::new(&config.upstream, metrics.clone())?;
        let (connection, publisher, broker) =
            Connection::new(config.broker.clone(), subscriptions, metrics.clone())?;
        // Longer than a message can be held while everything works.
        let patience = config.upstream.deadline * 2 + config.upstream.attempt_timeout;
        let client_id = &config.broker.client_id;
        let started = config.traces.as_ref().map(|settings| Traces::start(settings, client_id));
        let (traces, begins_spans) = started.transpose()?.unzip();
        let exchange = Exchange::new(
            config.exchange.clone(),
            config.table.clone(),
            config.remembered_devices,
            upstream.clone(),
            publisher.clone(),
            metrics.clone(),
            begins_spans.clone(),
        );
        config.give_readings(metrics.readings(), connection.receive_window());
        let poller = Poller {
            settings: config.exchange.clone(),
            upstream: upstream.clone(),
            publisher: publisher.clone(),
            broker: broker.clone(),
            metrics: metrics.clone(),
            tracer: begins_spans,
        };
        let health = Arc::new(Health::new(
            broker.clone(),
            upstream.clone(),
            metrics.clone(),
            patience,
            connection.receive_window(),
            config.broker.max_pending_bytes,
        ));
        Ok(Self {
            connection,
            publisher,
            health,
            broker,
            upstream,
            exchange: Arc::new(exchange),
            poller: Arc::new(poller),
            metrics,
            admin,
            traces,
            config,
        })
    }

    /// Where the admin endpoint listens.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// How the broker's connection stands, now and later.
    pub fn broker(&self) -> watch::Receiver<Status> {
        self.broker.clone()
    }

    /// What is counted; it outlives [`Gateway::run`].
    pub fn metrics(&self) -> Arc<Metrics> {
        self.metrics.clone()
    }

    /// What is renewed while it runs.
    pub(crate) fn renewal(&self) -> Renewal {
        Renewal::new(&self.config)
    }

    /// Waits until a gateway that drains has nothing left: everything is settled, and no message has
    /// arrived for `quiet`. MQTT cannot say that a queue is empty.
    pub fn drained(&self, quiet: Duration) -> impl Future<Output = ()> + use<> {
        let (mut broker, metrics) = (self.broker.clone(), self.metrics.clone());
        async move {
            loop {
                let began =
                    |status: &Status| matches!(status, Status::Draining | Status::NoSession);
                match broker.wait_for(began).await.map(|status| *status == Status::NoSession) {
                    Ok(true) => return,
                    Ok(false) => {}
                    // The connection task ended, which `run` reports.
                    Err(_) => return std::future::pending().await,
                }
                let since = Instant::now();
                let quiet_for = || {
                    let (pending, settled) = metrics.progress();
                    let quiet =
                        settled.map_or(since.elapsed(), |settled| settled.min(since.elapsed()));
                    if pending == 0 { quiet } else { Duration::ZERO }
                };
                tokio::select! {
                    // Connected anew: what it brings is still to come.
                    _ = broker.changed() => {}
                    () = async {
                        while quiet_for() < quiet {
                            sleep(quiet / 10).await;
                        }
                    } => return,
                }
            }
        }
    }

    /// Runs until `shutdown`, then stops cleanly within the grace.
    pub async fn run(mut self, shutdown: impl Future<Output = ()>) -> Stopped {
        let (traces, grace) = (self.traces.take(), self.config.grace);
        let (stopped, began) = self.serve(shutdown).await;
        // Every span has ended: nobody has one any more.
        if let Some(traces) = traces {
            traces.flush(grace.saturating_sub(began.elapsed()).min(FINAL_TRACES)).await;
        }
        tracing::info!(%stopped, "stopped");
        stopped
    }

    /// Runs until it has stopped; how, and when it began to stop.
    async fn serve(self, shutdown: impl Future<Output = ()>) -> (Stopped, Instant) {
        let receive_window = self.connection.receive_window();
        let polls = self.poller.start(&self.config.table);
        let Self {
            connection, publisher, exchange, upstream, health, metrics, admin, config, ..
        } = self;
        let admin = admin.map(|listener| {
            let routes = describe::table_json(&config.table);
            let about = About::of(&config);
            let pages = Pages::new(health.clone(), metrics.clone(), routes, about);
            tokio::spawn(admin::serve(listener, Arc::new(pages)))
        });
        let log = tokio::spawn(join(log::write_summaries(), admin::remind(health.clone())));
        let lanes = Lanes::new(config.broker.max_pending.into(), {
            let exchange = exchange.clone();
            move |Arrived { delivery, clock, place }| {
                let exchange = exchange.clone();
                async move {
                    exchange.serve(delivery, Ok(clock)).await;
                    place.done(exchange.answering_time());
                }
            }
        });
        let deadline = config.upstream.deadline;
        let arrivals = Arrivals {
            push: {
                let lanes = lanes.clone();
                move |sender, arrived| lanes.push(sender, arrived)
            },
            exchange,
            upstream: upstream.clone(),
            metrics,
            receive_window,
            max_pending: config.broker.max_pending.into(),
            max_pending_bytes: config.broker.max_pending_bytes,
            patience: (deadline / 2, deadline),
        };
        let mut connection = tokio::spawn(connection.run(move |delivery| arrivals.take(delivery)));
        tokio::select! {
            () = shutdown => {}
            ended = &mut connection => return (ended_by_itself(ended.ok()), Instant::now()),
        }
        let began = Instant::now();
        let grace_seconds = config.grace.as_secs_f64();
        tracing::info!(grace_seconds, "stopping: finishing what is under way");
        health.stop();
        // No further call begins. Those under way are finished, their answers published, their messages acknowledged, then
        // the gateway disconnects. It does not unsubscribe and does not end the session: the broker keeps new messages.
        let finish_calls = async {
            // They are ended at once: no message waits for what they would fetch.
            drop(polls);
            lanes.close();
            upstream.stop();
            lanes.idle().await;
        };
        // On the heap, so that the future of a run does not become larger still.
        let stop = stop(finish_calls, &publisher, &mut connection, config.grace);
        let stopped = Box::pin(stop).await;
        if let Some(admin) = admin {
            admin.abort();
        }
        log.abort();
        (stopped, began)
    }
}

/// Why the connection task ended before it was told to.
fn ended_by_itself(ended: Option<Ended>) -> Stopped {
    if let Some(Ended::SessionInUse(how)) = ended {
        tracing::error!(how, "the session is in use, and is left to whoever uses it");
        return Stopped::SessionInUse;
    }
    tracing::error!("the connection task ended on a defect of the gateway");
    Stopped::Failed
}

/// Finishes the calls and the connection within the grace.
async fn stop(
    finish_calls: impl Future<Output = ()>,
    publisher: &Publisher,
    connection: &mut JoinHandle<Ended>,
    grace: Duration,
) -> Stopped {
    let finish = async {
        finish_calls.await;
        publisher.finish().await;
        // A connection task that failed has nothing left to finish.
        (&mut *connection).await
    };
    match timeout(grace, finish).await {
        Ok(Ok(Ended::BrokerGone(trouble))) => {
            tracing::warn!(
                trouble,
                "the broker cannot be reached; messages without acknowledgement are delivered again to the next gateway"
            );
            Stopped::GraceRanOut
        }
        Ok(_) => Stopped::Clean,
        Err(_) => {
            // Messages that are settled are acknowledged, although others are not settled.
            let close = async {
                publisher.close().await;
                let _ = connection.await;
            };
            let _ = timeout(FINAL_ACKNOWLEDGEMENTS, close).await;
            Stopped::GraceRanOut
        }
    }
}
