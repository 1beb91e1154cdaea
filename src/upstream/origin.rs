//! The URL that paths are appended to.

use http::{
    Uri,
    uri::{InvalidUri, Parts, PathAndQuery},
};
use url::Url;

use crate::failure::FailureKind;

/// Where the API lives.
pub(super) struct Origin {
    base: Uri,
    /// The path of the base without a trailing slash.
    path: Box<str>,
    url: Url,
}

impl Origin {
    /// # Errors
    /// When it is a URL that no request can name.
    pub(super) fn new(url: &Url) -> Result<Self, InvalidUri> {
        let base = Uri::try_from(url.as_str())?;
        Ok(Self { base, path: url.path().trim_end_matches('/').into(), url: url.clone() })
    }

    /// The base.
    pub(super) fn url(&self) -> &Url {
        &self.url
    }

    /// The same, as requests name it.
    pub(super) fn base(&self) -> &Uri {
        &self.base
    }

    /// The URL of a path and query below the base.
    ///
    /// # Errors
    /// [`FailureKind::Broken`] when no request can name it.
    pub(super) fn uri(&self, path: &str) -> Result<Uri, FailureKind> {
        let path = if is_plain(path) { format!("{}{path}", self.path) } else { self.normal(path)? };
        let broken = |error: InvalidUri| FailureKind::Broken(error.to_string());
        let mut parts = Parts::default();
        // Both clones count references.
        parts.scheme = self.base.scheme().cloned();
        parts.authority = self.base.authority().cloned();
        parts.path_and_query = Some(PathAndQuery::try_from(path).map_err(broken)?);
        Uri::from_parts(parts).map_err(|error| FailureKind::Broken(error.to_string()))
    }

    /// The path as the URL standard normalises it: characters are encoded where they must be, and dot segments resolved.
    fn normal(&self, path: &str) -> Result<String, FailureKind> {
        let base = self.url.as_str().trim_end_matches('/');
        let url = Url::parse(&format!("{base}{path}"))
            .map_err(|error| FailureKind::Broken(error.to_string()))?;
        let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
        Ok(format!("{}{query}", url.path()))
    }
}

/// Whether normalising would not change the path, as with nearly all: every character may stand in a URL as it is, and no
/// segment begins with a dot, encoded (`%2e`) or not.
fn is_plain(path: &str) -> bool {
    path.starts_with('/')
        && !path.contains("/.")
        && !path.contains("/%2")
        && path
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._~/%?&=:@!$()*+,;".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_appended_and_mean_what_the_url_standard_says() {
        for base in ["http://hub.example:8080", "http://hub.example:8080/", "https://[::1]/a/b/"] {
            let base = Url::parse(base).unwrap();
            let origin = Origin::new(&base).unwrap();
            for path in [
                "/",
                "/v1/d%2F1/x?y=1&z=a,b",
                "/a b/ü",
                "/a/../b",
                "/./a",
                "/%2e%2e/b",
                "/a\\b",
                "/a#b",
                "/a?b c=\"d\"",
                "/x/.well-known/y",
                "/a'b{c}|<d>",
                "",
            ] {
                let text = base.as_str().trim_end_matches('/');
                let mut expected = Url::parse(&format!("{text}{path}")).unwrap();
                expected.set_fragment(None);
                assert_eq!(origin.uri(path).unwrap().to_string(), expected.as_str(), "{path}");
            }
        }
    }
}
