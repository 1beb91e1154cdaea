//! The gateway's own secrets, by name. Those that come from files are read again when their file changes, so that a
//! token can be replaced while the gateway runs.
//!
//! How files are watched: `watched.rs`. The keys of devices are another list: `key_list.rs`; the password for the broker:
//! `password.rs`.

pub(crate) mod key_list;
pub(crate) mod password;
mod secret;
pub(crate) mod watched;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

pub(crate) use self::secret::Secret;
pub(crate) use self::secret::{is_printable, plain, sounds_secret};
use self::watched::{Look, Watched};

/// Longest secret, in bytes: it has to fit into the head of a request.
const MAX_BYTES: u64 = 4096;

/// All of them.
#[derive(Debug, Default)]
pub struct Secrets {
    named: BTreeMap<Arc<str>, Source>,
    /// How often one has changed.
    changes: AtomicU64,
    /// What was shown that is made of them, or had for them: the last two, since whoever refuses the one before may still
    /// speak of it.
    shown: Mutex<[Option<Secret>; 2]>,
}

/// Where a secret comes from.
#[derive(Debug)]
pub enum Source {
    /// The configuration itself.
    Value(Secret),
    /// A file.
    File(Watched<Secret, SecretError>),
}

/// Why a text or a file is no secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file cannot be read.
    #[error("{0}")]
    Unreadable(#[from] io::Error),
    /// There is nothing in it.
    #[error("it is empty")]
    Empty,
    /// It could not go into a request.
    #[error("it is no line of at most {MAX_BYTES} printable ASCII characters")]
    Unusable,
}

impl Source {
    /// A value, as it stands in the configuration.
    ///
    /// # Errors
    /// [`SecretError`] when it can be none.
    pub fn value(text: &str) -> Result<Self, SecretError> {
        secret(text).map(Self::Value)
    }

    /// A file, which is read.
    ///
    /// # Errors
    /// [`SecretError`] when there is no secret in it.
    pub fn file(file: &Path) -> Result<Self, SecretError> {
        Watched::new(file, read).map(Self::File)
    }
}

impl Secrets {
    /// These.
    pub fn new(named: BTreeMap<Arc<str>, Source>) -> Self {
        Self { named, ..Self::default() }
    }

    /// The names of those that are read from files.
    pub fn files(&self) -> impl Iterator<Item = &Arc<str>> {
        let files = self.named.iter().filter(|(_, source)| matches!(source, Source::File(_)));
        files.map(|(name, _)| name)
    }

    /// The secret of this name as it is now; `None` if there is none, which the configuration rules out.
    pub fn look(&self, name: &str) -> Option<Look<Secret, SecretError>> {
        let look = match self.named.get(name)? {
            Source::Value(value) => Look { value: value.clone(), changed: false, error: None },
            Source::File(watched) => watched.look(),
        };
        self.changes.fetch_add(look.changed.into(), Ordering::Relaxed);
        Some(look)
    }

    /// Every file is looked at when its secret is used next, however short ago it was.
    pub fn look_again(&self) {
        for source in self.named.values() {
            if let Source::File(watched) = source {
                watched.look_again();
            }
        }
    }

    /// Looks at every file now. A secret whose file cannot be used, and why: it stays as it was.
    pub fn look_now(&self) -> impl Iterator<Item = (&str, SecretError)> {
        self.look_again();
        self.named.keys().filter_map(|name| Some((&**name, self.look(name)?.error?)))
    }

    /// This is shown, and is made of them or had for them: a token, a user with a password.
    pub fn show(&self, value: &str) {
        let mut shown = self.shown();
        if shown.iter().flatten().all(|known| known.expose() != value) {
            shown.rotate_right(1);
            shown[0] = Some(Secret::new(value));
        }
    }

    /// The text without any of them, as they were last read, and without what is made of them.
    pub fn mask<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let named = self.named.values().map(|source| match source {
            Source::Value(value) => value.clone(),
            Source::File(watched) => watched.last_read(),
        });
        let shown = self.shown().clone();
        let all = named.chain(shown.into_iter().flatten());
        all.fold(Cow::Borrowed(text), |text, secret| without(text, secret.expose()))
    }

    fn shown(&self) -> MutexGuard<'_, [Option<Secret>; 2]> {
        // Whoever panicked had changed nothing, or all.
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How often one has changed so far.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Relaxed)
    }
}

