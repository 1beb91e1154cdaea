//! Reads `[device] keys_file`, which rows with `credentials = "listed"` take their devices' keys from.

use std::{path::Path, sync::Arc};

use super::{files::shown, reader::Section};
use crate::{
    secrets::key_list::{KeyList, KeyListError},
    table::{Table, route::Credentials},
};

/// The keys, if a file of them is named. What is wrong is noted.
pub(super) fn read(device: &Section<'_>) -> Option<Arc<KeyList>> {
    let keys = device.parsed("keys_file", |file| {
        if !device.reads_secrets() {
            return Ok(KeyList::stand_in());
        }
        let named = shown(file);
        KeyList::read(Path::new(file)).map_err(|error| match error {
            KeyListError::Unreadable(error) => {
                format!("{named}: {error}; write the name of a file {{\"device\": \"key\"}}")
            }
            error => format!("{named}: {error}"),
        })
    });
    keys.map(Arc::new)
}

/// Notes a file that no row needs, and rows that need one.
pub(super) fn check(device: &Section<'_>, table: &Table, keys: Option<&Arc<KeyList>>) {
    let is_named = keys.is_some() || device.has_mistake("keys_file");
    let listed = table.routes.iter().find(|route| route.credentials == Credentials::Listed);
    match (listed, is_named) {
        (Some(route), false) => {
            let text = format!(
                "missing: where the keys of devices stand that route `{}` asks for (credentials = \"listed\")",
                route.name
            );
            device.mistake(None, "keys_file", text);
        }
        (None, true) => {
            let text = "unused: no row says credentials = \"listed\"; take it out";
            device.mistake(None, "keys_file", text);
        }
        _ => {}
    }
}
