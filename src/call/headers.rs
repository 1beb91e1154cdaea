//! The headers of a call that the configuration names: of the row, and of `[upstream]` where the row has none of that name.

use std::{fmt, sync::Arc};

use http::{HeaderName, HeaderValue};

use crate::{
    secrets::sounds_secret,
    template::{BadHeader, Rendered, Template},
};

/// What is shown of a header that stands in the configuration in plain sight, and sounds as if it should not.
pub(crate) const HIDDEN: &str = "<hidden>";

/// What a row says of the headers of its calls.
#[derive(Debug, Clone, Default)]
pub struct Headers {
    templates: Vec<(HeaderName, Template)>,
    /// They are the same for every message.
    constant: Option<Arc<[Header]>>,
}

/// One header of a call.
#[derive(Clone, PartialEq, Eq)]
pub struct Header {
    /// Its name.
    pub name: HeaderName,
    /// Its value.
    pub value: Value,
}

/// The value of a header.
#[derive(Clone, PartialEq, Eq)]
pub enum Value {
    /// Complete.
    Whole(HeaderValue),
    /// Its secrets are filled in for each attempt.
    WithSecrets(Rendered),
}

impl Headers {
    /// These, each name once.
    pub fn new(templates: Vec<(HeaderName, Template)>) -> Self {
        let constant = templates.iter().all(|(_, template)| template.names().next().is_none());
        let rendered = |templates| constant.then(|| render(templates, |_| None).ok()).flatten();
        Self { constant: rendered(&templates), templates }
    }

    /// Their names and values as they were written.
    pub fn templates(&self) -> impl Iterator<Item = (&HeaderName, &Template)> {
        self.templates.iter().map(|(name, template)| (name, template))
    }

    /// Those whose value stands in the configuration in plain sight, and sounds as if it should not.
    pub fn in_plain_sight(&self) -> impl Iterator<Item = &HeaderName> {
        self.templates().filter(|(name, value)| is_in_plain_sight(name, value)).map(|(n, _)| n)
    }

    /// Those of one call.
    ///
    /// # Errors
    /// [`BadHeader`] when something that goes into one may not stand there.
    pub fn render<'v>(
        &self,
        value: impl Fn(&str) -> Option<&'v str>,
    ) -> Result<Arc<[Header]>, BadHeader> {
        match &self.constant {
            Some(headers) => Ok(headers.clone()),
            None => render(&self.templates, value),
        }
    }
}

/// Whether a secret is written where its name should be.
pub(crate) fn is_in_plain_sight(name: &HeaderName, value: &Template) -> bool {
    let is_literal = value.names().next().is_none() && value.secrets().next().is_none();
    is_literal && sounds_secret(name.as_str())
}

fn render<'v>(
    templates: &[(HeaderName, Template)],
    value: impl Fn(&str) -> Option<&'v str>,
) -> Result<Arc<[Header]>, BadHeader> {
    let headers = templates.iter().map(|(name, template)| {
        let text = template.header(name.as_str(), &value)?;
        let value = if text.secrets().next().is_some() {
            Value::WithSecrets(text)
        } else {
            let whole = HeaderValue::from_str(text.as_str());
            Value::Whole(whole.map_err(|_| BadHeader(name.as_str().into()))?)
        };
        Ok(Header { name: name.clone(), value })
    });
    headers.collect()
}

impl Header {
    /// The secrets that it needs.
    pub fn secrets(&self) -> impl Iterator<Item = &str> {
        let rendered = match &self.value {
            Value::Whole(_) => None,
            Value::WithSecrets(rendered) => Some(rendered),
        };
        rendered.into_iter().flat_map(Rendered::secrets)
    }
}

/// With the names of its secrets, and without a value that is likely to be one.
impl fmt::Display for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let value = match &self.value {
            Value::Whole(_) if sounds_secret(self.name.as_str()) => HIDDEN,
            Value::Whole(value) => value.to_str().unwrap_or_default(),
            Value::WithSecrets(rendered) => rendered.as_str(),
        };
        write!(f, "{}: {value}", self.name)
    }
}

impl fmt::Debug for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(templates: &[(&'static str, &str)]) -> Headers {
        let parsed = templates
            .iter()
            .map(|(name, text)| (HeaderName::from_static(name), Template::parse(text).unwrap()));
        Headers::new(parsed.collect())
    }

    #[test]
    fn what_names_nothing_is_rendered_once() {
        let fixed = headers(&[("accept", "text/csv"), ("authorization", "Token {$influx}")]);
        let (one, two) = (fixed.render(|_| None).unwrap(), fixed.render(|_| None).unwrap());
        assert!(Arc::ptr_eq(&one, &two));
        assert_eq!(format!("{one:?}"), "[accept: text/csv, authorization: Token <influx>]");
        assert_eq!(one.iter().flat_map(Header::secrets).collect::<Vec<_>>(), ["influx"]);
        let named = headers(&[("x-source", "gw {site}")]);
        assert_eq!(named.render(|_| Some("s1")).unwrap()[0].to_string(), "x-source: gw s1");
        assert_eq!(named.render(|_| Some("\n")), Err(BadHeader("x-source".into())));
    }
}
