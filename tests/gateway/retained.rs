//! What the table wants retained is there for whoever subscribes later, and nothing else is.

use serde_json::{Value, json};

use crate::harness::{Broker, Options, Upstream};

const CONFIG: &str = r#"
[upstream]
url = "http://hub"

[[route]]
name   = "state"
on     = "v1/device/{device_id}/state"
call   = "POST /{device_id}/state"
reply  = "v1/device/{device_id}/state/now"
retain = true
then   = ["kept", "gone"]

[[fetch]]
name    = "kept"
push    = "v1/device/{device_id}/kept"
payload = ".kept"
retain  = true

[[fetch]]
name    = "gone"
push    = "v1/device/{device_id}/gone"
payload = ".gone"
"#;

#[tokio::test]
async fn answers_and_pushes_are_kept_for_whoever_subscribes_later() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let _gateway = Options::default().config(CONFIG).start(&broker, &upstream).await;
    let answer = json!({"kept": 1, "gone": 2});
    upstream.answers("POST", "/d1/state", 200, answer.clone()).await;
    let mut device = broker.device("d1").await;
    let all = async |device: &mut crate::harness::Device| {
        for below in ["state/now", "kept", "gone"] {
            let message = device.on(&device.topic(below)).await;
            assert!(!message.retain, "to who is subscribed it is a message like others");
        }
    };
    device.send("state", json!({})).await;
    all(&mut device).await;
    // Where a device asks for it, it can leave nothing behind; nor does a failure stay.
    assert_eq!(device.ask("state", json!({})).await.json(), answer);
    upstream.answers("POST", "/d1/state", 422, json!({"error": "no"})).await;
    device.send("state", json!({})).await;
    assert_eq!(device.on(&device.topic("state/now")).await.user("status"), "422");

    let mut late = broker.listener("late", "v1/device/d1/#").await;
    let mut kept: Vec<(String, Value)> = Vec::new();
    for _ in 0..2 {
        let message = late.next().await;
        assert!(message.retain);
        assert_eq!(message.user("via"), "mqtt-rest-gateway");
        kept.push((message.topic.clone(), message.json()));
    }
    kept.sort_by(|(a, _), (b, _)| a.cmp(b));
    let topic = |below: &str| format!("v1/device/d1/{below}");
    assert_eq!(kept, [(topic("kept"), json!(1)), (topic("state/now"), answer)]);
    late.silent().await;
}
