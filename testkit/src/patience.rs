//! Waiting for a condition instead of for a time, with patience that ends when nothing moves.

use std::{fmt, future::Future, time::Duration};

use tokio::time::{Instant, sleep};

/// How long nothing may move, on a slow machine, before a test gives up.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// How long is waited to see that nothing comes.
pub const QUIET: Duration = Duration::from_millis(300);

/// Polls until `condition` yields a value: for one step, which takes no longer than [`PATIENCE`].
pub async fn eventually<T, F: Future<Output = Option<T>>>(
    what: &str,
    mut condition: impl FnMut() -> F,
) -> T {
    while_it_moves(what, || {
        let step = condition();
        async move { step.await.ok_or(()) }
    })
    .await
}

/// Polls until `condition` yields a value: for many steps. It yields how far things have got until
/// then, and patience begins anew with every change of that: how fast the machine is decides nothing.
pub async fn while_it_moves<T, P: PartialEq + fmt::Debug, F: Future<Output = Result<T, P>>>(
    what: &str,
    mut condition: impl FnMut() -> F,
) -> T {
    let (mut before, mut moved) = (None, Instant::now());
    loop {
        let progress = match condition().await {
            Ok(value) => return value,
            Err(progress) => Some(progress),
        };
        if progress != before {
            (before, moved) = (progress, Instant::now());
        }
        assert!(moved.elapsed() < PATIENCE, "nothing moves: {what}; got to {before:?}");
        sleep(Duration::from_millis(10)).await;
    }
}
