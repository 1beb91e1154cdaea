//! A file that is read again when it has changed, so that what is in it can be replaced while the gateway runs.
//!
//! It is looked at when it is used, and then not again for a while. Where it cannot be read, or what is in it cannot be
//! used, what was read before stays.

use std::{
    fmt, fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// A file is not looked at again sooner.
pub(crate) const PAUSE: Duration = Duration::from_secs(5);

/// A file, and what was read in it.
pub struct Watched<T, E> {
    file: PathBuf,
    read: fn(&Path) -> Result<T, E>,
    last: Mutex<Last<T>>,
}

struct Last<T> {
    value: T,
    /// The file as it was when the value was read.
    stamp: Stamp,
    /// When the file was looked at; none if it is to be looked at whenever that was.
    looked: Option<Instant>,
}

/// What tells that a file is another one than before, or has another content. A link is followed: Kubernetes changes
/// where one points to.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

/// What is in a file now.
pub struct Look<T, E> {
    /// Its value.
    pub value: T,
    /// It is another one than at the last look.
    pub changed: bool,
    /// Why it is the value read before, if the file cannot be used.
    pub error: Option<E>,
}

impl<T: Clone + PartialEq, E: From<io::Error>> Watched<T, E> {
    /// A file that `read` reads, and has read.
    ///
    /// # Errors
    /// What `read` says.
    pub fn new(file: &Path, read: fn(&Path) -> Result<T, E>) -> Result<Self, E> {
        let (stamp, value) = (Stamp::of(file)?, read(file)?);
        let last = Mutex::new(Last { value, stamp, looked: Some(Instant::now()) });
        Ok(Self { file: file.to_owned(), read, last })
    }

    /// What is in it now.
    pub fn look(&self) -> Look<T, E> {
        let mut last = self.last();
        let mut result = Ok(false);
        if last.looked.is_none_or(|looked| looked.elapsed() >= PAUSE) {
            last.looked = Some(Instant::now());
            result = self.change(&mut last);
        }
        let value = last.value.clone();
        match result {
            Ok(changed) => Look { value, changed, error: None },
            Err(error) => Look { value, changed: false, error: Some(error) },
        }
    }

    /// It is looked at when it is used next, however short ago it was.
    pub fn look_again(&self) {
        self.last().looked = None;
    }

    /// Reads the file if it is not as it was; whether there is another value.
    fn change(&self, last: &mut Last<T>) -> Result<bool, E> {
        // Before it is read: who writes meanwhile is noticed the next time.
        let stamp = Stamp::of(&self.file)?;
        if stamp == last.stamp {
            return Ok(false);
        }
        let value = (self.read)(&self.file)?;
        last.stamp = stamp;
        let changed = value != last.value;
        last.value = value;
        Ok(changed)
    }

    fn last(&self) -> MutexGuard<'_, Last<T>> {
        // What is behind it is changed in one step.
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Without what is in it.
impl<T, E> fmt::Debug for Watched<T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Watched").field(&self.file).finish()
    }
}

impl Stamp {
    fn of(file: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(file)?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
}
