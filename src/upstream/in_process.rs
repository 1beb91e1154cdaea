//! An API in this process, in place of the network: what the command `test` lets calls go to. Everything above the
//! bytes of a connection is what runs in the gateway.

use std::{fmt, io, sync::Arc};

use http::Uri;
use tokio::io::{DuplexStream, duplex};

/// What either side may write ahead, in bytes.
const WRITTEN_AHEAD: usize = 64 * 1024;

type Accept = dyn Fn(&Uri, DuplexStream) -> io::Result<()> + Send + Sync;

/// An API in this process. Cheap to clone.
#[derive(Clone)]
pub struct InProcess(Arc<Accept>);

impl InProcess {
    /// `accept` is given each connection and where it was meant to lead, or refuses it.
    pub fn new(
        accept: impl Fn(&Uri, DuplexStream) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(accept))
    }

    pub(super) fn connect(&self, to: &Uri) -> io::Result<DuplexStream> {
        let (ours, theirs) = duplex(WRITTEN_AHEAD);
        (self.0)(to, theirs)?;
        Ok(ours)
    }
}

impl fmt::Debug for InProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InProcess")
    }
}
