//! Asks an admin endpoint, as a probe does: one GET, one answer.

use std::{io, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, Response, StatusCode, body::Incoming, client::conn::http1, header::HOST};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::JoinHandle, time::timeout};
use url::Url;

/// Most bytes of an answer that are read.
const MAX_ANSWER_BYTES: usize = 64 * 1024;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AskError {
    /// No `http://host:port/path`.
    #[error("cannot be asked; write `http://host:port/path`")]
    Url,
    /// Nobody listens there, for example.
    #[error("{0}; does the gateway run, and is this its [admin] listen?")]
    Connect(io::Error),
    /// Something else listens there, for example.
    #[error("no answer of HTTP ({0}); is this its [admin] listen?")]
    Exchange(Box<dyn std::error::Error + Send + Sync>),
    /// It hangs.
    #[error("no answer within {}", humantime::format_duration(*.0))]
    Late(Duration),
}

/// Status and text of the answer.
pub(crate) async fn ask(url: &Url, limit: Duration) -> Result<(StatusCode, String), AskError> {
    timeout(limit, exchange(url)).await.map_err(|_| AskError::Late(limit))?
}

async fn exchange(url: &Url) -> Result<(StatusCode, String), AskError> {
    let Opened { answer, driver } = open(url).await?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES).collect().await;
    driver.abort();
    let body = body.map_err(AskError::Exchange)?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

/// An answer whose body is still to come.
pub(crate) struct Opened {
    /// The answer.
    pub(crate) answer: Response<Incoming>,
    /// The task that brings its body, for as long as it runs.
    pub(crate) driver: JoinHandle<hyper::Result<()>>,
}

/// Asks, and does not wait for the body.
pub(crate) async fn open(url: &Url) -> Result<Opened, AskError> {
    let host = url.host_str().filter(|_| url.scheme() == "http").ok_or(AskError::Url)?;
    let port = url.port_or_known_default().ok_or(AskError::Url)?;
    let stream = TcpStream::connect((host.trim_matches(['[', ']']), port)).await;
    let stream = TokioIo::new(stream.map_err(AskError::Connect)?);
    let broken = |error: hyper::Error| AskError::Exchange(error.into());
    let (mut sender, connection) = http1::handshake(stream).await.map_err(broken)?;
    let target = url.path().to_owned() + &url.query().map_or(String::new(), |q| format!("?{q}"));
    let request = Request::get(target).header(HOST, format!("{host}:{port}"));
    let request = request.body(Empty::<Bytes>::new()).map_err(|_| AskError::Url)?;
    // Its end is seen by whoever waits for the answer.
    let driver = tokio::spawn(connection);
    let answer = sender.send_request(request).await.map_err(broken)?;
    Ok(Opened { answer, driver })
}
