//! Which topics match, which patterns meet, and what is captured.

use super::*;

fn pattern(text: &str) -> Pattern {
    Pattern::parse(text).unwrap()
}

#[test]
fn captures_whole_levels_and_nothing_else() {
    let telemetry = pattern("v1/device/{device_id}/telemetry");
    let captures = telemetry.matches("v1/device/d1/telemetry").unwrap();
    assert_eq!(captures.get("device_id"), Some("d1"));
    assert_eq!(captures.get("other"), None);
    assert_eq!(telemetry.filter(), "v1/device/+/telemetry");
    for other in ["v1/device/d1", "v1/device/d1/telemetry/x", "v1/device/d1/config", ""] {
        assert_eq!(telemetry.matches(other), None, "{other}");
    }
    assert_eq!(telemetry.matches("v1/device//telemetry").unwrap().get("device_id"), Some(""));
}

#[test]
fn all_levels_that_are_left_are_one_value() {
    let all = pattern("z/{site}/{device...}");
    let captures = all.matches("z/north/kitchen/lamp").unwrap();
    assert_eq!(
        (captures.get("site"), captures.get("device")),
        (Some("north"), Some("kitchen/lamp"))
    );
    assert_eq!(captures.up_to("device").as_deref(), Some("north/kitchen/lamp"));
    assert_eq!((all.filter().as_str(), all.rest()), ("z/+/#", Some("device")));
    assert_eq!(all.matches("z/north//").unwrap().get("device"), Some("/"));
    assert_eq!(all.matches("z/north/").unwrap().get("device"), Some(""));
    for other in ["z", "z/north", "y/north/a"] {
        assert_eq!(all.matches(other), None, "{other}");
    }
    assert!(all.brings_beside("z/north") && !all.brings_beside("z") && !all.brings_beside("z/n/d"));
    assert_eq!(pattern("{device...}").filter(), "#");
}

#[test]
fn overlap_is_seen_through_captures() {
    let a = pattern("v1/{kind}/{id}/config");
    assert!(a.overlaps(&pattern("v1/device/{id}/config")));
    assert!(!a.overlaps(&pattern("v1/device/{id}/update")));
    assert!(!a.overlaps(&pattern("v1/device/{id}/config/update")));
}

#[test]
fn what_lies_inside_is_told_from_what_crosses() {
    for (outer, inner) in [
        ("z/{d...}", "z/bridge/{d...}"),
        ("z/{d...}", "z/{d}/set"),
        ("z/{d...}", "z"),
        ("{d...}", "z/{d}"),
        ("v1/{kind}/{id}", "v1/device/{id}"),
    ] {
        let (outer, inner) = (pattern(outer), pattern(inner));
        assert!(outer.covers(&inner) && !inner.covers(&outer), "{outer:?} {inner:?}");
        assert!(outer.overlaps(&inner) && inner.overlaps(&outer));
    }
    for (one, other) in [
        ("z/bridge/{d...}", "z/{d}/set"),
        ("z/{d...}", "{a}"),
        ("{a}/x", "y/{b}"),
        ("{a}/x/{c...}", "y/{b...}"),
    ] {
        let (one, other) = (pattern(one), pattern(other));
        assert!(one.overlaps(&other) && other.overlaps(&one), "{one:?} {other:?}");
        assert!(!one.covers(&other) && !other.covers(&one), "{one:?} {other:?}");
    }
    assert!(!pattern("z/{d...}").overlaps(&pattern("y/{d...}")));
}

