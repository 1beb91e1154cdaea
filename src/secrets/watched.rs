//! Files that are read again when they have changed, so that what is in them can be replaced while the gateway runs.
//!
//! They are looked at when they are used, and then not again for a while. Where one cannot be read, or what is in them
//! cannot be used, what was read before stays: so of a certificate and its key never one is taken without the other.

use std::{
    fmt, fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Files are not looked at again sooner.
pub(crate) const PAUSE: Duration = Duration::from_secs(5);

/// Files, and what was read in them.
pub struct Watched<T, E> {
    files: Box<[PathBuf]>,
    read: Box<dyn Fn() -> Result<T, E> + Send + Sync>,
    last: Mutex<Last<T>>,
}

struct Last<T> {
    value: T,
    /// The files as they were when the value was read.
    stamps: Stamps,
    /// When they were looked at; none if they are to be looked at whenever that was.
    looked: Option<Instant>,
}

/// For each file what tells that it is another; none if there is no such file.
type Stamps = Box<[Option<Stamp>]>;

/// What tells that a file is another one than before, or has another content. A link is followed: Kubernetes changes
/// where one points to.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

/// What is in the files now.
pub struct Look<T, E> {
    /// Its value.
    pub value: T,
    /// It is another one than at the last look.
    pub changed: bool,
    /// Why it is the value read before, if the files cannot be used.
    pub error: Option<E>,
}

impl<T: Clone + PartialEq + 'static, E: 'static> Watched<T, E> {
    /// A file that `read` reads, and has read.
    ///
    /// # Errors
    /// What `read` says.
    pub fn new(file: &Path, read: fn(&Path) -> Result<T, E>) -> Result<Self, E> {
        let named = file.to_owned();
        Self::files([file.to_owned()].into(), move || read(&named))
    }

    /// Several files that `read` reads, and has read.
    ///
    /// # Errors
    /// What `read` says.
    pub fn files(
        files: Box<[PathBuf]>,
        read: impl Fn() -> Result<T, E> + Send + Sync + 'static,
    ) -> Result<Self, E> {
        let (stamps, value) = (stamps(&files), read()?);
        let last = Mutex::new(Last { value, stamps, looked: Some(Instant::now()) });
        Ok(Self { files, read: Box::new(read), last })
    }

    /// What is in them now.
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

    /// What was read in them last.
    pub fn last_read(&self) -> T {
        self.last().value.clone()
    }

    /// They are looked at when they are used next, however short ago it was.
    pub fn look_again(&self) {
        self.last().looked = None;
    }

    /// Reads the files if they are not as they were; whether there is another value.
    fn change(&self, last: &mut Last<T>) -> Result<bool, E> {
        // Before they are read: who writes meanwhile is noticed the next time.
        let stamps = stamps(&self.files);
        if stamps == last.stamps {
            return Ok(false);
        }
        let value = (self.read)()?;
        last.stamps = stamps;
        let changed = value != last.value;
        last.value = value;
        if changed {
            let files: Vec<_> = self.files.iter().map(|file| file.to_string_lossy()).collect();
            let files = files.join(", ");
            tracing::info!(files, "read again, since they have changed");
        }
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
        f.debug_tuple("Watched").field(&self.files).finish()
    }
}

fn stamps(files: &[PathBuf]) -> Stamps {
    // Why one is not there is said by whoever reads it.
    files.iter().map(|file| Stamp::of(file).ok()).collect()
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
