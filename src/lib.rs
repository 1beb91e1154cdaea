//! A sidecar that takes messages from devices on an MQTT broker, forwards each to the matching
//! endpoint of a REST API and publishes the answers.
//!
//! Start reading at [`exchange`]: the way of a message. `docs/ARCHITECTURE.md` has the map. What is public is what the
//! program, its tests and its demonstration need: [`cli`], [`gateway`], [`config`] and what a configuration consists of.

mod admin;
mod backoff;
mod call;
mod cases;
pub mod cli;
pub mod config;
mod descriptors;
mod exchange;
mod failure;
pub mod filter;
pub mod fingerprint;
#[cfg(test)]
mod fixtures;
pub mod gateway;
pub mod json;
pub mod message;
mod metrics;
pub mod mqtt;
pub mod patterns;
mod printable;
mod rate;
mod repeats;
mod replay;
mod secret;
pub mod sender;
mod shares;
pub mod table;
pub mod telemetry;
pub mod template;
mod tls;
pub mod topic;
pub mod upstream;
mod wall_clock;