/// Every pattern of few levels against every topic of few.
#[test]
fn patterns_overlap_and_lie_inside_as_their_topics_do() {
    let sequences = |alphabet: [&str; 2], most: usize| {
        let mut all = vec![String::new()];
        for _ in 0..most {
            let longer =
                all.iter().flat_map(|text| alphabet.map(|level| format!("{text}{level}/")));
            all = all.iter().cloned().chain(longer).collect();
        }
        all.sort();
        all.dedup();
        all
    };
    let mut patterns = Vec::new();
    for text in sequences(["a", "?"], 3) {
        let named = |text: String| {
            let named = |(n, part): (usize, &str)| match n {
                0 => part.to_owned(),
                n => format!("{{n{n}}}{part}"),
            };
            text.split('?').enumerate().map(named).collect::<String>()
        };
        let closed = text.trim_end_matches('/').to_owned();
        let texts = [closed, format!("{text}{{rest...}}")];
        let texts = texts.into_iter().filter(|text| !text.is_empty());
        patterns.extend(texts.map(|text| pattern(&named(text))));
    }
    let topics = sequences(["a", "b"], 4);
    let topics: Vec<_> =
        topics.iter().map(|text| text.trim_end_matches('/')).filter(|t| !t.is_empty()).collect();
    let brings = |pattern: &Pattern, topic: &str| {
        assert_eq!(pattern.matches(topic).is_some(), pattern.fits(topic));
        pattern.fits(topic) || pattern.brings_beside(topic)
    };
    assert!(patterns.len() == 29 && topics.len() == 30, "{} {}", patterns.len(), topics.len());
    for (one, other) in patterns.iter().flat_map(|one| patterns.iter().map(move |o| (one, o))) {
        let of_one: Vec<_> = topics.iter().filter(|topic| brings(one, topic)).collect();
        let of_other: Vec<_> = topics.iter().filter(|topic| brings(other, topic)).collect();
        let common = of_one.iter().any(|topic| of_other.contains(topic));
        assert_eq!(one.overlaps(other), common, "{one:?} {other:?}");
        let all = of_other.iter().all(|topic| of_one.contains(topic));
        // `+/#` is as good as `#`; it lies in it all the same.
        let is_everything = other.as_str() == "{rest...}" && one != other;
        assert_eq!(one.covers(other), all && !is_everything, "{one:?} {other:?}");
    }
}

#[test]
fn where_a_template_leads_is_seen_before_it_is_filled_in() {
    let leads = |template, own, on| {
        Pattern::of_template(template, Some(&pattern(own))).overlaps(&pattern(on))
    };
    assert!(leads("v1/{a}/x-{b}", "{a}/{b}", "v1/{id}/x-1") && leads("v1/a", "{a}", "v1/{id}"));
    assert!(!leads("v1/{a}", "{a}", "v2/{id}") && !leads("v1/{a}", "{a}", "v1/{id}/x"));
    // A name of many levels is as many in a topic.
    assert!(
        leads("v1/{a}", "z/{a...}", "v1/{id}/x") && leads("v1/{a}/x", "z/{a...}", "v1/{b}/{c}/{d}")
    );
    assert!(!leads("v1/{a}/x", "z/{a...}", "v1/{b}/{c}/y"));
}

#[test]
fn mistakes_say_what_to_write() {
    for (text, hint) in [
        ("", "empty"),
        ("$SYS/x", "broker"),
        ("v1/+/x", "{device_id}"),
        ("v1/#", "{device_id...}"),
        ("v1/d{id}/x", "whole level"),
        ("v1/{}/x", "whole level"),
        ("v1/{...}", "whole level"),
        ("v1/{a}/{a}", "twice"),
        ("v1/{a}/{a...}", "twice"),
        ("v1/{a...}/x", "only be the last one"),
    ] {
        let error = Pattern::parse(text).unwrap_err();
        assert!(error.contains(hint), "{text}: {error}");
    }
}

#[test]
fn only_plain_topics_are_published_on() {
    assert!(is_publishable("v1/device/d1/config"));
    for topic in
        ["", "$SYS/x", "v1/+/x", "v1/#", "v1/a\u{7}b", &"x".repeat(70_000), &"/".repeat(100)]
    {
        assert!(!is_publishable(topic), "{topic:.20}");
    }
}
