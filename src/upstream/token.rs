//! Tokens of `OAuth2` client credentials [RFC 6749, 4.4]: one is kept for all calls until shortly before it ends.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{
    HeaderValue, Method, Request, Response, StatusCode, Uri,
    header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE},
};
use http_body_util::{BodyExt, Full, Limited};
use serde::Deserialize;
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};
use url::form_urlencoded;

use super::{
    Settings, UnreachedError,
    client::{classify, unsent},
    connection::{Body, SendError},
    connections::{Connections, Which},
    connector::Resolver,
};
use crate::{failure::FailureKind, log::seconds, secrets::Secret, template::Rendered};

/// A token is not used in the last part of its life, nor in the last seconds of a long one: it has to arrive.
const LAST_PART: u32 = 10;
const LAST_SECONDS: Duration = Duration::from_secs(30);
/// Longest life of a token: clocks cannot count to what a server may say.
const MAX_LIFE: Duration = Duration::from_hours(24 * 366);
/// Largest answer of a token endpoint, in bytes.
const MAX_ANSWER: usize = 64 * 1024;

const FORM: HeaderValue = HeaderValue::from_static("application/x-www-form-urlencoded");
const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// `[upstream.auth.oauth2]`.
#[derive(Debug, Clone)]
pub struct ClientCredentials {
    /// Where tokens are had.
    pub token_url: Uri,
    /// Who asks.
    pub client_id: Box<str>,
    /// The secret by which he shows it.
    pub client_secret: Rendered,
    /// Whether that goes into a header, as the standard recommends, instead of the form.
    pub in_header: bool,
    /// What is asked for.
    pub scope: Option<Box<str>>,
    /// What else the form has.
    pub params: Vec<(Box<str>, Rendered)>,
}

/// The token of all calls.
pub(super) struct Tokens {
    settings: ClientCredentials,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    token: Option<Token>,
    /// How many there have been.
    count: u64,
    /// The last failure to get one.
    failure: Option<(Instant, FailureKind)>,
}

/// A token in use.
#[derive(Clone)]
pub(super) struct Token {
    /// `Bearer ...`.
    pub(super) value: HeaderValue,
    number: u64,
    got: Instant,
    /// From when on it is not used any more.
    until: Option<Instant>,
    /// Whoever uses it had to wait for it.
    pub(super) is_new: bool,
}

/// What a token endpoint grants.
#[derive(Deserialize)]
struct Granted {
    access_token: String,
    token_type: Option<String>,
    expires_in: Option<serde_json::Value>,
}

/// What it says in place of that; by the standard a word without anything secret.
#[derive(Deserialize)]
struct Denied {
    error: String,
}

impl Tokens {
    pub(super) fn new(settings: ClientCredentials) -> Self {
        Self { settings, state: Mutex::default() }
    }

    /// With a token that shows that it is one: for requests that go nowhere.
    pub(super) fn with_stand_in(mut self) -> Self {
        let value = HeaderValue::from_static("Bearer <token>");
        let (number, got, until) = (0, Instant::now(), None);
        self.state.get_mut().token = Some(Token { value, number, got, until, is_new: false });
        self
    }

