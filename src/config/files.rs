//! Values that come from files: certificates, keys and passwords.

use std::path::{Path, PathBuf};

use super::reader::Section;
use crate::{
    secrets::{
        Secret,
        password::{Password, PasswordError},
    },
    tls::{Files, Settings, TlsError},
};

/// The certificates of a section; `encrypted` says whether its connection uses them.
pub(super) fn certificates(section: &Section<'_>, encrypted: bool) -> Settings {
    let file = |key| section.parsed(key, |text| Ok(PathBuf::from(text)));
    let files = Files {
        ca_file: file("ca_file"),
        cert_file: file("cert_file"),
        key_file: file("key_file"),
    };
    let settings = Settings::new(files.clone());
    let checked = if section.reads_secrets() { settings.check() } else { Ok(()) };
    let named = [
        ("ca_file", files.ca_file.is_some()),
        ("cert_file", files.cert_file.is_some()),
        ("key_file", files.key_file.is_some()),
    ];
    let named = named.into_iter().find_map(|(key, named)| named.then_some(key));
    if files.cert_file.is_some() != files.key_file.is_some() {
        section.mistake(
            None,
            "cert_file",
            "a certificate needs its key; set both `cert_file` and `key_file`",
        );
    } else if let Err(error) = checked {
        let key = match &error {
            TlsError::File { file, .. } if Some(file) == files.key_file.as_ref() => "key_file",
            TlsError::File { file, .. } if Some(file) == files.cert_file.as_ref() => "cert_file",
            TlsError::File { .. } | TlsError::NoRoots => "ca_file",
            TlsError::Pair(_) | TlsError::Rustls(_) => "key_file",
        };
        section.mistake(None, key, error.to_string());
    } else if let (Some(key), false) = (named, encrypted)
        // What would stand there instead of a wrong URL is not known.
        && !section.has_mistake("url")
    {
        let text = "the connection is not encrypted and would not use it; write an `mqtts://`, `wss://` \
                    or `https://` url";
        section.mistake(None, key, text);
    }
    settings
}

/// The password of a section, given as a value or as the name of a file.
pub(super) fn password(section: &Section<'_>) -> Option<Password> {
    let stand_in = || Password::Value(Secret::new("<password>"));
    let reads = section.reads_secrets();
    let value = section.parsed("password", |text| {
        Ok(if reads { Password::Value(Secret::new(text)) } else { stand_in() })
    });
    let from_file = section.parsed("password_file", |file| {
        if !reads {
            return Ok(stand_in());
        }
        let named = shown(file);
        Password::file(Path::new(file)).map_err(|error| match error {
            PasswordError::Unreadable(error) => {
                format!("{named}: {error}; write a file's name here, the value itself goes to `password`")
            }
            PasswordError::Empty => format!("{named} is empty"),
        })
    });
    if value.is_some() && from_file.is_some() {
        let text = "`password` and `password_file` exclude each other; take one out";
        section.mistake(None, "password", text);
    }
    value.or(from_file)
}

/// The name of a file with a secret. Not echoed unless it looks like a file: it may be the secret itself, in the wrong
/// place.
pub(super) fn shown(file: &str) -> &str {
    let path = Path::new(file);
    let is_place = path.is_absolute() && path.parent().is_some_and(Path::is_dir);
    if is_place { file } else { "this file" }
}
