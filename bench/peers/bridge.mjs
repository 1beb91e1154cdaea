// MQTT to HTTP with MQTT.js, in two forms: as most write it, acknowledged by the library as it comes in; and with
// `ack-after`, acknowledged when the API took it, which is tried until it does.
//
// node bridge.mjs BROKER_PORT API_PORT [ack-after]

import { setTimeout as pause } from "node:timers/promises";
import mqtt from "mqtt";

const [broker, api, form] = process.argv.slice(2);

const client = mqtt.connect(`mqtt://127.0.0.1:${broker}`, {
  protocolVersion: 5,
  clientId: "mqtt-js",
  clean: false,
  properties: { sessionExpiryInterval: 3600 },
});

// Whether the API took it.
async function post({ topic, payload, properties }) {
  const device = topic.split("/")[2];
  const response = await fetch(`http://127.0.0.1:${api}/v1/devices/${device}/telemetry`, {
    method: "POST",
    headers: {
      authorization: properties.userProperties.access_key,
      "content-type": "application/json",
    },
    body: payload,
  });
  await response.arrayBuffer(); // else the connection is not used again
  return response.ok;
}

if (form === "ack-after") {
  client.handleMessage = async (packet, done) => {
    while (!(await post(packet).catch(() => false))) await pause(250);
    done();
  };
} else {
  client.on("message", (_topic, _payload, packet) => {
    post(packet).catch((error) => console.error(error.message));
  });
}
client.on("error", (error) => console.error(error.message));
client.subscribe("v1/device/+/telemetry", { qos: 1 });
