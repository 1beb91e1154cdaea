//! A TCP link between two parties that fails on command: cut, refused, stalled, delayed, trickling.
//!
//! It forwards bytes and knows no protocol. Whoever is to suffer connects to [`Link::port`].

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::{AbortHandle, JoinSet},
    time::sleep,
};

use crate::{eventually, free_port};

/// How the bytes move, from now on, on every connection.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Pace {
    Free,
    /// Connections stay open, nothing moves.
    Stalled,
    /// Each piece waits this long before it goes on.
    Delayed(Duration),
    /// A few bytes at a time, so that packets arrive in pieces.
    Trickling,
}

/// How connections end.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Cut {
    /// RST, as a firewall or a dead host does it.
    Reset,
    /// FIN, as a proxy does it that restarts.
    Close,
}

#[derive(Debug, Clone, Copy)]
struct State {
    pace: Pace,
    accepting: bool,
    /// So many cuts so far, and what the last was.
    cuts: (u64, Cut),
}

/// The link. Gone with everything on it when it is dropped.
pub struct Link {
    port: u16,
    state: watch::Sender<State>,
    task: AbortHandle,
}

impl Link {
    /// To this port of the loopback interface.
    pub async fn to(port: u16) -> Self {
        let own = free_port();
        let state = State { pace: Pace::Free, accepting: true, cuts: (0, Cut::Reset) };
        let state = watch::Sender::new(state);
        let task = tokio::spawn(serve(own, port, state.clone())).abort_handle();
        let link = Self { port: own, state, task };
        eventually("the link accepts", || async { TcpStream::connect(link.address()).await.ok() })
            .await;
        link
    }

    fn address(&self) -> (&'static str, u16) {
        ("127.0.0.1", self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// With this scheme: `mqtt`, `http`.
    pub fn url(&self, scheme: &str) -> String {
        format!("{scheme}://127.0.0.1:{}", self.port())
    }

    /// Drops all connections; new ones are welcome.
    pub fn cut(&self, how: Cut) {
        self.state.send_modify(|state| state.cuts = (state.cuts.0 + 1, how));
    }

    /// Drops all connections and lets nobody in.
    pub fn refuse(&self) {
        self.state.send_modify(|state| state.accepting = false);
        self.cut(Cut::Reset);
    }

    /// Lets everybody in and everything through again.
    pub fn resume(&self) {
        self.state.send_modify(|state| (state.accepting, state.pace) = (true, Pace::Free));
    }

    /// Keeps the connections and moves nothing, until [`Link::resume`].
    pub fn stall(&self) {
        self.state.send_modify(|state| state.pace = Pace::Stalled);
    }

    /// Every piece is delayed by this, until [`Link::resume`].
    pub fn delay(&self, by: Duration) {
        self.state.send_modify(|state| state.pace = Pace::Delayed(by));
    }

    /// Everything goes in pieces of a few bytes, until [`Link::resume`].
    pub fn trickle(&self) {
        self.state.send_modify(|state| state.pace = Pace::Trickling);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(own: u16, to: u16, state: watch::Sender<State>) {
    let mut watcher = state.subscribe();
    // The connections end with this task.
    let mut connections = JoinSet::new();
    loop {
        // Refusing is having no listener: an accepted connection that is closed is something else.
        if watcher.wait_for(|state| state.accepting).await.is_err() {
            return;
        }
        let Ok(listener) = TcpListener::bind(("127.0.0.1", own)).await else {
            // The system needs a moment to let go of the port.
            sleep(Duration::from_millis(5)).await;
            continue;
        };
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = watcher.wait_for(|state| !state.accepting) => break,
            };
            if let Ok((near, _)) = accepted {
                connections.spawn(connection(near, to, state.subscribe()));
            }
            while connections.try_join_next().is_some() {}
        }
    }
}

async fn connection(near: TcpStream, to: u16, mut state: watch::Receiver<State>) {
    let cuts = state.borrow().cuts.0;
    // Nobody at the other end is, to this end, a connection that ends at once.
    let Ok(far) = TcpStream::connect(("127.0.0.1", to)).await else { return };
    // A socket that is gone already shows at the first read.
    let _ = (near.set_nodelay(true), far.set_nodelay(true));
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    let (mut there, mut back) =
        (Pipe::new(near_in, far_out, &state), Pipe::new(far_in, near_out, &state));
    let how = tokio::select! {
        () = async { tokio::join!(there.run(), back.run()); } => return,
        cut = state.wait_for(|state| state.cuts.0 != cuts) => cut.map_or(Cut::Close, |s| s.cuts.1),
    };
    if how == Cut::Reset {
        let _ = (there.from.as_ref().set_zero_linger(), back.from.as_ref().set_zero_linger());
    }
}

/// One direction of a connection.
struct Pipe {
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
    state: watch::Receiver<State>,
}

impl Pipe {
    fn new(from: OwnedReadHalf, to: OwnedWriteHalf, state: &watch::Receiver<State>) -> Self {
        Self { from, to, state: state.clone() }
    }

    /// Until its reader has nothing more, which it tells its writer.
    async fn run(&mut self) {
        let mut buffer = vec![0; 16 * 1024];
        while let Ok(count) = self.from.read(&mut buffer).await
            && count > 0
            && self.forward(&buffer[..count]).await.is_ok()
        {}
        // A writer that is gone needs no word.
        let _ = self.to.shutdown().await;
    }

    async fn forward(&mut self, mut piece: &[u8]) -> io::Result<()> {
        while !piece.is_empty() {
            let pace = self.state.borrow_and_update().pace;
            let count = match pace {
                Pace::Stalled => {
                    // The link is gone: the connection follows.
                    let moving = self.state.wait_for(|state| state.pace != Pace::Stalled).await;
                    moving.map_err(|_| io::ErrorKind::BrokenPipe)?;
                    continue;
                }
                Pace::Free => piece.len(),
                Pace::Delayed(by) => {
                    sleep(by).await;
                    piece.len()
                }
                Pace::Trickling => {
                    // The peer gets its turn to read what there is.
                    tokio::task::yield_now().await;
                    fastrand::usize(1..8).min(piece.len())
                }
            };
            self.to.write_all(&piece[..count]).await?;
            piece = &piece[count..];
        }
        Ok(())
    }
}
