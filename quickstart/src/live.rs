//! What goes on after the script: telemetries every few seconds, devices that react to pushes, and
//! whatever somebody tries by hand; one line per crossing.

use std::{
    collections::{BTreeMap, VecDeque},
    error::Error,
    time::Duration,
};

use tokio::{
    sync::mpsc::Receiver,
    time::{interval, sleep},
};

use crate::{
    devices::Device,
    story::{Arrival, Event, tell},
};

/// How often one of the devices sends a telemetry.
const EVERY: Duration = Duration::from_secs(3);
/// A crossing is told, and the next begun, after this long without an event. For the reader only.
const QUIET: Duration = Duration::from_millis(250);

/// The crossings under way, by device.
type Chains = BTreeMap<String, Chain>;

/// One crossing as far as it has been seen.
#[derive(Default)]
struct Chain {
    /// What began it. A message sent by hand may be seen after the request it causes.
    beginning: Option<String>,
    /// What came of it.
    links: Vec<String>,
}

/// Goes on until it is dropped.
///
/// # Errors
/// When a device cannot publish.
pub(crate) async fn live(
    devices: &[Device],
    events: &mut Receiver<Event>,
) -> Result<(), Box<dyn Error>> {
    let mut chains = Chains::new();
    // Said one at a time, when all is quiet, so that the reader sees what belongs together. As few
    // as the items that wait for a device: each is pushed once.
    let mut reactions = VecDeque::new();
    let mut ticks = interval(EVERY);
    let mut turns = (0_u32..).zip(devices.iter().cycle());
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                let Some((turn, device)) = turns.next() else { return Ok(()) };
                let payload = format!(r#"{{"status":"online","telemetries":{{"turn":{turn}}}}}"#);
                say(device, &device.topic("telemetry"), &payload, &mut chains).await?;
            }
            event = events.recv() => {
                let Some(event) = event else { return Ok(()) };
                add(&event, &mut chains);
                let device = devices.iter().find(|device| device.id == event.device());
                if let (Some(device), Event::Arrival(arrival)) = (device, &event)
                    && let Some((topic, payload)) = reaction(arrival)
                {
                    reactions.push_back((device, topic.to_owned(), payload));
                }
            }
            () = sleep(QUIET), if !chains.is_empty() || !reactions.is_empty() => {
                let devices: Vec<_> = chains.keys().cloned().collect();
                for device in devices {
                    finish(&mut chains, &device);
                }
                if let Some((device, topic, payload)) = reactions.pop_front() {
                    say(device, &topic, &payload, &mut chains).await?;
                }
            }
        }
    }
}

/// Publishes, which begins a new crossing.
async fn say(
    device: &Device,
    topic: &str,
    payload: &str,
    chains: &mut Chains,
) -> Result<(), Box<dyn Error>> {
    finish(chains, device.id);
    let chain = Chain { beginning: Some(topic.to_owned()), links: Vec::new() };
    chains.insert(device.id.to_owned(), chain);
    device.say(topic, payload, None).await
}

/// Adds what was seen to its crossing.
fn add(event: &Event, chains: &mut Chains) {
    let by_hand = matches!(event, Event::Arrival(arrival) if !arrival.by_gateway);
    if by_hand && chains.get(event.device()).is_some_and(|chain| chain.beginning.is_some()) {
        finish(chains, event.device());
    }
    let chain = chains.entry(event.device().to_owned()).or_default();
    if by_hand {
        chain.beginning = Some(event.to_string());
    } else {
        chain.links.push(event.to_string());
    }
}

/// Tells a crossing.
fn finish(chains: &mut Chains, device: &str) {
    if let Some(chain) = chains.remove(device) {
        tell(chain.beginning.into_iter().chain(chain.links).collect::<Vec<_>>().join(" -> "));
    }
}

/// What a device does about a push: it says that it has done what it was told, where it was told
/// to say so.
fn reaction(push: &Arrival) -> Option<(&str, String)> {
    let topic = push.response_topic.as_deref()?;
    if !push.by_gateway || push.status.is_some() {
        return None;
    }
    let id = push.correlation.as_deref().unwrap_or_default();
    let payload = match push.topic.rsplit('/').next()? {
        "config" => push.payload.clone(),
        "commands" => format!(r#"{{"id":"{id}","status":"done"}}"#),
        "license" => format!(r#"{{"id":"{id}","state":"inuse"}}"#),
        _ => return None,
    };
    Some((topic, payload))
}
