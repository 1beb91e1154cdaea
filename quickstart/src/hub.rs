//! What the stand-in for the REST API knows of each device, and what it answers. Not the real
//! thing: enough of it that every flag, queue and version of the MQTT messages moves.

use std::collections::{BTreeMap, VecDeque};

use serde_json::{Map, Value, json};

/// The devices that are registered: identifier and access key.
pub(crate) const DEVICES: [(&str, &str); 2] =
    [("display-1", "key-of-display-1"), ("sensor-2", "key-of-sensor-2")];

/// What PUT takes; anything else is refused, as the real API does from version 1.0.6.
const DEVICE_FIELDS: [&str; 8] = [
    "firmware_version",
    "name",
    "sub_model",
    "details",
    "space_version",
    "config_version",
    "parent_id",
    "host_address",
];

/// So often (in telemetries) there is a new command, so that something goes on.
const COMMAND_EVERY: u64 = 4;
/// So often (in telemetries) the configuration changes.
const CONFIG_EVERY: u64 = 6;

/// All devices.
pub(crate) struct Hub {
    devices: BTreeMap<&'static str, Device>,
}

/// One device as the cloud sees it.
pub(crate) struct Device {
    key: &'static str,
    telemetries: u64,
    config: Value,
    /// The first one is under way until a final status pops it.
    commands: VecDeque<Value>,
    commands_made: u64,
    /// Changes the device has not made yet.
    licenses: Vec<Value>,
    about: Map<String, Value>,
    settings: Map<String, Value>,
}

type Answer = (u16, Value);

impl Hub {
    /// Both devices, with something waiting for each.
    pub(crate) fn new() -> Self {
        let commands = [("display-1", 2), ("sensor-2", 1)];
        let devices = DEVICES.into_iter().zip(commands).map(|((id, key), (_, commands))| {
            let mut device = Device {
                key,
                telemetries: 0,
                config: json!({ "version": 1, "interval": 5, "last_updated": "2026-01-01T00:00:00Z" }),
                commands: VecDeque::new(),
                commands_made: 0,
                licenses: vec![json!({
                    "id": "license-1", "data": "pro", "signature": "c2lnbmVk", "action": "add",
                })],
                // What it was registered with.
                about: Map::from_iter([("firmware_version".to_owned(), json!("1.0.0"))]),
                settings: Map::new(),
            };
            for _ in 0..commands {
                device.make_command();
            }
            (id, device)
        });
        Self { devices: devices.collect() }
    }

    /// The device, to whoever has its key.
    pub(crate) fn device(&mut self, id: &str, key: Option<&str>) -> Option<&mut Device> {
        self.devices.get_mut(id).filter(|device| key == Some(device.key))
    }
}

impl Device {
    /// Answers a request; `operation` is what follows the device in the path.
    pub(crate) fn answer(&mut self, method: &str, operation: &str, body: &Value) -> Answer {
        match (method, operation) {
            ("POST", "/telemetry") => self.telemetry(body),
            ("GET", "/config") => (200, self.config.clone()),
            ("POST", "/config") => self.set_config(body),
            ("GET", "/command") => (200, self.commands.front().cloned().unwrap_or(json!({}))),
            ("POST", "/command") => self.command_status(body),
            ("GET", "/license") => (200, self.licenses.first().cloned().unwrap_or(json!({}))),
            ("GET", "/licenses") => (200, self.licenses.iter().map(with_flags).collect()),
            ("POST", "/licenses") => self.license_state(body),
            ("GET", "/space") => (200, space()),
            ("GET", "") => (200, Value::Object(self.about.clone())),
            ("PUT", "") => self.set_about(body),
            ("PUT", "/cloud_settings") => self.set_setting(body),
            _ => error(404, "not found"),
        }
    }

    fn telemetry(&mut self, body: &Value) -> Answer {
        if !body["telemetries"].is_object() {
            return error(422, "Missing 'telemetries' object");
        }
        self.telemetries += 1;
        if self.telemetries.is_multiple_of(COMMAND_EVERY) {
            self.make_command();
        }
        if self.telemetries.is_multiple_of(CONFIG_EVERY) {
            self.config["version"] = json!(self.version() + 1);
        }
        let answer = json!({
            "success": true,
            "config_version": self.version(),
            "command": !self.commands.is_empty(),
            "new_licenses": !self.licenses.is_empty(),
            "space_data_version": 3,
            "latest_fw_version": "1.1.0",
            "latest_fw_file_id": "file-7",
        });
        (201, answer)
    }

    fn version(&self) -> u64 {
        self.config["version"].as_u64().unwrap_or_default()
    }

    fn set_config(&mut self, body: &Value) -> Answer {
        let latest = self.version();
        match body["version"].as_u64() {
            Some(version) if version >= latest => {
                self.config = body.clone();
                (200, json!({ "success": true, "version": version }))
            }
            _ => error(422, &format!("Error setting config with old version, latest is {latest}")),
        }
    }

    fn make_command(&mut self) {
        self.commands_made += 1;
        self.commands.push_back(json!({
            "id": format!("command-{}", self.commands_made),
            "status": "pending",
            "name": "reboot",
            "parameters": {},
        }));
    }

    fn command_status(&mut self, body: &Value) -> Answer {
        let Some(command) = self.commands.front_mut().filter(|c| c["id"] == body["id"]) else {
            return error(404, "no command");
        };
        match body["status"].as_str() {
            Some("in_progress") => command["status"] = json!("in_progress"),
            Some("done" | "failed") => {
                self.commands.pop_front();
            }
            // `error` is a word of MQTT only: the table translates it.
            _ => return error(422, "invalid status: done/in-progress/failed"),
        }
        (200, json!({ "success": true }))
    }

    fn license_state(&mut self, body: &Value) -> Answer {
        if !matches!(body["state"].as_str(), Some("inuse" | "removed" | "error")) {
            return error(403, "Only allowed to set: inuse/removed/error");
        }
        match self.licenses.iter().position(|license| license["id"] == body["id"]) {
            Some(index) => (200, self.licenses.remove(index)),
            None => error(404, "Couldn't find License"),
        }
    }

    fn set_about(&mut self, body: &Value) -> Answer {
        let Some(fields) = body.as_object() else { return error(400, "an object is wanted") };
        if let Some(name) = fields.keys().find(|name| !DEVICE_FIELDS.contains(&name.as_str())) {
            return error(400, &format!("unknown key: {name}"));
        }
        self.about.extend(fields.clone());
        (200, Value::Object(self.about.clone()))
    }

    fn set_setting(&mut self, body: &Value) -> Answer {
        let Some(property) = body["property"].as_str() else {
            return error(422, "Missing 'property'");
        };
        self.settings.insert(property.to_owned(), body["value"].clone());
        (200, json!({ "success": true }))
    }
}

/// The plural form of a license has flags where the singular one has `action`.
fn with_flags(license: &Value) -> Value {
    let mut license = license.clone();
    if let Some(fields) = license.as_object_mut()
        && let Some(Value::String(action)) = fields.remove("action")
    {
        fields.insert(action, json!(true));
    }
    license
}

fn space() -> Value {
    json!({
        "name": "Lobby",
        "location": null,
        "maintenance": false,
        "temperature_units": "celsius",
    })
}

fn error(status: u16, text: &str) -> Answer {
    (status, json!({ "error": text }))
}
