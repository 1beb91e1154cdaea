//! An API that does what a test says, request by request, down to when a connection closes.

use std::{
    fmt::Write as _,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    time::sleep,
};

use crate::while_it_moves;

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The number of its connection, and its own number on it, both from 0.
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
    /// The connection is closed without an answer.
    Close,
    /// 200 with this body, as soon as the test says which.
    Later(watch::Receiver<Option<String>>),
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

type Script = dyn Fn(&Seen) -> Reply + Send + Sync;

/// An API on loopback that answers each request as this says, and remembers nothing; its port.
pub async fn answer_each(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> u16 {
    answer_each_on(TcpListener::bind("127.0.0.1:0").await.unwrap(), script)
}

fn answer_each_on(
    listener: TcpListener,
    script: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
) -> u16 {
    let port = listener.local_addr().unwrap().port();
    let script: Arc<Script> = Arc::new(script);
    tokio::spawn(async move {
        for connection in 0.. {
            let Ok((stream, _)) = listener.accept().await else { return };
            tokio::spawn(serve(stream, connection, script.clone()));
        }
    });
    port
}

/// An API that remembers what came, and whose script can be changed.
pub struct ScriptedApi {
    pub port: u16,
    seen: Arc<Mutex<Vec<Seen>>>,
    script: Arc<Mutex<Arc<Script>>>,
}

impl ScriptedApi {
    pub async fn start(script: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::on(TcpListener::bind("127.0.0.1:0").await.unwrap(), script)
    }

    /// At an address that was fixed before.
    pub fn on(
        listener: TcpListener,
        script: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let seen = Arc::<Mutex<Vec<Seen>>>::default();
        let script: Arc<Mutex<Arc<Script>>> = Arc::new(Mutex::new(Arc::new(script)));
        let port = answer_each_on(listener, {
            let (seen, script) = (seen.clone(), script.clone());
            move |request| {
                seen.lock().unwrap().push(request.clone());
                let script = script.lock().unwrap().clone();
                script(request)
            }
        });
        Self { port, seen, script }
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

    /// Waits until `count` of this kind have come.
    pub async fn comes(&self, what: &str, count: usize, kind: impl Fn(&Seen) -> bool) {
        while_it_moves(&format!("{count} x {what}"), || {
            let came = self.count(&kind);
            async move { if came >= count { Ok(()) } else { Err(came) } }
        })
        .await;
    }
}

async fn serve(mut stream: TcpStream, connection: usize, script: Arc<Script>) {
    let mut buffer = Vec::new();
    for nth in 0.. {
        let Some((method, path, body)) = request(&mut stream, &mut buffer).await else { return };
        let reply = script(&Seen { connection, nth, method, path, body });
        let Some(answer) = answer(reply).await else { return };
        if stream.write_all(&answer).await.is_err() {
            return;
        }
    }
}

/// The bytes of the answer, when its time has come; `None` to close the connection.
async fn answer(reply: Reply) -> Option<Vec<u8>> {
    let (status, headers, body) = match reply {
        Reply::Close => return None,
        Reply::Hang => std::future::pending().await,
        Reply::Later(mut told) => {
            let body = told.wait_for(Option::is_some).await.ok()?.clone()?;
            (200, Vec::new(), body.into_bytes())
        }
        Reply::Answer { status, headers, body, after } => {
            sleep(after).await;
            (status, headers, body)
        }
    };
    let mut head = format!("HTTP/1.1 {status} -\r\ncontent-length: {}\r\n", body.len());
    if !headers.iter().any(|(name, _)| *name == "content-type") {
        head.push_str("content-type: application/json\r\n");
    }
    for (name, value) in headers {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    Some([head.as_bytes(), b"\r\n", &body].concat())
}

/// The next request: method, path, body.
async fn request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<(String, String, String)> {
    loop {
        if let Some(end) = buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(buffer.get(..end)?).into_owned();
            let length = head.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
            });
            let whole = end + 4 + length.unwrap_or(0);
            while buffer.len() < whole {
                read(stream, buffer).await?;
            }
            let mut words = head.split(' ');
            let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
            let body = String::from_utf8_lossy(buffer.get(end + 4..whole)?).into_owned();
            buffer.drain(..whole);
            return Some((method, path, body));
        }
        read(stream, buffer).await?;
    }
}

/// More bytes; `None` when the client has gone.
async fn read(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<()> {
    stream.read_buf(buffer).await.ok().filter(|count| *count > 0).map(|_| ())
}
