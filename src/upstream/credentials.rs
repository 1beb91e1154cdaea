//! What a request shows the API so that it is let in: the device's key, and what is the gateway's own, secrets and tokens,
//! as it is now.

use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, HeaderName, HeaderValue, Request, header::AUTHORIZATION};
use tokio::time::timeout_at;

use super::{
    Auth, Settings,
    connections::Connections,
    token::{Token, Tokens, basic, sensitive},
};
use crate::{
    call::{
        Authorization, Call, StatusCode,
        headers::Value,
        sign::{Sign, Signed},
    },
    failure::FailureKind,
    metrics::Metrics,
    secrets::{Secret, Secrets, watched::Look},
    template::{KEY, Rendered},
    wall_clock,
};

/// Fills them in, for each attempt.
pub(super) struct Credentials {
    secrets: Arc<Secrets>,
    auth: Option<OwnAuth>,
    key_header: HeaderName,
    key_prefix: Box<str>,
    refused_on: Box<[StatusCode]>,
    /// How long a token may take.
    time: Duration,
    metrics: Arc<Metrics>,
}

/// What goes into `Authorization` of every call.
enum OwnAuth {
    Basic(Rendered),
    Tokens(Box<Tokens>),
}

/// What an attempt shows of the gateway's own.
pub(super) struct Shown {
    /// How often secrets had changed.
    changes: u64,
    token: Option<Token>,
}

impl Credentials {
    pub(super) fn new(settings: &Settings, metrics: Arc<Metrics>) -> Self {
        let auth = settings.auth.as_deref().map(|auth| match auth {
            Auth::Basic(user) => OwnAuth::Basic(user.clone()),
            Auth::ClientCredentials(credentials) => {
                let tokens = Tokens::new(credentials.clone());
                let is_network = settings.in_process.is_none();
                OwnAuth::Tokens(Box::new(if is_network { tokens } else { tokens.with_stand_in() }))
            }
        });
        Self {
            secrets: settings.secrets.clone(),
            auth,
            key_header: settings.key_header.clone(),
            key_prefix: settings.key_prefix.clone(),
            refused_on: settings.refused_on.clone(),
            time: settings.attempt_timeout,
            metrics,
        }
    }

    /// What the next attempt of a call shows; for a token it may have to wait.
    ///
    /// # Errors
    /// [`FailureKind::NoToken`] when none is to be had, [`FailureKind::Expired`] when the message has no time to wait.
    pub(super) async fn next(
        &self,
        call: &Call,
        connections: &Connections,
    ) -> Result<Shown, FailureKind> {
        let mut shown = Shown { changes: self.secrets.changes(), token: None };
        if let Some(OwnAuth::Tokens(tokens)) = &self.auth {
            // Boxed, so that calls which carry none have no room for the request that gets one.
            let token = Box::pin(tokens.get(connections, self.time, |name| self.own(name)));
            shown.token = Some(match call.expires {
                None => token.await?,
                Some(expires) => {
                    timeout_at(expires, token).await.map_err(|_| FailureKind::Expired)??
                }
            });
        }
        Ok(shown)
    }

