//! The pure parts of the message path, each by itself: `cargo bench -p bench`.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on has failed")]

use std::{collections::BTreeMap, hint::black_box, time::Duration};

use criterion::{Criterion, criterion_group, criterion_main};
use mqtt_rest_gateway::{
    Condition,
    config::{Config, SHIPPED},
    filter::{self, Context},
    fingerprint::fingerprint,
    json,
    window::{self, Window},
};

const PAYLOAD: &[u8] = br#"{"timestamp":"2021-08-04T07:45:44.122Z","status":"online","telemetries":{"fan_speed":100.1,"connection":"4g","usbc":true}}"#;
const ANSWER: &[u8] = br#"{"success":true,"config_version":3,"command":false,"new_licenses":false,"space_data_version":0,"latest_fw_version":null}"#;

fn parts(criterion: &mut Criterion) {
    let config = Config::parse(SHIPPED, &BTreeMap::new()).unwrap();
    let subscriptions = config.subscriptions();
    let route = &config.table.routes[0];
    let topic = "v1/device/f62e0c28-5ce2-4590-a6cf-2f255a338544/telemetry";

    criterion.bench_function("find the first of twelve rows", |bencher| {
        bencher.iter(|| subscriptions.patterns.find(black_box(topic)));
    });
    criterion.bench_function("find the last of twelve rows", |bencher| {
        bencher.iter(|| subscriptions.patterns.find(black_box("v1/device/d1/firmware")));
    });
    let (_, captures) = subscriptions.patterns.find(topic).unwrap();
    let path = &route.call.as_ref().unwrap().path;
    criterion.bench_function("render a path", |bencher| {
        bencher.iter(|| path.path(|name| black_box(&captures).get(name)));
    });
    criterion.bench_function("check a payload of 120 bytes", |bencher| {
        bencher.iter(|| json::check(black_box(PAYLOAD)));
    });
    criterion.bench_function("fingerprint of an answer", |bencher| {
        bencher.iter(|| fingerprint((&route.name, black_box(ANSWER))));
    });
    criterion.bench_function("every filter of telemetry over an answer", |bencher| {
        let conditions = route.then.iter().filter_map(|then| match &then.condition {
            Condition::Always => None,
            Condition::When(filter) | Condition::OnChange(filter) => Some(filter),
        });
        let filters: Vec<_> = route.remember.iter().chain(conditions).collect();
        bencher.iter(|| {
            let input = filter::parse(black_box(ANSWER)).unwrap();
            filters.iter().map(|f| f.run(input.clone(), &Context::default())).collect::<Vec<_>>()
        });
    });
    criterion.bench_function("window of 512: arrive, settle, acknowledge", |bencher| {
        let mut window = Window::new(Some(Duration::from_secs(2)), 513);
        let now = tokio::time::Instant::now();
        let mut number = 0u64;
        let mut arrive = |window: &mut Window| {
            number += 1;
            let packet_id = u16::try_from(number % 65_535).unwrap() + 1;
            let sender = "d1".into();
            let arrived = window::Arrived {
                packet_id,
                dup: false,
                fingerprint: number,
                sender,
                subscription: None,
            };
            window.arrive(arrived, now)
        };
        let mut held: std::collections::VecDeque<_> =
            (0..512).map(|_| arrive(&mut window)).collect();
        bencher.iter(|| {
            held.push_back(arrive(&mut window));
            if let Some(window::Arrival::New(ticket)) = held.pop_front() {
                window.settle(ticket, now);
            }
            window.next_due()
        });
    });
}

criterion_group! {
    name = benches;
    config = Criterion::default().measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(500));
    targets = parts
}
criterion_main!(benches);
