//! What the devices say, and what must come of each message, in the order of the table's `then`.
//! Every row of the shipped table is in here; `play` complains if one is not.

use Expect::{Call, Push, Reply};

/// One message of a device.
pub(crate) struct Step {
    /// The row of the table it is for.
    pub route: &'static str,
    /// Who says it.
    pub device: &'static str,
    /// What it is about, for the reader.
    pub about: &'static str,
    /// Topic below the device's own.
    pub topic: &'static str,
    /// JSON.
    pub payload: &'static str,
    /// Response Topic below the device's own, for messages that want an answer.
    pub response_topic: Option<&'static str>,
    /// What must come of it.
    pub expects: &'static [Expect],
}

/// Something that must be seen once.
#[derive(Clone, Copy)]
pub(crate) enum Expect {
    /// The API is asked: method, path below the device's own, status answered.
    Call(&'static str, &'static str, u16),
    /// The device receives a push: topic below its own.
    Push(&'static str),
    /// The device receives the reply: on its Response Topic, with its Correlation Data.
    Reply,
}

/// The script.
pub(crate) const STEPS: &[Step] = &[
    Step {
        route: "telemetry",
        device: "display-1",
        about: "the flags in the answer make the gateway get and push five things; GET says which firmware it has",
        topic: "telemetry",
        payload: r#"{"status":"online","telemetries":{"brightness":80,"input":"hdmi-1"}}"#,
        response_topic: None,
        expects: &[
            Call("POST", "/telemetry", 201),
            Call("GET", "/config", 200),
            Push("config"),
            Call("GET", "/command", 200),
            Push("commands"),
            Call("GET", "/license", 200),
            Push("license"),
            Call("GET", "/space", 200),
            Push("space_info"),
            Call("GET", "", 200),
            Push("firmware"),
        ],
    },
    Step {
        route: "update_config",
        device: "display-1",
        about: "the configuration that was pushed is applied",
        topic: "config/update",
        payload: r#"{"version":1,"interval":5,"last_updated":"2026-01-01T00:00:10Z"}"#,
        response_topic: None,
        expects: &[Call("POST", "/config", 200)],
    },
    Step {
        route: "update_command",
        device: "display-1",
        about: "the command is done; there is another one, which is pushed at once",
        topic: "commands/update",
        payload: r#"{"id":"command-1","status":"done"}"#,
        response_topic: None,
        expects: &[Call("POST", "/command", 200), Call("GET", "/command", 200), Push("commands")],
    },
    Step {
        route: "update_command",
        device: "display-1",
        about: "`error` is `failed` in the API; there is no third command, nothing is pushed",
        topic: "commands/update",
        payload: r#"{"id":"command-2","status":"error","message":"in use"}"#,
        response_topic: None,
        expects: &[Call("POST", "/command", 200), Call("GET", "/command", 200)],
    },
    Step {
        route: "update_license",
        device: "display-1",
        about: "the license is in use; no other one is waiting",
        topic: "license/update",
        payload: r#"{"id":"license-1","state":"inuse"}"#,
        response_topic: None,
        expects: &[Call("POST", "/licenses", 200), Call("GET", "/license", 200)],
    },
    Step {
        route: "update_device",
        device: "display-1",
        about: "it wants an answer; `serial` is left out, the API would refuse it",
        topic: "update",
        payload: r#"{"name":"Lobby","firmware_version":"1.0.0","serial":"A17"}"#,
        response_topic: Some("answers"),
        expects: &[Call("PUT", "", 200), Reply],
    },
    Step {
        route: "set_cloud_settings",
        device: "display-1",
        about: "a setting of the cloud is changed",
        topic: "cloud_settings/update",
        payload: r#"{"property":"incidents.suspend_creation","value":true}"#,
        response_topic: Some("answers"),
        expects: &[Call("PUT", "/cloud_settings", 200), Reply],
    },
    Step {
        route: "get_config",
        device: "sensor-2",
        about: "another device asks; the answer comes to its Response Topic",
        topic: "config",
        payload: "",
        response_topic: Some("config/update"),
        expects: &[Call("GET", "/config", 200), Reply],
    },
    Step {
        route: "get_command",
        device: "sensor-2",
        about: "is there a command?",
        topic: "commands",
        payload: "",
        response_topic: Some("commands/update"),
        expects: &[Call("GET", "/command", 200), Reply],
    },
    Step {
        route: "get_license",
        device: "sensor-2",
        about: "is there a license?",
        topic: "license",
        payload: "",
        response_topic: Some("license/update"),
        expects: &[Call("GET", "/license", 200), Reply],
    },
    Step {
        route: "get_space_info",
        device: "sensor-2",
        about: "where am I?",
        topic: "space_info",
        payload: "",
        response_topic: Some("space_info"),
        expects: &[Call("GET", "/space", 200), Reply],
    },
    Step {
        route: "telemetry",
        device: "sensor-2",
        about: "as above; the answer is also where the latest firmware is known from",
        topic: "telemetry",
        payload: r#"{"status":"online","telemetries":{"temperature":21.5}}"#,
        response_topic: None,
        expects: &[
            Call("POST", "/telemetry", 201),
            Call("GET", "/config", 200),
            Push("config"),
            Call("GET", "/command", 200),
            Push("commands"),
            Call("GET", "/license", 200),
            Push("license"),
            Call("GET", "/space", 200),
            Push("space_info"),
            Call("GET", "", 200),
            Push("firmware"),
        ],
    },
    Step {
        route: "get_firmware",
        device: "sensor-2",
        about: "which firmware is the latest? The gateway knows, no request is made",
        topic: "firmware",
        payload: "",
        response_topic: Some("firmware"),
        expects: &[Reply],
    },
    Step {
        route: "snapshot",
        device: "sensor-2",
        about: "everything once more, please",
        topic: "get",
        payload: "",
        response_topic: None,
        expects: &[
            Call("GET", "/space", 200),
            Push("space_info"),
            Call("GET", "/config", 200),
            Push("config"),
            Call("GET", "/command", 200),
            Push("commands"),
            Call("GET", "/licenses", 200),
            Push("license"),
            Push("firmware"),
        ],
    },
    Step {
        route: "update_command",
        device: "sensor-2",
        about: "the command is done",
        topic: "commands/update",
        payload: r#"{"id":"command-1","status":"done"}"#,
        response_topic: None,
        expects: &[Call("POST", "/command", 200), Call("GET", "/command", 200)],
    },
    Step {
        route: "update_license",
        device: "sensor-2",
        about: "the license is in use",
        topic: "license/update",
        payload: r#"{"id":"license-1","state":"inuse"}"#,
        response_topic: None,
        expects: &[Call("POST", "/licenses", 200), Call("GET", "/license", 200)],
    },
];