/// The text without this key, as it is and as it stands in JSON.
pub(crate) fn without<'t>(text: Cow<'t, str>, key: &str) -> Cow<'t, str> {
    let as_json = serde_json::Value::from(key).to_string();
    [key, as_json.trim_matches('"')].into_iter().fold(text, |text, form| {
        // A key of a letter or two is found in any text.
        let found = if form.len() < 4 { *text == *form } else { text.contains(form) };
        if found { text.replace(form, "<redacted>").into() } else { text }
    })
}

fn read(file: &Path) -> Result<Secret, SecretError> {
    let mut bytes = Vec::new();
    // One more than may be, and a line's end: what is longer is noticed without being read.
    File::open(file)?.take(MAX_BYTES + 3).read_to_end(&mut bytes)?;
    let text = String::from_utf8(bytes).map_err(|_| SecretError::Unusable)?;
    secret(text.trim_end_matches(['\r', '\n']))
}

fn secret(text: &str) -> Result<Secret, SecretError> {
    if text.is_empty() {
        return Err(SecretError::Empty);
    }
    // As a segment of a path, dots alone would change it.
    let legal = is_printable(text) && text.len() as u64 <= MAX_BYTES && text != "." && text != "..";
    if legal { Ok(Secret::new(text)) } else { Err(SecretError::Unusable) }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use super::*;
    use crate::secrets::watched::PAUSE;

    fn secrets(file: &Path) -> Secrets {
        let fixed = Source::value("f").unwrap();
        let named = [("token".into(), Source::file(file).unwrap()), ("fixed".into(), fixed)];
        Secrets::new(named.into())
    }

    /// The token as it is now, and whether its file was in order.
    fn token(secrets: &Secrets) -> (String, bool) {
        let Look { value, error, .. } = secrets.look("token").unwrap();
        (value.expose().to_owned(), error.is_none())
    }

    #[tokio::test(start_paused = true)]
    async fn a_file_that_changes_is_read_again_and_one_that_cannot_be_read_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two, link) =
            (dir.path().join("1"), dir.path().join("2"), dir.path().join("link"));
        fs::write(&one, "first\n").unwrap();
        fs::write(&two, "other\r\n").unwrap();
        symlink(&one, &link).unwrap();
        let secrets = secrets(&link);
        assert_eq!(token(&secrets), ("first".to_owned(), true));
        // As Kubernetes does: another link takes the place of the first.
        let new = dir.path().join("new");
        symlink(&two, &new).unwrap();
        fs::rename(&new, &link).unwrap();
        assert_eq!(token(&secrets).0, "first", "it was looked at a moment ago");
        tokio::time::advance(PAUSE).await;
        assert_eq!((token(&secrets).0.as_str(), secrets.changes()), ("other", 1));
        for content in ["", "\n", "\u{e9}", "a\nb", "..", &"x".repeat(4097)] {
            fs::write(&two, content).unwrap();
            secrets.look_again();
            assert_eq!(token(&secrets), ("other".to_owned(), false), "{content}");
        }
        fs::remove_file(&two).unwrap();
        tokio::time::advance(PAUSE).await;
        assert_eq!(token(&secrets), ("other".to_owned(), false));
        fs::write(&two, "third").unwrap();
        secrets.look_again();
        assert_eq!((token(&secrets), secrets.changes()), (("third".to_owned(), true), 2));
        assert!(secrets.look("fixed").is_some() && secrets.look("none").is_none());
    }

    #[test]
    fn the_last_two_that_were_shown_are_masked() {
        let secrets = Secrets::default();
        for value in ["first", "second", "second", "third", "second"] {
            secrets.show(value);
        }
        let masked = secrets.mask("first second third");
        assert_eq!(masked, "first <redacted> <redacted>");
    }

    #[test]
    fn nothing_of_it_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "s3cret").unwrap();
        assert!(Source::value("x y").is_ok() && Source::value("").is_err());
        assert!(!format!("{:?}", secrets(&file)).contains("s3cret"));
        assert!(Source::file(dir.path()).is_err(), "a folder");
    }
}
