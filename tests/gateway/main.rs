//! The gateway against the real thing: mosquitto, wiremock and the compiled program. One binary, a
//! module for each subject.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(clippy::print_stderr, reason = "the gateway's log helps when a test has failed")]
#![expect(unreachable_pub, reason = "one binary: nothing is reachable from outside")]

mod fake_broker;
mod harness;
mod link;
mod load;
mod rig;
mod scripted_api;
mod wire;

mod admin;
mod answers;
mod batch;
mod broker_rules;
mod connections;
mod dead_letters;
mod delivery;
mod deploy;
mod doors;
mod faults;
mod fleet;
mod flow;
mod hostile;
mod identity;
mod logs;
mod order;
mod outage;
mod poison;
mod replay;
mod replicas;
mod request_response;
mod rumqttc;
mod second_table;
mod secrets;
mod sessions;
mod shipped_table;
mod stop;
mod window;
