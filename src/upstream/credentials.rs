//! What a request shows the API so that it is let in: the device's key, and the gateway's own secrets as they are now.

use std::{borrow::Cow, sync::Arc};

use http::{HeaderMap, HeaderName, HeaderValue};

use super::Settings;
use crate::{
    call::{Authorization, Call},
    failure::FailureKind,
    headers::Value,
    metrics::Metrics,
    secret::Secret,
    secrets::Secrets,
    template::KEY,
    watched::Look,
};

/// Fills them in, for each attempt.
pub(super) struct Credentials {
    secrets: Arc<Secrets>,
    key_header: HeaderName,
    key_prefix: Box<str>,
    metrics: Arc<Metrics>,
}

impl Credentials {
    pub(super) fn new(settings: &Settings, metrics: Arc<Metrics>) -> Self {
        Self {
            secrets: settings.secrets.clone(),
            key_header: settings.key_header.clone(),
            key_prefix: settings.key_prefix.clone(),
            metrics,
        }
    }

    /// The path of a call, whole.
    ///
    /// # Errors
    /// [`FailureKind::Broken`] when it cannot be made, which the configuration rules out; so below.
    pub(super) fn path<'c>(&self, call: &'c Call) -> Result<Cow<'c, str>, FailureKind> {
        call.path.fill_path(|name| self.secret(name, call)).ok_or_else(missing)
    }

    /// Puts the headers that the configuration names, and the device's key.
    pub(super) fn put(&self, call: &Call, headers: &mut HeaderMap) -> Result<(), FailureKind> {
        for header in &*call.headers {
            let value = match &header.value {
                Value::Whole(value) => value.clone(),
                Value::WithSecrets(text) => {
                    let text = text.fill_text(|name| self.secret(name, call));
                    sensitive(text.ok_or_else(missing)?.into_owned())?
                }
            };
            headers.insert(header.name.clone(), value);
        }
        match &call.authorization {
            Authorization::SpeakersKey(key) if !call.places_key() => {
                let value = sensitive(format!("{}{}", self.key_prefix, key.expose()))?;
                headers.insert(self.key_header.clone(), value);
            }
            Authorization::SpeakersKey(_) | Authorization::None => {}
        }
        Ok(())
    }

    /// The secret of this name as it is now.
    fn secret(&self, name: &str, call: &Call) -> Option<Secret> {
        if name == KEY {
            return call.authorization.speakers_key().cloned();
        }
        let Look { value, error, .. } = self.secrets.look(name)?;
        if let Some(error) = error {
            self.metrics.secret_failed(name);
            tracing::error!(secret = name, %error, "its file cannot be used; the value read before stays");
        }
        Some(value)
    }
}

/// The value of a header that no log of the library may show.
fn sensitive(text: String) -> Result<HeaderValue, FailureKind> {
    let mut value = HeaderValue::try_from(text)
        .map_err(|_| FailureKind::Broken("the key is no header value".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

fn missing() -> FailureKind {
    FailureKind::Broken("a secret is missing".to_owned())
}
