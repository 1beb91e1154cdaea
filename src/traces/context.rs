//! Trace context as it travels [W3C Trace Context, level 1]: in user properties of MQTT and in headers of HTTP under the
//! same names.

use opentelemetry::{
    Context,
    propagation::{Extractor, Injector, TextMapPropagator},
    trace::{SpanContext, TraceContextExt},
};
use opentelemetry_sdk::propagation::TraceContextPropagator;

use crate::user_properties::UserProperties;

const PARENT: &str = "traceparent";
const STATE: &str = "tracestate";

/// Whether a property or header of this name is trace context.
pub(crate) fn is_context(name: &str) -> bool {
    name == PARENT || name == STATE
}

/// What a message says of the span that it belongs below. What is malformed is as if it were not there.
pub(crate) fn parent(properties: &UserProperties) -> Context {
    TraceContextPropagator::new().extract_with_context(&Context::new(), &Properties(properties))
}

/// Puts a context where it travels, by name and value.
pub(super) fn put(context: &SpanContext, put: impl FnMut(&str, String)) {
    let context = Context::new().with_remote_span_context(context.clone());
    TraceContextPropagator::new().inject_context(&context, &mut Put(put));
}

struct Properties<'p>(&'p UserProperties);

impl Extractor for Properties<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        // Of a name that stands twice the first, as filters see it.
        let value = self.0.get(key).next();
        // The library reads numbers that are too short, and signs.
        value.filter(|value| key != PARENT || is_well_formed(value))
    }

    fn keys(&self) -> Vec<&str> {
        self.0.iter().map(|(name, _)| name).collect()
    }
}

/// `version-trace-parent-flags` of so many digits; a later version may have more behind it.
fn is_well_formed(text: &str) -> bool {
    let mut parts = text.split('-');
    let digits = [2, 32, 16, 2].into_iter().all(|count| {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        parts.next().is_some_and(|part| part.len() == count && part.bytes().all(is_digit))
    });
    digits && (parts.next().is_none() || !text.starts_with("00"))
}

struct Put<F>(F);

impl<F: FnMut(&str, String)> Injector for Put<F> {
    fn set(&mut self, key: &str, value: String) {
        // An empty state says nothing.
        if !value.is_empty() {
            (self.0)(key, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

    fn read(parent_property: &str, state: &str) -> Option<SpanContext> {
        let properties =
            [("x", "y"), (PARENT, parent_property), (PARENT, "second"), (STATE, state)];
        let context = parent(&properties.into_iter().collect());
        let context = context.span().span_context().clone();
        context.is_valid().then_some(context)
    }

    #[test]
    fn a_context_comes_and_goes_as_it_is() {
        let text = format!("00-{TRACE}-00f067aa0ba902b7-01");
        let context = read(&text, "a=b,c=d").unwrap();
        assert!(context.is_remote() && context.is_sampled());
        let mut put_down = Vec::new();
        put(&context, |name, value| put_down.push((name.to_owned(), value)));
        assert_eq!(
            put_down,
            [(PARENT.to_owned(), text.clone()), (STATE.to_owned(), "a=b,c=d".to_owned())]
        );
        let unsampled = read(&text.replace("-01", "-00"), "not a state").unwrap();
        assert!(!unsampled.is_sampled());
        let mut names = Vec::new();
        put(&unsampled, |name, _| names.push(name.to_owned()));
        assert_eq!(names, [PARENT], "a state that is none is left out");
        assert!(read(&format!("01-{TRACE}-00f067aa0ba902b7-01-later"), "").is_some());
    }

    #[test]
    fn what_is_malformed_is_ignored() {
        for text in [
            "",
            "00",
            "nonsense",
            &format!("00-{TRACE}-00f067aa0ba902b7"),
            &format!("00-{TRACE}-00f067aa0ba902b7-01-more"),
            &format!("ff-{TRACE}-00f067aa0ba902b7-01"),
            &format!("00-{}-00f067aa0ba902b7-01", TRACE.to_uppercase()),
            &format!("00-{TRACE}-0000000000000000-01"),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-1-2-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(read(text, "a=b"), None, "{text}");
        }
    }
}
