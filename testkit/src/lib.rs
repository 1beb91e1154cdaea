//! What tests, soak and bench are made of: a real mosquitto, the compiled gateway, devices that speak
//! raw MQTT, APIs that do what a test says, links that fail, and load that is accounted for.
//!
//! It knows the gateway as a program only. So a change of the gateway does not build it again.
//!
//! Which API? [`Upstream`] answers by method and path. [`scripted_api`] decides request by request, down to
//! when a connection closes; [`load::Api`], which accounts for every message, is built on it. The API of the
//! demonstration is in `quickstart`, since it plays a story; that of the bench is in `bench`, since it must cost
//! next to nothing. A broker is mosquitto ([`Broker`]), or does what a test says ([`fake_broker`]).

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(clippy::missing_panics_doc, reason = "so it says that it has failed")]
#![expect(clippy::return_self_not_must_use, reason = "builders are used where they are made")]
#![expect(clippy::print_stderr, reason = "the gateway's log helps when a test has failed")]
#![expect(missing_docs, reason = "verbs, which a test reads as a sentence")]

mod broker;
mod browser;
mod device;
pub mod fake_broker;
mod gateway;
pub mod link;
pub mod load;
mod patience;
mod plain_device;
mod process;
pub mod rig;
pub mod scripted_api;
mod upstream;
pub mod wire;

pub use self::{
    broker::Broker,
    browser::Browser,
    device::{Device, credentials, telemetry},
    gateway::{Gateway, Options},
    patience::{PATIENCE, QUIET, eventually, while_it_moves},
    plain_device::{Heard, PlainDevice},
    process::{accepts, free_port, mosquitto, nobody, peak_memory, program, program_path, run},
    upstream::Upstream,
};
