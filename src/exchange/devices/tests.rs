//! What is learnt, what is forgotten, and for whom.

use super::*;

/// Who speaks for a device, with this key or with none.
fn speaker(device: &str, key: Option<&str>) -> Speaker {
    Speaker { device: device.into(), key: key.map(Secret::new) }
}

/// Carries this key.
fn carrying(key: &str) -> Authorization {
    Authorization::SpeakersKey(Secret::new(key))
}

/// Room for two; d1 is known by its key k1.
fn devices() -> (Devices, Speaker) {
    let (devices, d1) = (Devices::new(2), speaker("d1", Some("k1")));
    devices.learn_key(&d1, &carrying("k1"), StatusCode::OK);
    (devices, d1)
}

fn json(text: &str) -> Val {
    filter::parse(text.as_bytes()).unwrap()
}

#[test]
fn only_the_known_key_is_forgotten_on_401() {
    let (devices, d1) = devices();
    let wrong = speaker("d1", Some("wrong"));
    devices.learn_key(&wrong, &carrying("wrong"), StatusCode::UNAUTHORIZED);
    assert_eq!(devices.key(&d1.device), d1.key);
    devices.learn_key(&d1, &carrying("k1"), StatusCode::UNAUTHORIZED);
    assert_eq!(devices.key(&d1.device), None);
}

#[test]
fn the_least_recently_used_device_makes_room() {
    let (devices, d1) = devices();
    let (d2, d3) = (speaker("d2", Some("k1")), speaker("d3", Some("k1")));
    for each in [&d2, &d1, &d3] {
        devices.learn_key(each, &carrying("k1"), StatusCode::OK);
    }
    assert!(devices.key(&d2.device).is_none());
    assert!(devices.key(&d1.device).is_some() && devices.key(&d3.device).is_some());
}

