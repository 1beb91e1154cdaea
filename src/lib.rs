//! A sidecar that takes messages from devices on an MQTT broker, forwards each to the matching
//! endpoint of a REST API and publishes the answers.
//!
//! Start reading at [`exchange`]: the way of a message. `docs/ARCHITECTURE.md` has the map.

pub mod admin;
pub mod backoff;
pub mod call;
pub mod cli;
pub mod config;
pub mod dead_letter;
pub mod describe;
pub mod descriptors;
pub mod devices;
pub mod exchange;
pub mod explain;
pub mod failure;
pub mod fetch;
pub mod fetched;
pub mod filter;
pub mod filters;
pub mod fingerprint;
#[cfg(test)]
mod fixtures;
pub mod follow;
pub mod gateway;
pub mod health;
pub mod identity;
pub mod items;
pub mod json;
pub mod lanes;
pub mod message;
pub mod metrics;
pub mod mqtt;
pub mod outcome;
pub mod printable;
pub mod push;
pub mod rate;
pub mod refusal;
pub mod repeats;
pub mod replay;
pub mod reply;
pub mod route;
pub mod secret;
pub mod shares;
pub mod table;
pub mod telemetry;
pub mod template;
pub mod tls;
pub mod topic;
pub mod upstream;
