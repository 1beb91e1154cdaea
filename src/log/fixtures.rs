//! A log that a test reads.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex, PoisonError},
};

use tracing::subscriber::DefaultGuard;
use tracing_subscriber::{layer::SubscriberExt, registry::Registry};

use super::{Settings, lines};

/// What a log writes, as long as this lives, on the thread that it was made on.
pub(crate) struct Page {
    written: Written,
    _guard: DefaultGuard,
}

#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Page {
    /// A log of JSON at level `info`.
    pub(crate) fn open() -> Self {
        let written = Written::default();
        let to = written.clone();
        let settings = Settings { level: "info".to_owned(), json: true };
        let lines = lines(&settings, false, move || to.clone());
        let guard = tracing::subscriber::set_default(Registry::default().with(lines));
        Self { written, _guard: guard }
    }

    /// The lines that it has so far.
    pub(crate) fn lines(&self) -> Vec<serde_json::Value> {
        let bytes = self.written.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let text = String::from_utf8(bytes).expect("JSON is text");
        text.lines().map(|line| serde_json::from_str(line).expect("each line is JSON")).collect()
    }
}
