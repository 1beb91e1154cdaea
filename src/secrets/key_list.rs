//! The keys of devices that cannot show one: a file has them, by device, and is read again when it changes.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Read},
    path::Path,
    sync::Arc,
};

use super::{
    Secret,
    watched::{Look, Watched},
};

/// Longest key that is accepted from a message or a list, in bytes; servers refuse longer headers.
pub(crate) const MAX_KEY_BYTES: usize = 4096;

/// Largest file, in bytes: a hundred thousand devices. While it is read, nothing else is done.
const MAX_BYTES: u64 = 8 * 1024 * 1024;

/// What is in the file.
type Listed = Arc<HashMap<Box<str>, Secret>>;

/// `[device] keys_file`.
#[derive(Debug)]
pub struct KeyList(Source);

#[derive(Debug)]
enum Source {
    File(Watched<Listed, KeyListError>),
    /// Every device has this one, where no secret is read.
    StandIn(Secret),
}

/// Why a file has no keys. Says nothing of what is in it, which are keys.
#[derive(Debug, thiserror::Error)]
pub enum KeyListError {
    /// The file cannot be read.
    #[error("{0}")]
    Unreadable(#[from] io::Error),
    /// No fleet has as many devices as such a file could list.
    #[error("it is larger than {} MiB", MAX_BYTES >> 20)]
    TooLarge,
    /// It is not what it should be.
    #[error("line {0}: it is no JSON object of a text for each device: {{\"device\": \"key\"}}")]
    NotKeys(usize),
    /// A key that no message could bring.
    #[error(
        "the key of `{0}` is none: 1 to {MAX} printable ASCII characters, none of them a space",
        MAX = MAX_KEY_BYTES
    )]
    NoKey(Box<str>),
}

impl KeyList {
    /// Those in a file, which is read.
    ///
    /// # Errors
    /// [`KeyListError`] when it has none.
    pub fn read(file: &Path) -> Result<Self, KeyListError> {
        Watched::new(file, read).map(|file| Self(Source::File(file)))
    }

    /// In place of a file that is not read: every device has a key, which is the name of one.
    pub fn stand_in() -> Self {
        Self(Source::StandIn(Secret::new("<key>")))
    }

    /// Looks at the file now; why the keys read before stay, if it cannot be used.
    pub fn look_now(&self) -> Option<KeyListError> {
        let Source::File(file) = &self.0 else { return None };
        file.look_again();
        file.look().error
    }

    /// The key of a device as it is now; and why that is what was read before, if the file cannot be used.
    pub fn key(&self, device: &str) -> (Option<Secret>, Option<KeyListError>) {
        match &self.0 {
            Source::StandIn(key) => (Some(key.clone()), None),
            Source::File(file) => {
                let Look { value, error, .. } = file.look();
                (value.get(device).cloned(), error)
            }
        }
    }
}

fn read(file: &Path) -> Result<Listed, KeyListError> {
    let mut text = Vec::new();
    File::open(file)?.take(MAX_BYTES + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_BYTES {
        return Err(KeyListError::TooLarge);
    }
    // The library's own words quote what they do not like.
    let listed = serde_json::from_slice::<HashMap<Box<str>, Box<str>>>(&text)
        .map_err(|error| KeyListError::NotKeys(error.line()))?;
    let listed = listed.into_iter().map(|(device, key)| {
        if is_key(&key) { Ok((device, Secret::new(key))) } else { Err(KeyListError::NoKey(device)) }
    });
    listed.collect::<Result<_, _>>().map(Arc::new)
}

/// Whether a text can be the key of a device.
pub(crate) fn is_key(key: &str) -> bool {
    (1..=MAX_KEY_BYTES).contains(&key.len()) && key.bytes().all(|b| (0x21..0x7f).contains(&b))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::secrets::watched::PAUSE;

    #[tokio::test(start_paused = true)]
    async fn a_device_that_is_added_is_known_and_a_file_that_is_broken_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("keys.json");
        fs::write(&file, r#"{"d1": "k1", "north/temp": "k 2"}"#).unwrap();
        let error = KeyList::read(&file).unwrap_err().to_string();
        assert!(error.contains("`north/temp`") && !error.contains("k 2"), "{error}");
        fs::write(&file, r#"{"d1": "k1", "north/temp": "k2"}"#).unwrap();
        let keys = KeyList::read(&file).unwrap();
        let key = |device| keys.key(device).0.map(|key| key.expose().to_owned());
        assert_eq!((key("d1").as_deref(), key("north/temp").as_deref()), (Some("k1"), Some("k2")));
        assert_eq!((key("temp"), key("d2")), (None, None));
        fs::write(&file, r#"{"d2": "k3"}"#).unwrap();
        assert_eq!(key("d2"), None, "it was looked at a moment ago");
        tokio::time::advance(PAUSE).await;
        assert_eq!((key("d2").as_deref(), key("d1")), (Some("k3"), None));
        for content in ["", "[]", r#"{"d2": 47114711}"#, r#"{"d2": ""}"#, "{\"d2\": \"k\"\n,}"] {
            fs::write(&file, content).unwrap();
            tokio::time::advance(PAUSE).await;
            let (known, error) = keys.key("d2");
            assert_eq!(known.unwrap().expose(), "k3", "{content}");
            assert!(!error.unwrap().to_string().contains("4711"), "{content}");
            assert!(keys.key("d2").1.is_none(), "said once");
        }
        assert!(!format!("{keys:?}").contains("k3"));
    }
}
