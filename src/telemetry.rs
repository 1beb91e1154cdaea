//! Log output: `tracing` to standard error, as text or as JSON lines.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, fmt};

/// What the configuration says about logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Level or filter directives, `info` or `warn,mqtt_rest_gateway=debug`.
    pub level: String,
    /// JSON lines instead of text.
    pub json: bool,
}

/// Reads a level, or directives separated by commas.
///
/// # Errors
/// A sentence that says what to write.
pub fn level(text: &str) -> Result<String, String> {
    // The library measures a directive without the spaces around it and then cuts the one with them:
    // it takes `info, hyper=warn` for a mistake and panics over some that are not ASCII.
    let directives: Vec<_> = text.split(',').map(str::trim).collect();
    let level = directives.join(",");
    EnvFilter::try_new(&level).map(|_| level).map_err(|error| {
        format!("`{text}` is no log level; write `info`, `debug` or directives like `info,hyper=warn`: {error}")
    })
}

/// Sends this process's logs to standard error. Only the first call has an effect.
pub fn install(settings: &Settings) {
    let filter = EnvFilter::try_new(&settings.level).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    // An error means that a subscriber is installed already, by a test for example.
    let _ = if settings.json {
        builder.json().flatten_event(true).try_init()
    } else {
        builder.try_init()
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spaces_around_directives_mean_nothing() {
        assert_eq!(level(" info , hyper=warn"), Ok("info,hyper=warn".to_owned()));
        assert_eq!(level("x, \u{fc}=debug"), Ok("x,\u{fc}=debug".to_owned()));
        assert!(level(" ü=+=9").is_err());
    }
}
