//! A sidecar that takes messages from devices on an MQTT broker, forwards each to the matching
//! endpoint of a REST API and publishes the answers.
//!
//! Start reading at [`exchange`]: the way of a message. `docs/ARCHITECTURE.md` has the map. Only that is public which the
//! program, its tests, its benchmarks and its demonstration use: [`cli`], [`gateway`], [`config`], what a configuration
//! consists of, and pure parts.

mod admin;
mod arrivals;
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
pub mod log;
pub mod message;
mod metrics;
mod mqtt;
mod rate;
mod renewal;
mod replay;
mod secrets;
mod shares;
mod table;
pub mod template;
mod tls;
pub mod topic;
pub mod traces;
mod upstream;
pub mod user_properties;
mod version;
mod wall_clock;

pub use self::{
    mqtt::{Status, window},
    table::{fetch::Condition, identity::Identity, refusal::Refusal},
};
