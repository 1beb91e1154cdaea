// Node-RED's settings: as installed, but that it listens on loopback, tells nobody that it runs, and speaks of
// nothing but errors.

module.exports = {
  flowFile: "flows.json",
  uiHost: "127.0.0.1",
  uiPort: Number(process.env.UI),
  credentialSecret: false,
  telemetry: { enabled: false, updateNotification: false },
  logging: { console: { level: "error" } },
};
