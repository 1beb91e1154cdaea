//! Says again, while an outage lasts, that it does: what was said at its beginning may be in a log that nobody has any
//! more.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::Health;
use crate::{mqtt::Status, upstream::Outage, wall_clock};

/// How often an outage is said again.
const REMIND: Duration = Duration::from_mins(5);
/// An outage younger than this has just been said.
const YOUNG: Duration = Duration::from_secs(30);
/// How many rows a reminder names; of more it says how many there are.
const MAX_ROWS: usize = 10;

/// Reminds of outages until its task is aborted: one line every few minutes for the upstream, and one for the broker.
pub(crate) async fn remind(health: Arc<Health>) {
    let mut broker = health.broker.clone();
    // Since when the gateway has not been subscribed.
    let mut unsubscribed = Some(Instant::now());
    let mut ticks = interval_at(Instant::now() + REMIND, REMIND);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let serves = match &*broker.borrow_and_update() {
            Status::Subscribed | Status::Draining | Status::NoSession | Status::Ended => true,
            Status::Down(_) | Status::Connected | Status::Refused(_) => false,
        };
        unsubscribed = if serves { None } else { unsubscribed.or_else(|| Some(Instant::now())) };
        tokio::select! {
            changed = broker.changed() => if changed.is_err() {
                return;
            },
            _ = ticks.tick() => {
                if let Some(since) = unsubscribed.filter(|since| since.elapsed() >= YOUNG) {
                    broker_is_away(&health, since);
                }
                upstream_is_down(&health);
            }
        }
    }
}

fn broker_is_away(health: &Health, since: Instant) {
    let (pending, _) = health.metrics.progress();
    let trouble = match &*health.broker.borrow() {
        Status::Down(trouble) => trouble.clone(),
        Status::Refused(filters) => format!("the broker refuses {}", filters.join(", ")),
        _ => "the broker does not confirm the subscriptions".to_owned(),
    };
    let lasted_seconds = since.elapsed().as_secs();
    let since = time_of_day(since);
    tracing::warn!(
        since,
        lasted_seconds,
        pending,
        trouble,
        "still not subscribed at the broker: no message arrives"
    );
}

fn upstream_is_down(health: &Health) {
    let outages = health.upstream.outages();
    let Some(Outage { since, sign, .. }) =
        outages.iter().min_by_key(|outage| outage.since).filter(|o| o.since.elapsed() >= YOUNG)
    else {
        return;
    };
    let mut names: Vec<&str> = outages.iter().map(|outage| &*outage.row).collect();
    names.sort_unstable();
    names.truncate(MAX_ROWS);
    let (rows, count) = (names.join(", "), outages.len());
    let (pending, _) = health.metrics.progress();
    let lasted_seconds = since.elapsed().as_secs();
    let since = time_of_day(*since);
    tracing::warn!(
        since,
        lasted_seconds,
        rows,
        count,
        pending,
        sign,
        "the upstream is still down: messages are held, and calls are tried again"
    );
}

fn time_of_day(at: Instant) -> String {
    humantime::format_rfc3339_seconds(wall_clock::now() - at.elapsed()).to_string()
}
