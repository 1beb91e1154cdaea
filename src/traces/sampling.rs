//! Which messages are traced.

use opentelemetry::{
    Context, KeyValue,
    trace::{Link, SpanKind, TraceContextExt, TraceId},
};
use opentelemetry_sdk::trace::{Sampler, SamplingDecision, SamplingResult, ShouldSample};

/// What a message brings along decides; of the others this share is traced, and a batch if one of its calls is.
pub(super) fn sampler(share: f64) -> Sampler {
    Sampler::ParentBased(Box::new(Roots(Sampler::TraceIdRatioBased(share))))
}

/// Decides for spans without a parent.
#[derive(Debug, Clone)]
struct Roots(Sampler);

impl ShouldSample for Roots {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace_id: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        if links.is_empty() {
            return self.0.should_sample(parent, trace_id, name, kind, attributes, links);
        }
        let is_sampled = links.iter().any(|link| link.span_context.is_sampled());
        let decision =
            if is_sampled { SamplingDecision::RecordAndSample } else { SamplingDecision::Drop };
        let trace_state = parent.map(|parent| parent.span().span_context().trace_state().clone());
        SamplingResult {
            decision,
            attributes: Vec::new(),
            trace_state: trace_state.unwrap_or_default(),
        }
    }
}
