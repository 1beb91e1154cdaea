//! `top`: how a running gateway stands, in a terminal, fed by `/events` of its admin endpoint.
//!
//! Drawn with a dozen escape sequences instead of a library for them: nothing is asked of the terminal but to start over
//! at its upper left corner, and to cut lines that are too long.

mod draw;
mod feed;

use std::{
    collections::VecDeque,
    io::{self, IsTerminal, Write as _},
    time::Duration,
};

use clap::Args;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};
use url::Url;

use self::{
    draw::Style,
    feed::{Failure, Feed, Status},
};
use super::{error::CommandError, health, print};
use crate::config::{Config, ConfigError};

/// How many failures are kept, as many as the gateway keeps.
const KEPT: usize = 50;
/// How long after a gateway that does not answer is asked again.
const AGAIN: Duration = Duration::from_secs(1);
/// What a terminal is taken for that does not say how large it is.
const LINES: usize = 24;

/// Another screen, without a cursor, that cuts long lines; and back.
const ENTER: &str = "\x1b[?1049h\x1b[?25l\x1b[?7l";
const LEAVE: &str = "\x1b[?7h\x1b[?25h\x1b[?1049l";
/// To the upper left corner; the rest of a line, and of the screen, is empty.
const HOME: &str = "\x1b[H";
const LINE_END: &str = "\x1b[K";
const SCREEN_END: &str = "\x1b[J";

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The admin endpoint of the gateway, where it is not `[admin] listen`: `http://127.0.0.1:9180`.
    #[arg(long, value_name = "URL")]
    url: Option<Url>,
    /// Print once and end; the same when standard output is no terminal.
    #[arg(long)]
    once: bool,
}

/// Shows how the gateway stands until a signal, or once. The configuration is read where no URL is given.
pub(super) async fn top(
    arguments: Arguments,
    config: impl FnOnce() -> Result<Config, ConfigError>,
) -> Result<(), CommandError> {
    let url = match arguments.url {
        Some(url) => url,
        None => health::url(config()?.admin, "")?,
    };
    let url = &url;
    if arguments.once || !io::stdout().is_terminal() {
        return once(url).await;
    }
    let mut terminate = signal(SignalKind::terminate()).map_err(CommandError::Signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(CommandError::Signals)?;
    let screen = Screen::enter().map_err(CommandError::Output)?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        error = watch(url, &screen) => Err(CommandError::Output(error)),
    }
}

/// Prints the second event: rates need two.
async fn once(url: &Url) -> Result<(), CommandError> {
    let mut feed = Feed::open(url).await?;
    let first = feed.next().await?;
    let mut status = feed.next().await?;
    status.failures.splice(0..0, first.failures);
    let failures = status.failures.iter().rev();
    print(&draw::page(&status, failures, url, &draw::PLAIN).join("\n"))
}

/// Draws every event, until the terminal takes no more.
async fn watch(url: &Url, screen: &Screen) -> io::Error {
    loop {
        let trouble = match Feed::open(url).await {
            Ok(mut feed) => match follow(&mut feed, url, screen).await {
                Ok(trouble) => trouble,
                Err(error) => return error,
            },
            Err(trouble) => trouble,
        };
        if let Err(error) = screen.draw(|style| draw::no_answer(url, &trouble, style)) {
            return error;
        }
        sleep(AGAIN).await;
    }
}

/// Draws what one connection brings; why it brings no more.
async fn follow(feed: &mut Feed, url: &Url, screen: &Screen) -> io::Result<String> {
    let mut last: VecDeque<Failure> = VecDeque::new();
    loop {
        let mut status: Status = match feed.next().await {
            Ok(status) => status,
            Err(trouble) => return Ok(trouble),
        };
        for failure in status.failures.drain(..) {
            last.push_front(failure);
        }
        last.truncate(KEPT);
        screen.draw(|style| draw::page(&status, last.iter(), url, style))?;
    }
}

/// The terminal, until this is dropped.
struct Screen(Style);

impl Screen {
    fn enter() -> io::Result<Self> {
        // Whoever wants no colours says so [no-color.org].
        let in_colour = std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
        write(ENTER).map(|()| Self(Style { in_colour, all_rows: false }))
    }

    /// Puts this page in place of what is there, as many lines as there is room for.
    fn draw(&self, page: impl FnOnce(&Style) -> Vec<String>) -> io::Result<()> {
        let room = rustix::termios::tcgetwinsize(io::stdout());
        let room = room.map_or(LINES, |size| size.ws_row.into());
        let mut text = HOME.to_owned();
        for (index, line) in page(&self.0).iter().take(room).enumerate() {
            text.push_str(if index == 0 { "" } else { "\r\n" });
            text.push_str(line);
            text.push_str(LINE_END);
        }
        text.push_str(SCREEN_END);
        write(&text)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        let _ = write(LEAVE);
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout();
    out.write_all(text.as_bytes())?;
    out.flush()
}
