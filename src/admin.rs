//! The admin endpoint: `/livez`, `/readyz`, `/metrics` and `/routes`.

use std::sync::Arc;

use axum::{
    Router,
    http::{StatusCode, header::CONTENT_TYPE},
    routing::get,
};
use tokio::net::TcpListener;

use crate::{health::Health, metrics::Metrics};

/// What Prometheus expects of the text that `prometheus-client` writes.
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves until the process ends. `routes` is the table in force, as JSON.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    health: Arc<Health>,
    metrics: Arc<Metrics>,
    routes: String,
) -> std::io::Result<()> {
    let ready = move || {
        let health = health.clone();
        async move {
            match health.unready().as_slice() {
                [] => (StatusCode::OK, "ready\n".to_owned()),
                reasons => (StatusCode::SERVICE_UNAVAILABLE, reasons.join("\n") + "\n"),
            }
        }
    };
    let metrics = move || {
        let metrics = metrics.clone();
        async move { ([(CONTENT_TYPE, OPENMETRICS)], metrics.render()) }
    };
    let routes = move || {
        let routes = routes.clone();
        async move { ([(CONTENT_TYPE, "application/json")], routes) }
    };
    let app = Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/routes", get(routes));
    axum::serve(listener, app).await
}
