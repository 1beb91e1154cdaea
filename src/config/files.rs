//! Values that come from files: certificates, keys and passwords.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::reader::Section;
use crate::{
    secrets::Secret,
    tls::{Settings, TlsError},
};

/// The certificates of a section; `encrypted` says whether its connection uses them.
pub(super) fn certificates(section: &Section<'_>, encrypted: bool) -> Settings {
    let file = |key| section.parsed(key, |text| Ok(PathBuf::from(text)));
    let settings = Settings {
        ca_file: file("ca_file"),
        cert_file: file("cert_file"),
        key_file: file("key_file"),
    };
    let checked = if section.reads_secrets() { settings.check() } else { Ok(()) };
    let named = [
        ("ca_file", settings.ca_file.is_some()),
        ("cert_file", settings.cert_file.is_some()),
        ("key_file", settings.key_file.is_some()),
    ];
    let named = named.into_iter().find_map(|(key, named)| named.then_some(key));
    if settings.cert_file.is_some() != settings.key_file.is_some() {
        section.mistake(
            None,
            "cert_file",
            "a certificate needs its key; set both `cert_file` and `key_file`",
        );
    } else if let Err(error) = checked {
        let key = match &error {
            TlsError::File { file, .. } if Some(file) == settings.key_file.as_ref() => "key_file",
            TlsError::File { file, .. } if Some(file) == settings.cert_file.as_ref() => "cert_file",
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

/// A secret given as a value or as the name of a file, and that file.
pub(super) fn secret(
    section: &Section<'_>,
    key: &'static str,
    file_key: &'static str,
) -> (Option<Secret>, Option<PathBuf>) {
    let named = || Secret::new(format!("<{key}>"));
    let reads = section.reads_secrets();
    let value = section.parsed(key, |text| Ok(if reads { Secret::new(text) } else { named() }));
    let from_file = section.parsed(file_key, |file| {
        let secret = if reads { read(file, key)? } else { named() };
        Ok((secret, PathBuf::from(file)))
    });
    if value.is_some() && from_file.is_some() {
        section.mistake(
            None,
            key,
            format!("`{key}` and `{file_key}` exclude each other; take one out"),
        );
    }
    let (read, file) = from_file.unzip();
    (value.or(read), file)
}

fn read(file: &str, key: &str) -> Result<Secret, String> {
    let named = shown(file);
    let text = fs::read_to_string(file).map_err(|error| {
        format!("{named}: {error}; write a file's name here, the value itself goes to `{key}`")
    })?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(format!("{named} is empty")),
        text => Ok(Secret::new(text)),
    }
}

/// The name of a file with a secret. Not echoed unless it looks like a file: it may be the secret itself, in the wrong
/// place.
pub(super) fn shown(file: &str) -> &str {
    let path = Path::new(file);
    let is_place = path.is_absolute() && path.parent().is_some_and(Path::is_dir);
    if is_place { file } else { "this file" }
}