    /// The token for a call. Who asks while another one is being had waits for that, or for its failure.
    ///
    /// # Errors
    /// [`FailureKind::NoToken`] when the endpoint gives none.
    pub(super) async fn get(
        &self,
        connections: &Connections,
        time: Duration,
        secret: impl Fn(&str) -> Option<Secret>,
    ) -> Result<Token, FailureKind> {
        let asked = Instant::now();
        let mut state = self.state.lock().await;
        let is_good = |token: &&Token| token.until.is_none_or(|until| until > Instant::now());
        if let Some(token) = state.token.as_ref().filter(is_good) {
            return Ok(Token { is_new: token.got >= asked, ..token.clone() });
        }
        if let Some((_, failure)) = state.failure.as_ref().filter(|(at, _)| *at > asked) {
            return Err(failure.clone());
        }
        let answered = match self.request(secret) {
            Ok(mut request) => {
                let sent = connections.send(&mut request, Which::Fresh);
                timeout(time, answer(sent)).await.unwrap_or_else(|_| Err(no_answer()))
            }
            Err(kind) => Err(kind),
        };
        match answered.and_then(|(status, body)| granted(status, &body)) {
            Ok((value, life)) => {
                let got = Instant::now();
                let last = life.map(|life| (life / LAST_PART).min(LAST_SECONDS));
                let until = life.zip(last).map(|(life, last)| got + life - last);
                state.count += 1;
                let life_seconds = life.map(seconds);
                tracing::info!(life_seconds, "the token endpoint has given a token");
                let token = Token { value, number: state.count, got, until, is_new: true };
                state.token = Some(token.clone());
                Ok(token)
            }
            Err(kind) => {
                state.failure = Some((Instant::now(), kind.clone()));
                Err(kind)
            }
        }
    }

    /// The API has refused this token: no further call uses it.
    pub(super) async fn forget(&self, token: &Token) {
        let mut state = self.state.lock().await;
        if state.token.as_ref().is_some_and(|kept| kept.number == token.number) {
            state.token = None;
        }
    }

