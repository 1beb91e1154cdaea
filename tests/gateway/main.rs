//! The gateway against the real thing: mosquitto, wiremock and the compiled program. One binary, a
//! module for each subject.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(clippy::print_stderr, reason = "a program's output helps when a test has failed")]
#![expect(unreachable_pub, reason = "one binary: nothing is reachable from outside")]

use testkit::{self as harness, fake_broker, link, load, rig, scripted_api, wire};

mod certificates;
mod check;
mod fixture;

mod admin;
mod answers;
mod authorization;
mod batch;
mod broker_rules;
mod connections;
mod credentials;
mod dead_letters;
mod delivery;
mod deploy;
mod doors;
mod endless;
mod examples;
mod faults;
mod fleet;
mod flow;
mod health;
mod hostile;
mod http2;
mod identity;
mod joined;
mod keyless;
mod letters;
mod listed;
mod logs;
mod memory;
mod metrics;
mod order;
mod outage;
mod page;
mod payloads;
mod poison;
mod polls;
mod prometheus;
mod protocol;
mod replay;
mod replicas;
mod request_response;
mod retained;
mod rotation;
mod rows;
mod second_table;
mod secrets;
mod sessions;
mod shapes;
mod shipped_table;
mod stop;
mod traces;
mod values;
mod window;
mod wrong_ways;
