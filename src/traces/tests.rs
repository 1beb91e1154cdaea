//! Spans, without a collector: which are exported, how they hang together, and that what waits is bounded.

use std::{
    sync::{Arc, Mutex},
    time::SystemTime,
};

use opentelemetry_sdk::{
    error::OTelSdkResult,
    trace::{SdkTracerProvider, Span as SdkSpan, SpanData, SpanProcessor},
};

use super::*;
use crate::user_properties::UserProperties;

/// Keeps what has ended.
#[derive(Debug, Clone, Default)]
struct Ended(Arc<Mutex<Vec<SpanData>>>);

impl SpanProcessor for Ended {
    fn on_start(&self, _: &mut SdkSpan, _: &opentelemetry::Context) {}

    fn on_end(&self, span: SpanData) {
        self.0.lock().unwrap().push(span);
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

impl Ended {
    fn named(&self, name: &str) -> Vec<SpanData> {
        let ended = self.0.lock().unwrap();
        ended.iter().filter(|span| span.name == name).cloned().collect()
    }
}

fn tracer(share: f64) -> (Tracer, Ended) {
    let ended = Ended::default();
    let provider = SdkTracerProvider::builder()
        .with_sampler(sampling::sampler(share))
        .with_span_processor(ended.clone())
        .build();
    (Tracer { tracer: provider.tracer("test"), client_id: "gw".into() }, ended)
}

fn message(tracer: &Tracer, traceparent: Option<&str>) -> Span {
    let properties = traceparent.map(|text| ("traceparent", text));
    tracer.message(&Consumed {
        topic: "d/d1/t",
        pattern: "d/{id}/t",
        row: "t",
        device: "d1",
        bytes: 2,
        received_at: SystemTime::now(),
        properties: &properties.into_iter().collect(),
    })
}

#[test]
fn a_message_decides_for_itself_and_the_share_for_the_others() {
    let (none, ended) = tracer(0.0);
    let sampled = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    drop(message(&none, None));
    assert!(ended.named("process d/{id}/t").is_empty());
    drop(message(&none, Some(sampled)));
    let [span] = &*ended.named("process d/{id}/t") else { panic!("one") };
    assert_eq!(span.parent_span_id.to_string(), "00f067aa0ba902b7");
    assert_eq!(span.span_context.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
    let (all, ended) = tracer(1.0);
    drop(message(&all, Some(&sampled.replace("-01", "-00"))));
    drop(message(&all, Some("nonsense")));
    assert_eq!(ended.named("process d/{id}/t").len(), 1, "the one that decides nothing");
}

#[test]
fn what_is_not_sampled_goes_on_under_its_own_context() {
    let (none, ended) = tracer(0.0);
    let span = message(&none, None);
    let mut properties = [("traceparent", "another")].into_iter().collect();
    span.publication("reply", "d/d1/r", 1).put_properties(&mut properties);
    let [(_, context)] = properties.iter().collect::<Vec<_>>()[..] else {
        panic!("{properties:?}")
    };
    assert!(context.ends_with("-00"), "{context}");
    span.concluded("delivered", 200, None);
    drop(span);
    assert!(ended.0.lock().unwrap().is_empty());
}

#[test]
fn a_batch_is_traced_if_one_of_its_calls_is_and_linked_with_each() {
    let (tracer, ended) = tracer(0.0);
    let sampled = |id| format!("00-4bf92f3577b34da6a3ce929d0e0e473{id}-00f067aa0ba902b7-01");
    let spans = [
        message(&tracer, None),
        message(&tracer, Some(&sampled(1))),
        message(&tracer, Some(&sampled(2))),
    ];
    drop(Span::batch("t", spans.iter()).unwrap());
    assert!(Span::batch("t", [].iter()).is_none());
    drop(Span::batch("t", spans[..1].iter()));
    drop(spans);
    let [batch] = &*ended.named("batch t") else { panic!("one of the two is traced") };
    assert_eq!(batch.links.len(), 3);
    let messages = ended.named("process d/{id}/t");
    assert_eq!(messages.len(), 2);
    for message in messages {
        assert_eq!(message.links.len(), 1);
        assert_eq!(message.links[0].span_context, batch.span_context);
        let mut linked = batch.links.iter().map(|link| link.span_context.span_id());
        assert!(linked.any(|id| id == message.span_context.span_id()));
    }
}

#[test]
fn the_span_of_a_message_begins_at_its_arrival_and_has_what_came_of_it() {
    let (tracer, ended) = tracer(1.0);
    let arrival = SystemTime::now() - Duration::from_secs(5);
    let span = tracer.message(&Consumed {
        topic: "d/d1/t",
        pattern: "d/{id}/t",
        row: "t",
        device: "d1",
        bytes: 2,
        received_at: arrival,
        properties: &UserProperties::default(),
    });
    let other = span.clone();
    span.concluded("rejected", 422, Some("the upstream answered 422".to_owned()));
    drop(span);
    assert!(ended.0.lock().unwrap().is_empty(), "somebody still has it");
    drop(other);
    let [span] = &*ended.named("process d/{id}/t") else { panic!("one") };
    assert_eq!(span.start_time, arrival);
    assert!(span.end_time.duration_since(arrival).unwrap() >= Duration::from_secs(5));
    let has = |name: &str, value: &str| {
        span.attributes.iter().any(|a| a.key.as_str() == name && a.value.as_str() == value)
    };
    assert!(has("mqtt_rest_gateway.outcome", "rejected"));
    assert!(has("mqtt_rest_gateway.status", "422"));
    assert!(has("error.type", "rejected"));
}
