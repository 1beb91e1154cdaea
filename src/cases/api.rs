//! The API of a case: hears the calls and answers them in turn, over connections in this process.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Request, Response, StatusCode, Uri, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::io::DuplexStream;

use super::{Answer, Exchanged, Fails, content::Content};
use crate::{
    failure::Transience,
    upstream::{self, InProcess},
};

/// What the API has heard of one call.
#[derive(Debug, Clone)]
pub(super) enum Heard {
    /// Nothing: it took no connection.
    Refused,
    /// A request.
    Request {
        /// Method and path, as a case writes them.
        call: String,
        headers: HeaderMap,
        body: Bytes,
    },
}

impl Heard {
    pub(super) fn words(&self) -> String {
        match self {
            Self::Refused => "a connection".to_owned(),
            Self::Request { call, .. } => call.clone(),
        }
    }
}

/// The API. Cheap to clone.
#[derive(Clone)]
pub(super) struct Api {
    /// The scheme and the authority that paths of cases are below, and the path before them.
    origin: Arc<str>,
    path: Arc<str>,
    probe: Option<Arc<str>>,
    refused_on: Arc<[StatusCode]>,
    script: Arc<Mutex<Script>>,
}

#[derive(Default)]
struct Script {
    /// What comes, if the case says; else every call gets an answer.
    expected: Option<Vec<Exchanged>>,
    heard: Vec<Heard>,
    /// The answer of the last call that was heard.
    last: Option<Answer>,
}

impl Default for Answer {
    fn default() -> Self {
        Self::Answers { status: StatusCode::OK, headers: Vec::new(), body: Content::untold() }
    }
}

impl Answer {
    /// Whether a call is made again after it; `refused_on` says which statuses refuse the gateway itself.
    fn is_transient(&self, refused_on: &[StatusCode]) -> bool {
        match self {
            Self::Answers { status, .. } => {
                Transience::of(*status) != Transience::Final || refused_on.contains(status)
            }
            Self::Fails(_) => true,
        }
    }
}

impl Script {
    /// What is answered to the next call.
    fn next(&self) -> Option<&Exchanged> {
        self.expected.as_ref()?.get(self.heard.len())
    }

    /// Hears a call; what is answered. One that is made again is a call of its own where the case goes on with it, else
    /// it meets what the first met.
    fn hear(&mut self, heard: Heard, refused_on: &[StatusCode]) -> Answer {
        let is_again = match (self.heard.last(), &heard) {
            (Some(Heard::Request { call: last, .. }), Heard::Request { call, .. }) => call == last,
            (Some(Heard::Refused), _) => true,
            _ => false,
        };
        if let Some(last) =
            self.last.clone().filter(|last| is_again && last.is_transient(refused_on))
            && self.next().is_none()
        {
            return last;
        }
        let answer = self.next().map(|next| next.answer.clone()).unwrap_or_default();
        self.heard.push(heard);
        self.last = Some(answer.clone());
        answer
    }

    /// Whether the next connection is refused.
    fn refuses(&mut self) -> bool {
        let unreachable = |answer: &Answer| matches!(answer, Answer::Fails(Fails::Unreachable));
        match self.next() {
            Some(next) if unreachable(&next.answer) => {
                self.hear(Heard::Refused, &[]);
                true
            }
            Some(_) => false,
            None => self.last.as_ref().is_some_and(unreachable),
        }
    }
}

impl Api {
    /// One for this upstream.
    pub(super) fn new(settings: &upstream::Settings) -> Self {
        let origin = settings.url.origin().ascii_serialization();
        let probe = settings.breaker.probe_path.as_deref().map(Arc::from);
        let path = settings.url.path().trim_end_matches('/');
        let refused_on = settings.refused_on.iter().copied().collect();
        Self { origin: origin.into(), path: path.into(), probe, refused_on, script: Arc::default() }
    }

    /// The door to it.
    pub(super) fn door(&self) -> InProcess {
        let api = self.clone();
        InProcess::new(move |to, stream| {
            if api.script().refuses() {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            tokio::spawn(api.clone().serve(to.clone(), stream));
            Ok(())
        })
    }

    /// Another message is about to come, whose calls are these, if they are known.
    pub(super) fn expect(&self, expected: Option<Vec<Exchanged>>) {
        *self.script() = Script { expected, ..Script::default() };
    }

    /// What has been heard since.
    pub(super) fn heard(&self) -> Vec<Heard> {
        self.script().heard.clone()
    }

    /// One request, and no more on the same connection: so each can be refused one.
    async fn serve(self, to: Uri, stream: DuplexStream) {
        let service = service_fn(|request| self.answer(&to, request));
        // A connection that ends early is meant to, or its call has been given up.
        let _ = http1::Builder::new()
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service)
            .await;
    }

    async fn answer(
        &self,
        to: &Uri,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, io::Error> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.map_err(io::Error::other)?.to_bytes();
        let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
        let call = format!("{} {}", head.method, self.below(to, path));
        let answer = {
            let mut script = self.script();
            if self.is_probe(&script, &call) {
                Answer::default()
            } else {
                script.hear(Heard::Request { call, headers: head.headers, body }, &self.refused_on)
            }
        };
        let (status, headers, body) = match answer {
            Answer::Answers { status, headers, body } => (status, headers, body),
            Answer::Fails(Fails::Hangs) => std::future::pending().await,
            Answer::Fails(Fails::Broken | Fails::Unreachable) => {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
        };
        Ok(response(status, &headers, &body))
    }

    /// A path as a case writes it: below the API's URL, and secrets by name; elsewhere the whole URL.
    fn below(&self, to: &Uri, path: &str) -> String {
        let scheme = to.scheme_str().unwrap_or("http");
        let origin = format!("{scheme}://{}", to.authority().map_or("", |to| to.as_str()));
        // As their names stand in place of secrets, and nothing else has angle brackets.
        let path = path.replace("%3C", "<").replace("%3E", ">");
        match path.strip_prefix(&*self.path) {
            Some(below) if origin == *self.origin => below.to_owned(),
            _ => format!("{origin}{path}"),
        }
    }

    /// Whether it is the gateway's own question whether anybody is there, and not what the case waits for.
    fn is_probe(&self, script: &Script, call: &str) -> bool {
        let expected = script.next().and_then(|next| next.call.as_deref());
        let waits = script.last.as_ref().is_some_and(|last| last.is_transient(&self.refused_on));
        let path = call.strip_prefix("GET ");
        waits
            && path.is_some_and(|path| self.probe.as_deref() == Some(path))
            && expected != Some(call)
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        // No code that can panic runs under this lock.
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn response(
    status: StatusCode,
    headers: &[(HeaderName, String)],
    body: &Content,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.bytes()));
    *response.status_mut() = status;
    let kind = if body.value().is_some() { "application/json" } else { "text/plain" };
    let kind = (&CONTENT_TYPE, kind);
    let own = headers.iter().map(|(name, value)| (name, value.as_str()));
    for (name, value) in std::iter::once(kind).chain(own) {
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(name, value);
        }
    }
    response
}
