//! Plays the script: one message at a time, each waited for until all that must come of it has been
//! seen. No waiting by the clock but for the deadline of the whole.

use std::{collections::BTreeSet, error::Error};

use tokio::{
    sync::mpsc::Receiver,
    time::{Instant, timeout_at},
};

use crate::{
    devices::{Device, Question},
    script::{Expect, STEPS, Step},
    story::{Arrival, Event, line, tell},
};

/// Plays all steps and tells them. What did not come as it should is the result: empty is good.
///
/// # Errors
/// When a device cannot publish.
pub(crate) async fn play(
    devices: &[Device],
    events: &mut Receiver<Event>,
    rows: &[String],
    deadline: Instant,
) -> Result<Vec<String>, Box<dyn Error>> {
    let mut complaints = Vec::new();
    let mut crossed = BTreeSet::new();
    for (number, step) in STEPS.iter().enumerate() {
        let device = devices.iter().find(|device| device.id == step.device);
        let device = device.ok_or_else(|| format!("no device `{}`", step.device))?;
        let wrong = cross(number + 1, step, device, events, deadline).await?;
        if wrong.is_empty() {
            crossed.insert(step.route);
        }
        complaints.extend(wrong);
        if Instant::now() >= deadline {
            complaints.push("the time is over".to_owned());
            break;
        }
    }
    while let Ok(event) = events.try_recv() {
        complaints.push(format!("unexpected, after the last message: {event}"));
    }
    let missing = rows.iter().filter(|row| !crossed.contains(row.as_str()));
    complaints.extend(missing.map(|row| format!("row `{row}` of the table has not crossed")));
    Ok(complaints)
}

/// Sends one message and collects what comes of it.
async fn cross(
    number: usize,
    step: &Step,
    device: &Device,
    events: &mut Receiver<Event>,
    deadline: Instant,
) -> Result<Vec<String>, Box<dyn Error>> {
    let topic = device.topic(step.topic);
    let question = step.response_topic.map(|topic| Question {
        topic: device.topic(topic),
        correlation: format!("question-{number}"),
    });
    tell(format_args!("[{number:>2}/{}] {}: {}", STEPS.len(), step.route, step.about));
    let payload = if step.payload.is_empty() { "(empty)" } else { step.payload };
    let mut text = line(&format!("{} says", step.device), &topic, payload);
    if let Some(Question { topic, correlation }) = &question {
        text += &line("", "", &format!("Response Topic: {topic}"));
        text += &line("", "", &format!("Correlation Data: {correlation}"));
    }
    let said = device.say(&topic, step.payload, question.as_ref());
    match timeout_at(deadline, said).await {
        Ok(said) => said?,
        Err(_) => return Ok(vec![format!("no PUBACK for {topic}")]),
    }

    let mut seen: Vec<(Expect, Option<Event>)> = step.expects.iter().map(|e| (*e, None)).collect();
    let mut wrong = Vec::new();
    while seen.iter().any(|(_, event)| event.is_none()) {
        let Ok(Some(event)) = timeout_at(deadline, events.recv()).await else { break };
        let place = seen.iter_mut().find(|(expect, seen)| {
            seen.is_none() && expect.is_met_by(&event, device, question.as_ref())
        });
        if let Some((_, seen)) = place {
            *seen = Some(event);
        } else {
            text += &event.block(step.payload);
            wrong.push(format!("unexpected, after {} by {}: {event}", step.route, step.device));
        }
    }
    // Told in the order of the table: requests and pushes travel on different connections, so the
    // order in which they are seen here says nothing.
    for (expect, event) in seen {
        match event {
            Some(event) => text += &event.block(step.payload),
            None => wrong.push(format!(
                "missing, after {} by {}: {}",
                step.route,
                step.device,
                expect.wanted(device, question.as_ref())
            )),
        }
    }
    tell(text);
    Ok(wrong)
}

impl Expect {
    fn is_met_by(self, event: &Event, device: &Device, question: Option<&Question>) -> bool {
        match (self, event) {
            (Self::Call(method, tail, status), Event::Exchange(exchange)) => {
                exchange.method == method
                    && exchange.path == path(device, tail)
                    && exchange.status == status
            }
            (Self::Push(tail), Event::Arrival(Arrival { topic, by_gateway, status, .. })) => {
                *topic == device.topic(tail) && *by_gateway && status.is_none()
            }
            (Self::Reply, Event::Arrival(arrival)) => question.is_some_and(|question| {
                arrival.topic == question.topic
                    && arrival.by_gateway
                    && arrival.status.as_deref() == Some("200")
                    && arrival.correlation.as_ref() == Some(&question.correlation)
            }),
            _ => false,
        }
    }

    fn wanted(self, device: &Device, question: Option<&Question>) -> String {
        match self {
            Self::Call(method, tail, status) => {
                format!("the request {method} {}, answered with {status}", path(device, tail))
            }
            Self::Push(tail) => format!("a push on {}", device.topic(tail)),
            Self::Reply => match question {
                Some(Question { topic, correlation }) => {
                    format!("a reply on {topic} with the Correlation Data {correlation}")
                }
                None => "a reply, which the script forgets to ask for".to_owned(),
            },
        }
    }
}

fn path(device: &Device, tail: &str) -> String {
    format!("/v1/devices/{}{tail}", device.id)
}
