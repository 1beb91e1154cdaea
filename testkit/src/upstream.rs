//! The REST API of most tests: it answers by method and path, and keeps what has arrived (wiremock).

use std::sync::atomic::{AtomicU8, Ordering};

use serde_json::Value;
use wiremock::{
    Mock, MockServer, Request, ResponseTemplate,
    matchers::{method, path},
};

use crate::patience::while_it_moves;

/// The REST API.
pub struct Upstream {
    server: MockServer,
    /// wiremock prefers lower numbers: the mock that is mounted last goes first.
    priority: AtomicU8,
}

impl Upstream {
    pub async fn start() -> Self {
        Self { server: MockServer::start().await, priority: AtomicU8::new(254) }
    }

    pub fn url(&self) -> String {
        self.server.uri()
    }

    /// Answers a call so, from now on, whatever was set up for it before.
    pub async fn answers(&self, verb: &str, at: &str, status: u16, body: Value) {
        self.responds(verb, at, ResponseTemplate::new(status).set_body_json(body)).await;
    }

    pub async fn responds(&self, verb: &str, at: &str, response: ResponseTemplate) {
        let mock = Mock::given(method(verb)).and(path(at)).respond_with(response);
        mock.with_priority(self.priority()).mount(&self.server).await;
    }

    /// Answers every call that matches so.
    pub async fn responds_to(
        &self,
        what: impl wiremock::Match + 'static,
        status: u16,
        body: Value,
    ) {
        let response = ResponseTemplate::new(status).set_body_json(body);
        let mock = Mock::given(what).respond_with(response);
        mock.with_priority(self.priority()).mount(&self.server).await;
    }

    /// Answers the next `times` calls so.
    pub async fn responds_times(
        &self,
        verb: &str,
        at: &str,
        times: u64,
        response: ResponseTemplate,
    ) {
        let mock = Mock::given(method(verb)).and(path(at)).respond_with(response);
        mock.up_to_n_times(times).with_priority(self.priority()).mount(&self.server).await;
    }

    fn priority(&self) -> u8 {
        self.priority.fetch_sub(1, Ordering::Relaxed)
    }

    /// What arrived, in order.
    pub async fn requests(&self) -> Vec<Request> {
        self.server.received_requests().await.unwrap()
    }

    /// `POST /path` for each request that arrived, in order.
    pub async fn calls(&self) -> Vec<String> {
        let requests = self.requests().await;
        requests.iter().map(|r| format!("{} {}", r.method, r.url.path())).collect()
    }

    pub async fn count(&self, call: &str) -> usize {
        self.calls().await.iter().filter(|c| *c == call).count()
    }

    pub async fn arrived(&self, call: &str, count: usize) {
        while_it_moves(&format!("{count} x {call}"), || async {
            let arrived = self.count(call).await;
            if arrived >= count { Ok(()) } else { Err(arrived) }
        })
        .await;
    }
}
