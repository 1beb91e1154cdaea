//! An API that does what a test says, request by request, down to when a connection closes.

use std::{
    fmt::Write as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::sleep,
};

use crate::harness::while_it_moves;

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Which connection it came on, and as the how manieth there, both from 0.
    pub connection: usize,
    pub nth: usize,
    pub method: String,
    pub path: String,
    pub body: String,
}

impl Seen {
    /// The device of `/v1/devices/<device>/..`.
    pub fn device(&self) -> &str {
        self.path.split('/').nth(3).unwrap_or_default()
    }

    pub fn is_probe(&self) -> bool {
        self.path == "/"
    }
}

/// What is answered.
#[derive(Debug, Clone)]
pub enum Reply {
    Answer {
        status: u16,
        headers: Vec<(&'static str, String)>,
        body: Vec<u8>,
        after: Duration,
    },
    /// Nothing, as long as the client likes.
    Hang,
    /// The connection is closed without a word.
    Close,
}

impl Reply {
    pub fn status(status: u16) -> Self {
        Self::Answer { status, headers: Vec::new(), body: b"{}".to_vec(), after: Duration::ZERO }
    }

    pub fn with(self, name: &'static str, value: &str) -> Self {
        match self {
            Self::Answer { status, mut headers, body, after } => {
                headers.push((name, value.to_owned()));
                Self::Answer { status, headers, body, after }
            }
            other => other,
        }
    }

    pub fn body(self, bytes: impl Into<Vec<u8>>) -> Self {
        match self {
            Self::Answer { status, headers, after, .. } => {
                Self::Answer { status, headers, body: bytes.into(), after }
            }
            other => other,
        }
    }

    pub fn after(self, time: Duration) -> Self {
        match self {
            Self::Answer { status, headers, body, .. } => {
                Self::Answer { status, headers, body, after: time }
            }
            other => other,
        }
    }
}

type Script = Arc<Mutex<Arc<dyn Fn(&Seen) -> Reply + Send + Sync>>>;

/// The API.
pub struct ScriptedApi {
    pub port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
    script: Script,
}

impl ScriptedApi {
    pub async fn start(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let api =
            Self { port, seen: Arc::default(), script: Arc::new(Mutex::new(Arc::new(script))) };
        let (seen, script) = (api.seen.clone(), api.script.clone());
        tokio::spawn(async move {
            let connections = AtomicUsize::new(0);
            while let Ok((stream, _)) = listener.accept().await {
                let connection = connections.fetch_add(1, Ordering::Relaxed);
                tokio::spawn(serve(stream, connection, seen.clone(), script.clone()));
            }
        });
        api
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// From now on it does so.
    pub fn now(&self, script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) {
        *self.script.lock().unwrap() = Arc::new(script);
    }

    /// What came, in order.
    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// How many requests of this kind came.
    pub fn count(&self, kind: impl Fn(&Seen) -> bool) -> usize {
        self.seen.lock().unwrap().iter().filter(|seen| kind(seen)).count()
    }

    /// Waits until so many of this kind have come.
    pub async fn comes(&self, what: &str, count: usize, kind: impl Fn(&Seen) -> bool) {
        while_it_moves(&format!("{count} x {what}"), || {
            let came = self.count(&kind);
            async move { if came >= count { Ok(()) } else { Err(came) } }
        })
        .await;
    }
}

async fn serve(
    mut stream: TcpStream,
    connection: usize,
    seen: Arc<Mutex<Vec<Seen>>>,
    script: Script,
) {
    let mut buffer = Vec::new();
    for nth in 0.. {
        let Some((method, path, body)) = request(&mut stream, &mut buffer).await else { return };
        let request = Seen { connection, nth, method, path, body };
        seen.lock().unwrap().push(request.clone());
        let script = script.lock().unwrap().clone();
        match script(&request) {
            Reply::Close => return,
            Reply::Hang => std::future::pending().await,
            Reply::Answer { status, headers, body, after } => {
                sleep(after).await;
                let mut head = format!("HTTP/1.1 {status} -\r\ncontent-length: {}\r\n", body.len());
                if !headers.iter().any(|(name, _)| *name == "content-type") {
                    head.push_str("content-type: application/json\r\n");
                }
                for (name, value) in headers {
                    let _ = write!(head, "{name}: {value}\r\n");
                }
                let answer = [head.as_bytes(), b"\r\n", &body].concat();
                if stream.write_all(&answer).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// The next request: method, path, body.
async fn request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<(String, String, String)> {
    loop {
        let text = String::from_utf8_lossy(buffer).into_owned();
        if let Some((head, rest)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
            });
            let length: usize = length.unwrap_or(0);
            if rest.len() >= length {
                let mut words = head.split(' ');
                let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
                let body = rest.get(..length)?.to_owned();
                buffer.drain(..head.len() + 4 + length);
                return Some((method, path, body));
            }
        }
        let mut part = vec![0; 16 * 1024];
        match stream.read(&mut part).await {
            Ok(0) | Err(_) => return None,
            Ok(count) => buffer.extend_from_slice(part.get(..count)?),
        }
    }
}