    fn request(
        &self,
        secret: impl Fn(&str) -> Option<Secret>,
    ) -> Result<Request<Full<Bytes>>, FailureKind> {
        let ClientCredentials { token_url, client_id, client_secret, in_header, scope, params } =
            &self.settings;
        let missing = || FailureKind::NoToken("a secret is missing".to_owned());
        let client_secret = client_secret.fill_text(&secret).ok_or_else(missing)?;
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "client_credentials");
        if !in_header {
            form.append_pair("client_id", client_id).append_pair("client_secret", &client_secret);
        }
        if let Some(scope) = scope {
            form.append_pair("scope", scope);
        }
        for (name, value) in params {
            form.append_pair(name, &value.fill_text(&secret).ok_or_else(missing)?);
        }
        let mut request = Request::new(Full::new(form.finish().into()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = token_url.clone();
        let headers = request.headers_mut();
        headers.insert(CONTENT_TYPE, FORM);
        headers.insert(ACCEPT, JSON);
        if *in_header {
            let encode =
                |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
            let user = format!("{}:{}", encode(client_id), encode(&client_secret));
            headers.insert(AUTHORIZATION, basic(&user).ok_or_else(missing)?);
        }
        Ok(request)
    }
}

/// Asks for a token that nobody uses.
///
/// # Errors
/// [`UnreachedError`] when the endpoint gives none.
pub(super) async fn probe(
    settings: &Settings,
    credentials: &ClientCredentials,
) -> Result<(), UnreachedError> {
    let connections = Connections::new(settings, Resolver::system())?;
    let secret = |name: &str| Some(settings.secrets.look(name)?.value);
    let tokens = Tokens::new(credentials.clone());
    tokens.get(&connections, settings.attempt_timeout, secret).await?;
    Ok(())
}

/// User and password as a header has them [RFC 7617].
pub(super) fn basic(user: &str) -> Option<HeaderValue> {
    sensitive(format!("Basic {}", STANDARD.encode(user)))
}

/// The value of a header that no log of the library may show.
pub(super) fn sensitive(text: String) -> Option<HeaderValue> {
    let mut value = HeaderValue::try_from(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

fn no_answer() -> FailureKind {
    FailureKind::NoToken("it did not answer in time".to_owned())
}

async fn answer(
    sent: impl Future<Output = Result<Response<Body>, SendError>>,
) -> Result<(StatusCode, Bytes), FailureKind> {
    let response = sent.await.map_err(|error| in_words(unsent(&error)))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    let body = body.map_err(|error| in_words(classify(&*error)))?;
    Ok((status, body.to_bytes()))
}

/// A failure of the exchange with the token endpoint, of which a call knows no more than that.
fn in_words(kind: FailureKind) -> FailureKind {
    match kind {
        FailureKind::Local(_) => kind,
        FailureKind::AttemptTimeout => no_answer(),
        FailureKind::Unreachable(text) | FailureKind::Broken(text) => FailureKind::NoToken(text),
        other => FailureKind::NoToken(other.to_string()),
    }
}

/// The header that a granted token becomes, and how long it lives.
fn granted(
    status: StatusCode,
    body: &[u8],
) -> Result<(HeaderValue, Option<Duration>), FailureKind> {
    let no_token = |text: &str| FailureKind::NoToken(text.to_owned());
    if !status.is_success() {
        let word = serde_json::from_slice(body).ok().map(|Denied { error }| error);
        let is_word = |word: &String| {
            word.len() <= 40 && word.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')
        };
        let word = word.filter(is_word).map(|word| format!(", {word}")).unwrap_or_default();
        return Err(FailureKind::NoToken(format!("it answers {status}{word}")));
    }
    let granted: Granted = serde_json::from_slice(body)
        .map_err(|_| no_token("its answer is no JSON with an `access_token`"))?;
    let kind = granted.token_type.as_deref().unwrap_or("Bearer");
    if !kind.eq_ignore_ascii_case("bearer") {
        return Err(no_token("its token is no Bearer token"));
    }
    let seconds = granted.expires_in.and_then(|life| match life {
        serde_json::Value::String(text) => text.parse().ok(),
        other => other.as_f64(),
    });
    let seconds = seconds.map(|seconds| seconds.max(0.0));
    let life = seconds.map(|seconds| Duration::try_from_secs_f64(seconds).unwrap_or(MAX_LIFE));
    let value = sensitive(format!("Bearer {}", granted.access_token));
    let value = value.filter(|_| !granted.access_token.is_empty());
    Ok((value.ok_or_else(|| no_token("its token is no token"))?, life.map(|l| l.min(MAX_LIFE))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_is_read_as_servers_write_it() {
        let read = |status: u16, body: &str| {
            let status = StatusCode::from_u16(status).unwrap();
            let read = granted(status, body.as_bytes());
            read.map(|(value, life)| (value.to_str().unwrap().to_owned(), life))
                .map_err(|kind| kind.to_string())
        };
        let hour = Some(Duration::from_hours(1));
        for (body, life) in [
            (r#"{"access_token":"t","token_type":"bearer","expires_in":3600}"#, hour),
            (r#"{"access_token":"t","expires_in":"3600"}"#, hour),
            (r#"{"access_token":"t","token_type":"Bearer","more":1}"#, None),
            (r#"{"access_token":"t","expires_in":1e300}"#, Some(MAX_LIFE)),
            (r#"{"access_token":"t","expires_in":-1}"#, Some(Duration::ZERO)),
        ] {
            assert_eq!(read(200, body), Ok(("Bearer t".to_owned(), life)), "{body}");
        }
        for (status, body, why) in [
            (200, "<html>", "no JSON with an `access_token`"),
            (200, r#"{"access_token":""}"#, "no token"),
            (200, r#"{"access_token":"a\nb"}"#, "no token"),
            (200, r#"{"access_token":"t","token_type":"mac"}"#, "no Bearer token"),
            (401, r#"{"error":"invalid_client"}"#, "it answers 401 Unauthorized, invalid_client"),
            (400, r#"{"error":"Secret s3cret is wrong"}"#, "it answers 400 Bad Request"),
            (503, "", "it answers 503"),
        ] {
            let found = read(status, body).unwrap_err();
            assert!(found.contains(why) && !found.contains("s3cret"), "{found}");
        }
    }

    #[test]
    fn user_and_password_are_encoded_and_not_shown() {
        let value = basic("Aladdin:open sesame").unwrap();
        assert_eq!(value.to_str().unwrap(), "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==");
        assert_eq!(format!("{value:?}"), "Sensitive");
    }
}
