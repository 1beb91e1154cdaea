//! What the connection delivers is put into the lane of its device, or refused for the share of the window that the device
//! has.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::{
    exchange::Exchange,
    metrics::Metrics,
    mqtt::Delivery,
    shares::{Place, Window},
    table::refusal::Refusal,
    upstream::Upstream,
};

/// Takes what the connection delivers: into the lane of its device, or refused for its share.
pub(crate) struct Arrivals<P> {
    /// Puts a message into the lane of its sender.
    pub(crate) push: P,
    /// What serves a message that is refused here.
    pub(crate) exchange: Arc<Exchange>,
    /// It knows whether the API answers.
    pub(crate) upstream: Upstream,
    /// What is counted.
    pub(crate) metrics: Arc<Metrics>,
    /// See [`Connection::receive_window`](crate::mqtt::Connection::receive_window).
    pub(crate) receive_window: Arc<AtomicUsize>,
    /// Messages that may be pending.
    pub(crate) max_pending: usize,
    /// The same in bytes.
    pub(crate) max_pending_bytes: usize,
    /// For how long a device may make no progress, and how old its oldest message may be.
    pub(crate) patience: (Duration, Duration),
}

impl<P: Fn(Arc<str>, Arrived)> Arrivals<P> {
    /// Takes a message.
    pub(crate) fn take(&self, delivery: Delivery) {
        let Self { exchange, upstream, metrics, receive_window, .. } = self;
        metrics.received(exchange.route_name(delivery.subscription));
        let sender = delivery.sender.clone();
        let shares = metrics.shares();
        // Some brokers announce their delivery window in CONNACK (EMQX), others something else (Mosquitto):
        // more messages at once than that show it.
        if shares.messages() >= receive_window.load(Ordering::Relaxed) {
            receive_window.store(self.max_pending, Ordering::Relaxed);
        }
        let messages = receive_window.load(Ordering::Relaxed);
        let window = Window { messages, bytes: self.max_pending_bytes };
        if let Some(held) = crowds(metrics, upstream, &sender, window, self.patience) {
            let exchange = exchange.clone();
            // Bounded by the window: the broker sends no more before this is settled.
            tokio::spawn(async move {
                exchange.serve(delivery, Err(Refusal::Crowded { held })).await;
            });
            return;
        }
        let clock = exchange.clock(delivery.subscription);
        let (bytes, answering) = (delivery.message.payload.len(), upstream.answering_time());
        let place = shares.take(&sender, bytes, answering, delivery.message.arrived);
        // 2. It waits behind the earlier messages of its device.
        (self.push)(sender, Arrived { delivery, clock, place });
    }
}

/// A message in its lane.
pub(crate) struct Arrived {
    /// The message.
    pub(crate) delivery: Delivery,
    /// The reading at arrival of the clock by which its deadline runs.
    pub(crate) clock: Duration,
    /// What it takes of the window.
    pub(crate) place: Place,
}

/// How many messages of a device wait, if they keep other devices out: the window is nearly full, the
/// device has more than its fair share of it, and it makes no progress although the API serves others. In
/// an outage no message is refused for this: what does not fit stays with the broker.
fn crowds(
    metrics: &Metrics,
    upstream: &Upstream,
    device: &str,
    window: Window,
    (stuck, oldest): (Duration, Duration),
) -> Option<usize> {
    let over = metrics.shares().over_share(device, window, upstream.answering_time())?;
    let waits = upstream.is_delayed(device) && over.oldest >= stuck;
    let gets_on = over.stuck < stuck && over.oldest < oldest && !waits;
    (!gets_on && upstream.outages().is_empty()).then_some(over.messages)
}
