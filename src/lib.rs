//! A sidecar that takes messages from devices on an MQTT broker, forwards each to the matching
//! endpoint of a REST API and publishes the answers.
//!
//! Start reading at [`exchange`]: the way of a message. `docs/ARCHITECTURE.md` has the map. What is public is what the
//! program, its tests and its demonstration need: [`cli`], [`gateway`], [`config`] and what a configuration consists of.

pub mod admin;
mod backoff;
mod call;
pub mod cli;
pub mod config;
pub mod descriptors;
mod exchange;
mod failure;
pub mod filter;
pub mod fingerprint;
#[cfg(test)]
mod fixtures;
pub mod gateway;
pub mod health;
pub mod json;
pub mod message;
mod metrics;
pub mod mqtt;
pub mod printable;
mod rate;
pub mod repeats;
pub mod replay;
pub mod secret;
mod shares;
pub mod table;
pub mod telemetry;
pub mod template;
pub mod tls;
pub mod topic;
pub mod upstream;
