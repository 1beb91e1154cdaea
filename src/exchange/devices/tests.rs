//! What is learnt, what is forgotten, and for whom.

use super::*;

fn devices() -> (Devices, Arc<str>, Secret) {
    let devices = Devices::new(2);
    let (d1, key): (Arc<str>, _) = ("d1".into(), Secret::new("k1"));
    devices.accept(&d1, Some(&key));
    (devices, d1, key)
}

#[test]
fn only_the_known_key_is_forgotten_on_401() {
    let (devices, d1, key) = devices();
    devices.refuse(&d1, &Secret::new("wrong"));
    assert_eq!(devices.key(&d1), Some(key.clone()));
    devices.refuse(&d1, &key);
    assert_eq!(devices.key(&d1), None);
}

#[test]
fn the_least_recently_used_device_makes_room() {
    let (devices, d1, key) = devices();
    devices.accept(&"d2".into(), Some(&key));
    devices.accept(&d1, Some(&key));
    devices.accept(&"d3".into(), Some(&key));
    assert!(devices.key("d2").is_none());
    assert!(devices.key("d1").is_some() && devices.key("d3").is_some());
}

#[test]
fn memory_is_merged_bounded_and_only_for_the_key_holder() {
    let (devices, d1, key) = devices();
    let speaker = |key: Option<Secret>| Speaker { device: d1.clone(), key };
    let (own, stranger) = (speaker(Some(key)), speaker(Some(Secret::new("other"))));
    let json = |text: &str| filter::parse(text.as_bytes()).unwrap();
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
    assert_eq!(devices.memory(&speaker(None)), Val::Null, "nor does who shows no key");
    let much = json(&format!("{{\"c\":\"{}\"}}", "x".repeat(5000)));
    assert_eq!(devices.remember(&own, &much), Remembered::Refused);
    assert_eq!(devices.memory(&own).to_string(), r#"{"a":1,"b":3}"#);
}

#[tokio::test(start_paused = true)]
async fn items_are_told_apart_and_come_due() {
    let (devices, d1, _) = devices();
    let (item, minute) = (Item::new("t", b"1"), Duration::from_mins(1));
    assert!(!devices.pushed_within(&d1, item, minute));
    devices.mark_pushed(&d1, item);
    assert!(devices.pushed_within(&d1, item, minute));
    assert!(!devices.pushed_within(&d1, Item::new("t", b"2"), minute));
    assert!(!devices.pushed_within(&d1, Item::new("u", b"1"), minute));
    devices.forget_pushed_on(&d1, "u");
    assert!(devices.pushed_within(&d1, item, minute));
    tokio::time::advance(minute).await;
    assert!(!devices.pushed_within(&d1, item, minute));
    devices.mark_pushed(&d1, item);
    devices.forget_pushed_on(&d1, "t");
    assert!(!devices.pushed_within(&d1, item, minute));
}

#[tokio::test(start_paused = true)]
async fn as_many_items_are_kept_as_filters_put_out_but_not_for_everybody() {
    let (devices, d1, key) = devices();
    let minute = Duration::from_mins(1);
    let push = |device: &str, count: usize| {
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
    devices.accept(&"d2".into(), Some(&key));
    assert_eq!(push("d2", 100), FAIR_ITEMS);
    devices.forget_pushed_on(&d1, "t");
    assert_eq!(push("d2", 100), 100, "what others no longer need");
    devices.refuse("d2", &key);
    assert_eq!(push(&d1, 120), 120);
    assert_eq!(devices.items.load(Ordering::Relaxed), 120);
    let many = Devices::new(1000);
    many.accept(&d1, Some(&key));
    for number in 0..MAX_ITEMS + 10 {
        many.mark_pushed(&d1, Item::new("t", &number.to_le_bytes()));
    }
    assert_eq!(many.items.load(Ordering::Relaxed), MAX_ITEMS);
}

#[test]
fn something_fetched_for_a_stranger_takes_nobodys_place() {
    let (devices, d1, key) = devices();
    let carried = Authorization::SpeakersKey(Secret::new("k2"));
    devices.met(&d1, &carried);
    assert_eq!(devices.key(&d1), Some(key));
    devices.met(&"d2".into(), &carried);
    assert_eq!(devices.key("d2"), Some(Secret::new("k2")));
}

#[test]
fn a_key_is_learnt_by_a_success_and_forgotten_by_a_401_of_a_call_that_carried_it() {
    let (devices, d1, key) = devices();
    let own = Authorization::SpeakersKey(key.clone());
    for status in [400, 403, 404, 429, 500] {
        devices.learn_key(&d1, &own, StatusCode::from_u16(status).unwrap());
        assert_eq!(devices.key(&d1), Some(key.clone()), "{status}");
    }
    let new = Secret::new("k2");
    devices.learn_key(&d1, &Authorization::SpeakersKey(new.clone()), StatusCode::OK);
    assert_eq!(devices.key(&d1), Some(new.clone()));
    devices.learn_key(&d1, &own, StatusCode::UNAUTHORIZED);
    assert_eq!(devices.key(&d1), Some(new.clone()), "another key was refused");
    devices.learn_key(&d1, &Authorization::SpeakersKey(new), StatusCode::UNAUTHORIZED);
    assert_eq!(devices.key(&d1), None);
}

#[test]
fn a_call_that_carries_no_key_of_its_speaker_teaches_and_forgets_none() {
    let (devices, d1, key) = devices();
    for status in (200..600).filter_map(|status| StatusCode::from_u16(status).ok()) {
        devices.learn_key(&d1, &Authorization::None, status);
        devices.met(&d1, &Authorization::None);
        assert_eq!(devices.key(&d1), Some(key.clone()), "{status}");
    }
    // A device that is known by such calls alone has a memory, and no key that a row could use.
    let speaker = Speaker { device: "d2".into(), key: None };
    let seen = filter::parse(b"{\"a\":1}").unwrap();
    devices.remember(&speaker, &seen);
    assert_eq!(devices.memory(&speaker), Val::Null, "the API has not accepted it yet");
    devices.learn_key(&speaker.device, &Authorization::None, StatusCode::OK);
    assert_eq!(devices.remember(&speaker, &seen), Remembered::Changed);
    assert_eq!(
        (devices.key("d2"), devices.memory(&speaker).to_string()),
        (None, "{\"a\":1}".to_owned())
    );
    devices.learn_key(&speaker.device, &Authorization::None, StatusCode::UNAUTHORIZED);
    assert_ne!(devices.memory(&speaker), Val::Null);
}

#[test]
fn a_value_has_changed_when_it_differs_from_the_last_one() {
    let (devices, d1, _) = devices();
    let observed = Observed::of(0, b"1");
    assert!(devices.has_changed(&d1, observed));
    devices.mark_seen(&d1, observed);
    assert!(!devices.has_changed(&d1, observed));
    assert!(
        devices.has_changed(&d1, Observed::of(1, b"1"))
            && devices.has_changed(&d1, Observed::of(0, b"2"))
    );
    // The answer without effect may have one again: it may say what was before.
    let speaker = Speaker { device: d1.clone(), key: devices.key(&d1) };
    devices.mark_without_effect(&speaker, 7);
    devices.mark_seen(&d1, Observed::always(0));
    assert!(devices.is_without_effect(&speaker, 7));
    devices.mark_seen(&d1, Observed::of(0, b"2"));
    assert!(!devices.is_without_effect(&speaker, 7));
}
