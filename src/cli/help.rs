//! What the help and the manual page say beside commands and options: exit codes, variables, files, examples.

use super::error::{BAD_CONFIGURATION, FAILED};

/// Exit code of `explain` for a message that would be refused.
pub(super) const REFUSED: u8 = 3;
/// Exit code for a wrong command line, which the library gives.
const USAGE: u8 = 2;

/// What is told in pairs, under a heading.
pub(super) struct Part {
    pub(super) heading: &'static str,
    pub(super) pairs: &'static [(&'static str, &'static str)],
}

/// The exit codes.
pub(super) const EXIT_CODES: [(u8, &str); 5] = [
    (0, "stopped as it should, or done"),
    (FAILED, "anything else: a port in use, a broker not reached, a case that fails, not healthy"),
    (USAGE, "a wrong command line"),
    (REFUSED, "`explain`: the message would be refused"),
    (BAD_CONFIGURATION, "a configuration, or a file of cases, that cannot be used"),
];

/// The rest of it.
pub(super) const PARTS: [Part; 3] = [
    Part {
        heading: "Environment",
        pairs: &[
            ("GATEWAY_CONFIG", "the configuration file, as --config"),
            (
                "GATEWAY_<SECTION>_<KEY>",
                "any key outside the tables: [broker] url is GATEWAY_BROKER_URL, [upstream.retry] max is \
                 GATEWAY_UPSTREAM_RETRY_MAX; it goes before the file",
            ),
            ("GATEWAY_BROKER_PASSWORD_FILE", "the file with the password for the broker"),
            (
                "GATEWAY_SECRETS_<NAME>, GATEWAY_SECRETS_<NAME>_FILE",
                "what the gateway itself shows the API, or the file with it",
            ),
        ],
    },
    Part {
        heading: "Files",
        pairs: &[
            (
                "/etc/mqtt-rest-gateway/config.toml",
                "the configuration of the packaged service; without a file the compiled-in one is in force, which \
                 `mqtt-rest-gateway config` prints",
            ),
            (
                "/etc/mqtt-rest-gateway/password",
                "the password for the broker, which the service hands over as a credential of systemd",
            ),
        ],
    },
    Part {
        heading: "Examples",
        pairs: &[
            ("mqtt-rest-gateway config > gateway.toml", "begin a configuration of one's own"),
            (
                "mqtt-rest-gateway --config gateway.toml check --connect",
                "find every mistake, then try broker and API",
            ),
            (
                "mqtt-rest-gateway explain plant/s9/reading --payload reading.json",
                "what a message would become, or why it would be refused",
            ),
            (
                "GATEWAY_BROKER_URL=mqtts://broker:8883 mqtt-rest-gateway --config gateway.toml",
                "run, with one key from the environment",
            ),
            ("mqtt-rest-gateway health --ready", "does it forward, and if not, why"),
            (
                "mqtt-rest-gateway completions bash > /etc/bash_completion.d/mqtt-rest-gateway",
                "complete commands in a shell",
            ),
        ],
    },
];

/// All of it as the end of the long help.
pub(super) fn after() -> String {
    let codes = EXIT_CODES.map(|(code, meaning)| format!("  {code:<3} {meaning}"));
    let part = |part: &Part| {
        let pairs = part.pairs.iter().map(|(name, text)| format!("\n  {name}\n          {text}"));
        format!("\n\n{}:{}", part.heading, pairs.collect::<String>())
    };
    format!("Exit codes:\n{}{}", codes.join("\n"), PARTS.iter().map(part).collect::<String>())
}
