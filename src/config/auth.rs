//! Reads `[upstream.auth]` and `sign`: what the gateway itself shows the API, beyond headers.

use http::{
    HeaderName, Uri,
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use url::Url;

use super::{
    reader::Section,
    secrets::Secrets,
    values::{is_reserved_header, one_of},
};
use crate::{
    call::sign::{SIGNED, Sign, WRITTEN},
    template::{KEY, Rendered, Template},
    upstream::{Auth, ClientCredentials},
};

/// `None` if nothing is written, or it is wrong, which is noted.
pub(super) fn auth<'a>(upstream: &Section<'a>, secrets: &Secrets<'a>) -> Option<Auth> {
    let section = upstream.section("auth");
    let is_there = upstream.is_written("auth");
    let basic = text(&section, secrets, "basic", Needs::Secret);
    let oauth2 = section.section("oauth2");
    let has_oauth2 = section.is_written("oauth2");
    let credentials = if has_oauth2 { client_credentials(&oauth2, secrets) } else { None };
    oauth2.finish();
    let auth = match (section.is_written("basic"), has_oauth2) {
        (true, true) => {
            section.mistake(None, "basic", "`basic` and `oauth2` exclude each other; take one out");
            None
        }
        (_, true) => credentials.map(Auth::ClientCredentials),
        (false, false) if is_there && basic.is_none() => {
            let text = "nothing is in it; write `basic = \"user:{$name}\"` or `oauth2 = { .. }`";
            upstream.mistake(None, "auth", text);
            None
        }
        (_, false) => basic.map(Auth::Basic),
    };
    if let Some(Auth::Basic(basic)) = &auth
        && !basic.as_str().contains(':')
    {
        let text = "there is no `:` between user and password; write `user:{$name}`";
        section.mistake(None, "basic", text);
    }
    section.finish();
    auth
}

fn client_credentials<'a>(
    section: &Section<'a>,
    secrets: &Secrets<'a>,
) -> Option<ClientCredentials> {
    let missing = "missing: where tokens are had, `https://host/path`";
    let token_url = section.required("token_url", token_url, missing);
    let id = |text: &str| Ok(text.into());
    let client_id = section.required("client_id", id, "missing: who asks for tokens");
    let client_secret = text(section, secrets, "client_secret", Needs::Secret);
    if !section.is_written("client_secret") {
        let missing = "missing: write it into [secrets] and `{$name}` here";
        section.mistake(None, "client_secret", missing);
    }
    let in_header =
        section.parsed("secret_in", |text| one_of(text, &[("body", false), ("header", true)]));
    let scope = section.parsed("scope", |text| Ok(text.into()));
    let mut params = Vec::new();
    for (name, value) in section.inline_at("params").iter().flat_map(Section::entries) {
        let span = value.span();
        let note =
            |text: &str| section.mistake(Some(span.clone()), "params", format!("`{name}`: {text}"));
        let Some(written) = value.get_ref().as_str() else {
            note("expected a text");
            continue;
        };
        match template(written, Needs::Nothing) {
            Ok((template, rendered)) => {
                secrets.unknown(&template).iter().for_each(|text| note(text));
                params.push((name.as_str().into(), rendered));
            }
            Err(text) => note(text),
        }
    }
    Some(ClientCredentials {
        token_url: token_url?,
        client_id: client_id?,
        client_secret: client_secret?,
        in_header: in_header.unwrap_or_default(),
        scope,
        params,
    })
}

fn token_url(text: &str) -> Result<Uri, String> {
    let wanted = "write `https://host/path`";
    let url = Url::parse(text).map_err(|error| format!("invalid URL ({error}); {wanted}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("unknown scheme `{}`; {wanted}", url.scheme()));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("the URL has credentials; write `client_id` and `client_secret`".to_owned());
    }
    url.as_str().parse().map_err(|_| format!("no request can name this URL; {wanted}"))
}

/// `sign` of a row or of `[upstream]`; `None` if it has none, or it is wrong, which is noted.
pub(super) fn sign<'a>(section: &Section<'a>, secrets: &Secrets<'a>) -> Option<Sign> {
    let entry = section.inline_at("sign")?;
    let note = |text: String| section.mistake(None, "sign", text);
    let secret = text_of(&entry, secrets, "secret", Needs::Secret, |text| {
        note(format!("`secret`: {text}"));
    });
    let vocabulary = |key: &'static str, names: &'static [&'static str]| {
        let written = entry.written(key)?;
        match words(&written.text, names) {
            Ok(template) => Some(template),
            Err(text) => {
                note(format!("`{key}`: {text}"));
                None
            }
        }
    };
    let (over, value) = (vocabulary("over", &SIGNED), vocabulary("value", &WRITTEN));
    let header = |key: &'static str| {
        let written = entry.written(key)?;
        let legal = !is_reserved_header(&written.text);
        let name: Option<HeaderName> = written.text.parse().ok().filter(|_| legal);
        if name.as_ref().is_none_or(|name| *name == AUTHORIZATION || *name == CONTENT_TYPE) {
            note(format!("`{key}`: no header for a signature; write `X-Signature` for example"));
        }
        name
    };
    let (name, timestamp) = (header("header"), header("timestamp"));
    for key in ["secret", "over", "header", "value"] {
        if !entry.is_written(key) {
            note(format!("`{key}` is missing"));
        }
    }
    entry.finish();
    Some(Sign { secret: secret?, over: over?, header: name?, value: value?, timestamp })
}

/// A template of these names.
fn words(text: &str, names: &[&str]) -> Result<Template, String> {
    let known: Vec<_> = names.iter().map(|name| format!("`{{{name}}}`")).collect();
    let wanted = || format!("write a text with {}", known.join(", "));
    let template = Template::parse(text).map_err(|_| wanted())?;
    let fits = template.names().next().is_some()
        && template.names().all(|name| names.contains(&name))
        && template.secrets().next().is_none();
    if fits { Ok(template) } else { Err(wanted()) }
}

/// What a text must have.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    Secret,
}

/// A text with secrets under a key; `None` if there is none, or it is wrong, which is noted.
fn text<'a>(
    section: &Section<'a>,
    secrets: &Secrets<'a>,
    key: &'static str,
    needs: Needs,
) -> Option<Rendered> {
    text_of(section, secrets, key, needs, |text| section.mistake(None, key, text))
}

fn text_of<'a>(
    section: &Section<'a>,
    secrets: &Secrets<'a>,
    key: &'static str,
    needs: Needs,
    note: impl Fn(&str),
) -> Option<Rendered> {
    let written = section.written(key)?;
    match template(&written.text, needs) {
        Ok((template, rendered)) => {
            secrets.unknown(&template).iter().for_each(|text| note(text));
            Some(rendered)
        }
        Err(text) => {
            note(text);
            None
        }
    }
}

/// A text that no message fills in. It is not echoed.
fn template(text: &str, needs: Needs) -> Result<(Template, Rendered), &'static str> {
    let braces = "only `{$name}` of [secrets] can stand in braces here";
    let template = Template::parse(text).map_err(|_| braces)?;
    if template.names().next().is_some() || template.secrets().any(|name| **name == *KEY) {
        return Err(braces);
    }
    if needs == Needs::Secret && template.secrets().next().is_none() {
        return Err(
            "the secret stands here in plain sight; write it into [secrets] and `{$name}` here",
        );
    }
    let rendered = template.header("", |_| None);
    let rendered = rendered.map_err(|_| "only printable ASCII characters are allowed here")?;
    Ok((template, rendered))
}