#[test]
fn memory_is_merged_bounded_and_only_for_the_key_holder() {
    let (devices, own) = devices();
    let stranger = speaker("d1", Some("other"));
    assert_eq!(devices.remember(&own, &json(r#"{"a":1,"b":2}"#)), Remembered::Changed);
    devices.mark_without_effect(&own, 7);
    assert_eq!(devices.remember(&own, &json(r#"{"b":2}"#)), Remembered::Unchanged);
    assert!(devices.is_without_effect(&own, 7) && !devices.is_without_effect(&own, 8));
    assert!(!devices.is_without_effect(&stranger, 7));
    assert_eq!(devices.remember(&own, &json(r#"{"b":3}"#)), Remembered::Changed);
    assert!(!devices.is_without_effect(&own, 7), "with another memory another thing may follow");
    assert_eq!(devices.remember(&own, &json(r#"{"c":null}"#)), Remembered::Unchanged);
    devices.remember(&stranger, &json(r#"{"a":9}"#));
    devices.mark_without_effect(&stranger, 7);
    assert!(!devices.is_without_effect(&own, 7), "a stranger changes nothing");
    assert_eq!(devices.memory(&own).to_string(), r#"{"a":1,"b":3}"#);
    assert_eq!(devices.memory(&stranger), Val::Null);
    assert_eq!(devices.memory(&speaker("d1", None)), Val::Null, "nor does who shows no key");
    let much = json(&format!("{{\"c\":\"{}\"}}", "x".repeat(5000)));
    assert_eq!(devices.remember(&own, &much), Remembered::Refused);
    assert_eq!(devices.memory(&own).to_string(), r#"{"a":1,"b":3}"#);
}

#[tokio::test(start_paused = true)]
async fn items_are_told_apart_and_come_due() {
    let (devices, d1) = devices();
    let (item, minute) = (Item::new("t", b"1"), Duration::from_mins(1));
    assert!(!devices.pushed_within(&d1, item, minute));
    devices.mark_pushed(&d1, item);
    assert!(devices.pushed_within(&d1, item, minute));
    assert!(!devices.pushed_within(&d1, Item::new("t", b"2"), minute));
    assert!(!devices.pushed_within(&d1, Item::new("u", b"1"), minute));
    devices.forget_pushed_on(&d1.device, "u");
    assert!(devices.pushed_within(&d1, item, minute));
    tokio::time::advance(minute).await;
    assert!(!devices.pushed_within(&d1, item, minute));
    devices.mark_pushed(&d1, item);
    devices.forget_pushed_on(&d1.device, "t");
    assert!(!devices.pushed_within(&d1, item, minute));
}

#[tokio::test(start_paused = true)]
async fn as_many_items_are_kept_as_filters_put_out_but_not_for_everybody() {
    let (devices, d1) = devices();
    let minute = Duration::from_mins(1);
    let d2 = speaker("d2", Some("k1"));
    let push = |device: &Speaker, count: usize| {
        for number in 0..count {
            devices.mark_pushed(device, Item::new("t", &number.to_le_bytes()));
        }
        let kept = (0..count).filter(|number| {
            devices.pushed_within(device, Item::new("t", &number.to_le_bytes()), minute)
        });
        kept.count()
    };
    // Two devices have room for 128 together, and nobody less than 64.
    assert_eq!(push(&d1, 100), 100);
    devices.learn_key(&d2, &carrying("k1"), StatusCode::OK);
    assert_eq!(push(&d2, 100), FAIR_ITEMS);
    devices.forget_pushed_on(&d1.device, "t");
    assert_eq!(push(&d2, 100), 100, "what others no longer need");
    devices.learn_key(&d2, &carrying("k1"), StatusCode::UNAUTHORIZED);
    assert_eq!(push(&d1, 120), 120);
    assert_eq!(devices.items.load(Ordering::Relaxed), 120);
    let many = Devices::new(1000);
    many.learn_key(&d1, &carrying("k1"), StatusCode::OK);
    for number in 0..MAX_ITEMS + 10 {
        many.mark_pushed(&d1, Item::new("t", &number.to_le_bytes()));
    }
    assert_eq!(many.items.load(Ordering::Relaxed), MAX_ITEMS);
}

#[test]
fn something_fetched_for_a_stranger_takes_nobodys_place() {
    let (devices, d1) = devices();
    let d2 = speaker("d2", Some("k2"));
    devices.met(&speaker("d1", Some("k2")), &carrying("k2"));
    assert_eq!(devices.key(&d1.device), d1.key);
    devices.met(&d2, &carrying("k2"));
    assert_eq!(devices.key(&d2.device), d2.key);
}

#[test]
fn a_key_is_learnt_by_a_success_and_forgotten_by_a_401_of_a_call_that_carried_it() {
    let (devices, d1) = devices();
    for status in [400, 403, 404, 429, 500] {
        devices.learn_key(&d1, &carrying("k1"), StatusCode::from_u16(status).unwrap());
        assert_eq!(devices.key(&d1.device), d1.key, "{status}");
    }
    let new = speaker("d1", Some("k2"));
    devices.learn_key(&new, &carrying("k2"), StatusCode::OK);
    assert_eq!(devices.key(&d1.device), new.key);
    devices.learn_key(&d1, &carrying("k1"), StatusCode::UNAUTHORIZED);
    assert_eq!(devices.key(&d1.device), new.key, "another key was refused");
    devices.learn_key(&new, &carrying("k2"), StatusCode::UNAUTHORIZED);
    assert_eq!(devices.key(&d1.device), None);
}

#[test]
fn a_call_that_carries_no_key_of_its_speaker_teaches_and_forgets_none() {
    let (devices, d1) = devices();
    for status in (200..600).filter_map(|status| StatusCode::from_u16(status).ok()) {
        for speaker in [&d1, &speaker("d1", None)] {
            devices.learn_key(speaker, &Authorization::None, status);
            devices.met(speaker, &Authorization::None);
            assert_eq!(devices.key(&d1.device), d1.key, "{status}");
        }
    }
    // A device that is known by such calls alone has a memory, and no key that a row could use.
    let d2 = speaker("d2", None);
    devices.remember(&d2, &json("{\"a\":1}"));
    assert_eq!(devices.memory(&d2), Val::Null, "the API has not accepted it yet");
    devices.learn_key(&d2, &Authorization::None, StatusCode::OK);
    assert_eq!(devices.remember(&d2, &json("{\"a\":1}")), Remembered::Changed);
    assert_eq!(
        (devices.key(&d2.device), devices.memory(&d2).to_string()),
        (None, "{\"a\":1}".to_owned())
    );
    for status in [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN] {
        devices.learn_key(&d2, &Authorization::None, status);
        assert_ne!(devices.memory(&d2), Val::Null, "it says nothing of the device");
    }
}

/// One device, on rows that ask for its key and on rows that ask for none: somebody who may write on its topics and
/// has no key reads nothing that was learnt with it, and plants nothing that is read with it.
#[test]
fn what_is_known_by_key_and_what_is_known_without_one_are_two() {
    let (devices, keyed) = devices();
    let keyless = speaker("d1", None);
    devices.learn_key(&keyless, &Authorization::None, StatusCode::OK);
    let (observed, item, minute) =
        (Observed::of(0, b"1"), Item::new("t", b"1"), Duration::from_mins(1));
    for (own, value) in [(&keyed, "{\"a\":1}"), (&keyless, "{\"b\":2}")] {
        assert_eq!(devices.memory(own), Val::Null);
        assert!(!devices.is_without_effect(own, 7) && devices.has_changed(own, observed));
        assert!(!devices.pushed_within(own, item, minute));
        assert_eq!(devices.remember(own, &json(value)), Remembered::Changed);
        devices.mark_seen(own, observed);
        devices.mark_pushed(own, item);
        devices.mark_without_effect(own, 7);
        assert!(devices.is_without_effect(own, 7) && !devices.has_changed(own, observed));
        assert!(devices.pushed_within(own, item, minute));
    }
    assert_eq!(devices.memory(&keyed).to_string(), "{\"a\":1}");
    assert_eq!(devices.memory(&keyless).to_string(), "{\"b\":2}");
    // An answer of the device to a push makes both push again: that can only be too often.
    devices.forget_pushed_on(&keyed.device, "t");
    assert!(
        !devices.pushed_within(&keyed, item, minute)
            && !devices.pushed_within(&keyless, item, minute)
    );
    // The key is refused: what was learnt with it is forgotten, and nothing else.
    devices.learn_key(&keyed, &carrying("k1"), StatusCode::UNAUTHORIZED);
    assert_eq!((devices.key(&keyed.device), devices.memory(&keyed)), (None, Val::Null));
    assert_eq!(devices.memory(&keyless).to_string(), "{\"b\":2}");
}

#[test]
fn a_value_has_changed_when_it_differs_from_the_last_one() {
    let (devices, d1) = devices();
    let observed = Observed::of(0, b"1");
    assert!(devices.has_changed(&d1, observed));
    devices.mark_seen(&d1, observed);
    assert!(!devices.has_changed(&d1, observed));
    assert!(
        devices.has_changed(&d1, Observed::of(1, b"1"))
            && devices.has_changed(&d1, Observed::of(0, b"2"))
    );
    // The answer without effect may have one again: it may say what was before.
    devices.mark_without_effect(&d1, 7);
    devices.mark_seen(&d1, Observed::always(0));
    assert!(devices.is_without_effect(&d1, 7));
    devices.mark_seen(&d1, Observed::of(0, b"2"));
    assert!(!devices.is_without_effect(&d1, 7));
}