    /// The path of a call, whole.
    ///
    /// # Errors
    /// [`FailureKind::Broken`] when it cannot be made, which the configuration rules out; so below.
    pub(super) fn path<'c>(&self, call: &'c Call) -> Result<Cow<'c, str>, FailureKind> {
        call.path.fill_path(|name| self.secret(name, call)).ok_or_else(missing)
    }

    /// Puts the headers that the configuration names, the device's key, and the gateway's own authorization.
    pub(super) fn put(
        &self,
        call: &Call,
        shown: &Shown,
        headers: &mut HeaderMap,
    ) -> Result<(), FailureKind> {
        for header in &*call.headers {
            let value = match &header.value {
                Value::Whole(value) => value.clone(),
                Value::WithSecrets(text) => {
                    let text = text.fill_text(|name| self.secret(name, call));
                    sensitive(text.ok_or_else(missing)?.into_owned()).ok_or_else(missing)?
                }
            };
            headers.insert(header.name.clone(), value);
        }
        match &call.authorization {
            Authorization::SpeakersKey(key) if !call.places_key() => {
                let value = sensitive(format!("{}{}", self.key_prefix, key.expose()));
                headers.insert(self.key_header.clone(), value.ok_or_else(missing)?);
            }
            Authorization::SpeakersKey(_) | Authorization::None => {}
        }
        let own = match (&self.auth, &shown.token) {
            (Some(OwnAuth::Basic(user)), _) => {
                let user = user.fill_text(|name| self.own(name)).ok_or_else(missing)?;
                Some(basic(&user).ok_or_else(missing)?)
            }
            (_, token) => token.as_ref().map(|token| token.value.clone()),
        };
        if let Some(own) = own {
            // What the API says of it is passed on without it.
            if let Some((_, value)) = own.to_str().ok().and_then(|text| text.split_once(' ')) {
                self.secrets.show(value);
            }
            headers.insert(AUTHORIZATION, own);
        }
        Ok(())
    }

    /// Signs a request that is complete.
    pub(super) fn sign<B>(
        &self,
        sign: &Sign,
        body: &[u8],
        request: &mut Request<B>,
    ) -> Result<(), FailureKind> {
        let secret = sign.secret.fill_text(|name| self.own(name)).ok_or_else(missing)?;
        let now = wall_clock::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let timestamp = now.as_secs().to_string();
        let path = request.uri().path_and_query().map_or("", |path| path.as_str());
        let method = request.method().as_str();
        let value = sign.value(&secret, &Signed { timestamp: &timestamp, method, path, body });
        let value = HeaderValue::try_from(value).map_err(|_| missing())?;
        let headers = request.headers_mut();
        headers.insert(sign.header.clone(), value);
        if let Some(name) = &sign.timestamp {
            headers.insert(name.clone(), HeaderValue::try_from(timestamp).map_err(|_| missing())?);
        }
        Ok(())
    }

    /// Whether an answer says that the gateway's own credentials are refused: the call carried some, and this is one of the
    /// statuses that say so.
    pub(super) fn are_refused(&self, call: &Call, status: StatusCode) -> bool {
        let carries_own = || self.auth.is_some() || call.secrets().any(|name| name != KEY);
        self.refused_on.contains(&status) && carries_own()
    }

    /// What was shown is refused. Whether the call would show something else now: secrets are read again, and a token that
    /// was not got for this very attempt is given up.
    pub(super) async fn can_show_others(&self, call: &Call, shown: &Shown) -> bool {
        self.secrets.look_again();
        for name in call.secrets() {
            self.secret(name, call);
        }
        if let Some(token) = &shown.token {
            self.forget(shown).await;
            return !token.is_new;
        }
        if let Some(OwnAuth::Basic(user)) = &self.auth {
            user.secrets().for_each(|name| drop(self.own(name)));
        }
        self.secrets.changes() != shown.changes
    }

    /// No further call shows this token.
    pub(super) async fn forget(&self, shown: &Shown) {
        if let (Some(OwnAuth::Tokens(tokens)), Some(token)) = (&self.auth, &shown.token) {
            tokens.forget(token).await;
        }
    }

    /// The secret of this name as it is now, or the device's key.
    fn secret(&self, name: &str, call: &Call) -> Option<Secret> {
        if name == KEY {
            return call.authorization.speakers_key().cloned();
        }
        self.own(name)
    }

    /// The secret of this name as it is now.
    fn own(&self, name: &str) -> Option<Secret> {
        let Look { value, error, .. } = self.secrets.look(name)?;
        if let Some(error) = error {
            self.metrics.secret_failed(name);
            tracing::error!(secret = name, %error, "its file cannot be used; the value read before stays");
        }
        Some(value)
    }
}

fn missing() -> FailureKind {
    FailureKind::Broken("a secret is missing, or cannot stand where it should".to_owned())
}
