//! The page for people in a real browser, `/events` that feeds it, and `top`, which shows the same in a terminal.

use std::{process::Stdio, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::Command,
    time::timeout,
};
use wiremock::ResponseTemplate;

use crate::harness::{
    Broker, Browser, Device, Gateway, Options, PATIENCE, Upstream, nobody, program, run,
};

/// What would change the page's title if it were taken for HTML.
const INJECTION: &str =
    "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'<\u{2f}script>";
/// As a level of a topic it has no `/`.
const INJECTED_ID: &str = "<img src=x onerror=\"document.title='owned'\">";
const KEY: &str = "RECOGNISABLE-c0ffee-KEY";

/// A gateway with messages of every kind behind it: what was sent.
struct Scene {
    broker: Broker,
    upstream: Upstream,
    gateway: Gateway,
    device: Device,
    delivered: u64,
    rejected: u64,
    refused: u64,
}

impl Scene {
    async fn new() -> Self {
        let (broker, upstream) = (Broker::start().await, Upstream::start().await);
        upstream.answers("POST", "/v1/devices/d1/telemetry", 201, json!({})).await;
        // The API says the key again, and HTML.
        let said = format!(
            "{{\"error\": \"brightness must be a number\", \"key\": \"{KEY}\"}}{INJECTION}"
        );
        let unprocessable = ResponseTemplate::new(422).set_body_string(said);
        upstream.responds("POST", "/v1/devices/d1/config", unprocessable).await;
        let gateway = Gateway::start(&broker, &upstream).await;
        let device = broker.device("d1").await;
        let (delivered, rejected, refused) = (7, 4, 2);
        let mut scene = Self { broker, upstream, gateway, device, delivered, rejected, refused };
        for _ in 0..delivered {
            scene.send("telemetry", "{}", "d1").await;
        }
        for _ in 0..rejected {
            scene.send("config/update", "{\"brightness\": \"high\"}", "d1").await;
        }
        scene.send("telemetry", "{\"v\": ", "d1").await;
        // Nobody has such an id; the API knows nothing of it.
        scene.send("telemetry", "{}", INJECTED_ID).await;
        scene.gateway.settles().await;
        scene
    }

    async fn send(&mut self, below: &str, payload: &str, device: &str) {
        let mut message = self.device.message(below, payload);
        message.topic = format!("v1/device/{device}/{below}");
        message.props.user =
            vec![("device_id".into(), device.into()), ("access_key".into(), KEY.into())];
        self.device.publish(message).await;
    }

    fn failed(&self) -> u64 {
        self.rejected + self.refused
    }

    fn received(&self) -> u64 {
        self.delivered + self.failed()
    }
}

/// Opens the page and waits for the first event.
async fn look(gateway: &Gateway) -> Browser {
    let mut browser = Browser::start().await;
    browser.screen(1280, 900, "light").await;
    browser.open(&format!("http://{}/", gateway.admin())).await;
    browser.waits_for("document.querySelector('#about').textContent !== ''").await;
    browser
}

/// The cell of a row under this heading.
fn cell(row: &str, title: &str) -> String {
    format!("tr[data-row='{row}'] td[data-title='{title}']")
}

#[tokio::test]
async fn figures_on_the_page_equal_what_was_sent() {
    let mut scene = Scene::new().await;
    let mut browser = look(&scene.gateway).await;
    browser.shows("#verdict", "Ready").await;
    browser.shows("#broker", "Connected").await;
    browser.shows("#broker-address", &scene.broker.url()).await;
    browser.shows("#api", "Answers").await;
    browser.shows("#api-url", &scene.upstream.url()).await;
    browser.shows("#received", &scene.received().to_string()).await;
    browser.shows("#failed", &scene.failed().to_string()).await;
    browser.shows("#waiting", "0").await;
    browser.shows("#at-most", "20").await;
    browser.shows(&cell("telemetry", "Messages"), &(scene.delivered + 2).to_string()).await;
    browser.shows(&cell("telemetry", "Failed"), "2 (bad_payload 1, rejected 1)").await;
    browser.shows(&cell("update_config", "Messages"), &scene.rejected.to_string()).await;
    let rejected = format!("{0} (rejected {0})", scene.rejected);
    browser.shows(&cell("update_config", "Failed"), &rejected).await;
    browser.shows("#idle summary", "19 rows without a message").await;
    let failures = "document.querySelector('#failures').tBodies[0].rows";
    let shown = browser.value(&format!("{failures}.length")).await;
    assert_eq!(shown, scene.failed());
    // Live: what comes now is shown without anything being loaded again.
    browser.value("window.untouched = true").await;
    scene.send("telemetry", "no JSON", "d1").await;
    scene.send("telemetry", "{}", "d1").await;
    browser.shows(&cell("telemetry", "Messages"), &(scene.delivered + 4).to_string()).await;
    browser.shows("#failed", &(scene.failed() + 1).to_string()).await;
    assert_eq!(browser.value(&format!("{failures}.length")).await, scene.failed() + 1);
    let newest = browser.value(&format!("{failures}[0].innerText")).await;
    let newest = newest.as_str().unwrap();
    for text in ["v1/device/d1/telemetry", "400 bad_payload", "Correct what the device sends"] {
        assert!(newest.contains(text), "{text} is not in {newest}");
    }
    browser
        .waits_for(&format!(
            "parseFloat(document.querySelector(\"{}\").innerText) > 0",
            cell("telemetry", "A second")
        ))
        .await;
    for title in ["API takes", "In all"] {
        let shown = format!("document.querySelector(\"{}\").innerText", cell("telemetry", title));
        browser.waits_for(&format!("{shown}.endsWith('ms')")).await;
    }
    assert_eq!(browser.value("window.untouched").await, true);
    assert_eq!(browser.complaints(), Vec::<String>::new());
}

#[tokio::test]
async fn the_page_says_what_is_wrong_what_to_do_and_when_it_is_over() {
    let mut broker = Broker::start().await;
    let (_socket, nobody) = nobody();
    let options = Options::default().set("BROKER_URL", &broker.url());
    let mut gateway = options.set("UPSTREAM_URL", &format!("http://{nobody}")).spawn().await;
    gateway.ready().await;
    let mut browser = look(&gateway).await;
    browser.shows("#verdict", "Ready").await;
    broker.device("d1").await.send("telemetry", json!({})).await;
    browser.shows("#verdict", "Not ready").await;
    browser.shows("#api", "Down for 1 row").await;
    browser
        .waits_for("/^telemetry for \\d+ s$/.test(document.querySelector('#outages').innerText)")
        .await;
    browser
        .waits_for("/down for .*refused/.test(document.querySelector('#reasons').innerText)")
        .await;
    browser
        .shows(
            "#reasons .remedy",
            "See to the API: messages are held, and go on by themselves when it is back.",
        )
        .await;
    browser.shows("#waiting", "1").await;
    // Said aloud once: seconds that pass are not another state.
    let announced = "document.querySelector('#announcement').textContent";
    browser.waits_for(&format!("{announced}.includes('down for')")).await;
    let before = browser.value(announced).await;
    let up = browser.value("document.querySelector('#outages').innerText").await;
    browser.waits_for(&format!("document.querySelector('#outages').innerText !== {up}")).await;
    assert_eq!(browser.value(announced).await, before);

    broker.stop().await;
    browser.shows("#broker", "Not connected").await;
    browser.waits_for(&format!("{announced}.includes('broker: not connected')")).await;
    broker.start_again().await;
    browser.shows("#broker", "Connected").await;
    gateway.kill().await;
    browser.shows("#verdict", "The gateway does not answer").await;
    assert_eq!(
        browser.value("document.title").await,
        "The gateway does not answer · mqtt-rest-gateway"
    );
}

/// The worst contrast of a text with what is behind it, and that text [WCAG 2.2, 1.4.3].
const CONTRAST: &str = r"(() => {
    const channels = (color) => color.match(/[\d.]+/g).map(Number);
    const light = (color) => {
        const [r, g, b] = channels(color).map((c) => c / 255).map((c) => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (element) => {
        for (let e = element; e; e = e.parentElement) {
            const color = getComputedStyle(e).backgroundColor;
            if ((channels(color)[3] ?? 1) === 1) return color;
        }
        return 'rgb(255, 255, 255)';
    };
    let worst = [21, ''];
    for (const element of document.body.querySelectorAll('*')) {
        const own = [...element.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE).map((node) => node.data.trim()).join('');
        if (!own || element.getClientRects().length === 0) continue;
        const [a, b] = [light(getComputedStyle(element).color), light(behind(element))];
        const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (contrast < worst[0]) worst = [contrast, own];
    }
    return worst;
})()";

#[tokio::test]
async fn the_page_is_readable_on_a_phone_in_the_dark_by_keyboard_and_by_screen_reader() {
    let scene = Scene::new().await;
    let mut browser = look(&scene.gateway).await;
    browser.shows("#failed", &scene.failed().to_string()).await;
    let mut backs = Vec::new();
    for (width, scheme) in
        [(360, "light"), (360, "dark"), (768, "light"), (1280, "dark"), (1280, "light")]
    {
        browser.screen(width, 800, scheme).await;
        browser.waits_for(&format!("innerWidth === {width}")).await;
        let sizes = browser.value("[document.documentElement.scrollWidth, innerWidth]").await;
        assert!(
            sizes[0].as_u64() <= sizes[1].as_u64(),
            "{scheme}, {width}: it scrolls sideways: {sizes}"
        );
        let worst = browser.value(CONTRAST).await;
        assert!(worst[0].as_f64().unwrap() >= 4.5, "{scheme}, {width}: hard to read: {worst}");
        backs.push(browser.value("getComputedStyle(document.body).backgroundColor").await);
    }
    assert_ne!(backs[3], backs[4], "the dark is another one");

    // The first key comes to a link past the figures, and shows where it is.
    browser.press("Tab").await;
    let focused = browser.value("[document.activeElement.className, getComputedStyle(document.activeElement).outlineStyle]").await;
    assert_eq!(focused, json!(["skip", "solid"]));

    for width in [360, 1280] {
        browser.screen(width, 800, "light").await;
        let tree = browser.call("Accessibility.getFullAXTree", json!({})).await;
        let heard = |role: &str, name: &str| {
            let nodes = tree["nodes"].as_array().unwrap().iter();
            nodes
                .filter(|node| node["role"]["value"] == role && node["name"]["value"] == name)
                .count()
        };
        for (role, name) in [
            ("heading", "Ready"),
            ("region", "Broker"),
            ("table", "Rows in the last 10 seconds, and since the start"),
            ("table", "Last failures"),
            ("columnheader", "What to do"),
            ("rowheader", "telemetry"),
            ("status", ""),
        ] {
            assert_eq!(heard(role, name), 1, "{role} {name:?} at {width} in {tree}");
        }
    }
}

#[tokio::test]
async fn what_devices_and_the_api_say_is_text_and_no_key_is_shown() {
    let scene = Scene::new().await;
    let mut browser = look(&scene.gateway).await;
    browser.shows("#failed", &scene.failed().to_string()).await;
    let text = browser.value("document.querySelector('#failures').innerText").await;
    for said in
        [format!("v1/device/{INJECTED_ID}/telemetry"), format!("\"<redacted>\"}}{INJECTION}")]
    {
        assert!(text.as_str().unwrap().contains(&said), "{said} is not in {text}");
    }
    let made = browser
        .value("[document.querySelectorAll('img').length, document.scripts.length, document.title]")
        .await;
    assert_eq!(made, json!([0, 1, "mqtt-rest-gateway"]));
    assert_eq!(browser.complaints(), Vec::<String>::new());
    // What is not the gateway's own would not run in any case.
    browser.value("document.body.insertAdjacentHTML('beforeend', '<img src=data:, onerror=\"document.title=1\">')").await;
    browser.value("new Promise((done) => setTimeout(done, 100))").await;
    assert_eq!(browser.value("document.title").await, "mqtt-rest-gateway");
    assert!(browser.complaints().concat().contains("Content Security Policy"));

    let page = browser.value("document.documentElement.outerHTML").await;
    let event = Ear::open(&scene.gateway).await.event().await.to_string();
    assert!(event.contains("brightness must be a number"), "{event}");
    for (place, text) in [("the page", page.as_str().unwrap()), ("an event", &event)] {
        assert!(!text.contains(KEY) && text.contains("redacted"), "{place} shows the key");
    }
}

/// Somebody who listens to `/events`.
struct Ear(BufReader<TcpStream>);

impl Ear {
    async fn open(gateway: &Gateway) -> Self {
        let mut stream = TcpStream::connect(gateway.admin()).await.unwrap();
        stream.write_all(b"GET /events HTTP/1.0\r\nhost: x\r\n\r\n").await.unwrap();
        Self(BufReader::new(stream))
    }

    /// A line; none at the end.
    async fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        let read =
            timeout(PATIENCE, self.0.read_line(&mut line)).await.expect("an event or the end");
        // A reset is as good as an end.
        (read.unwrap_or(0) > 0).then_some(line)
    }

    async fn event(&mut self) -> Value {
        loop {
            let line = self.line().await.expect("it goes on");
            if let Some(data) = line.strip_prefix("data: ") {
                return serde_json::from_str(data).unwrap();
            }
        }
    }

    /// It ends before another few events have come.
    async fn end(&mut self) {
        for _ in 0..20 {
            if self.line().await.is_none() {
                return;
            }
        }
        panic!("it goes on");
    }
}

/// Many an API says in its 404 what was asked for, and there the secret is in the path.
#[tokio::test]
async fn a_secret_in_a_path_that_the_api_says_again_is_not_shown() {
    const SECRET: &str = "RECOGNISABLE-c0ffee-PATH";
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let path = format!("/hooks/{SECRET}");
    let said = format!("Cannot POST {path}");
    upstream.responds("POST", &path, ResponseTemplate::new(404).set_body_string(said)).await;
    let table = "[[route]]\nname = \"hook\"\non = \"v1/device/{device_id}/hook\"\ncredentials = \"none\"\n\
                 call = \"POST /hooks/{$hook}\"\n";
    let options = Options::default().config(table).set("SECRETS_HOOK", SECRET);
    let gateway = options.start(&broker, &upstream).await;
    let mut letters = broker.observer("mqtt-rest-gateway/dead-letter/#").await;
    broker.device("d1").await.send("hook", json!({})).await;
    let letter = letters.next().await;
    let event = Ear::open(&gateway).await.event().await;
    let words = "Cannot POST /hooks/<redacted>";
    assert_eq!((letter.user("answer"), &event["failures"][0]["answer"]), (words, &json!(words)));
    assert!(!gateway.log().contains(SECRET));
}

#[tokio::test]
async fn eight_may_listen_for_as_long_as_they_like_and_one_more_ends_the_first() {
    let scene = Scene::new().await;
    let mut ears = Vec::new();
    for _ in 0..8 {
        let mut ear = Ear::open(&scene.gateway).await;
        let first = ear.event().await;
        assert_eq!(first["failures"].as_array().unwrap().len() as u64, scene.failed());
        ears.push(ear);
    }
    // Longer than any other connection may last.
    for _ in 0..17 {
        let next = ears[0].event().await;
        assert_eq!(
            (next["failures"].as_array().unwrap().len(), &next["ready"]),
            (0, &json!(true)),
            "each is told once"
        );
    }
    let mut ninth = Ear::open(&scene.gateway).await;
    ninth.event().await;
    ears[0].end().await;
    // The others did not read, and nobody waited for them.
    assert_eq!(scene.gateway.get("/livez").await.0, 200);
    for ear in &mut ears[1..] {
        for _ in 0..3 {
            ear.event().await;
        }
    }
    // Those that have gone are no listeners any more.
    ears.truncate(1);
    let mut tenth = Ear::open(&scene.gateway).await;
    tenth.event().await;
    for _ in 0..2 {
        ninth.event().await;
    }
}

#[tokio::test]
async fn a_browser_gets_the_page_and_a_program_the_list() {
    let scene = Scene::new().await;
    let answer = async |request: &str| {
        let mut stream = TcpStream::connect(scene.gateway.admin()).await.unwrap();
        stream.write_all(format!("{request}\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let html = "accept: text/html,application/xhtml+xml,*/*;q=0.8";
    for (request, kind, text) in [
        (format!("GET / HTTP/1.1\r\n{html}"), "text/html", "<!doctype html>"),
        ("GET / HTTP/1.1\r\naccept: */*".to_owned(), "text/plain", "/events\n"),
        ("GET /page.js HTTP/1.1".to_owned(), "text/javascript", "use strict"),
        ("GET /page.css HTTP/1.1".to_owned(), "text/css", "prefers-color-scheme"),
    ] {
        let answer = answer(&request).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(text), "{answer}");
        assert!(answer.contains(&format!("content-type: {kind}")), "{answer}");
        for header in ["content-security-policy: default-src 'none'; script-src 'self'", "nosniff"]
        {
            assert!(answer.contains(header), "{header} is not in {answer}");
        }
    }
    let answer = answer("HEAD /events HTTP/1.1").await;
    assert!(answer.contains("text/event-stream") && answer.ends_with("\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn top_prints_what_was_sent() {
    let scene = Scene::new().await;
    let url = format!("http://{}", scene.gateway.admin());
    let (code, out, error) = run(&["top", "--once", "--url", &url], "").await;
    assert_eq!((code, error.as_str()), (0, ""), "{out}");
    let words: Vec<_> =
        out.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
    let row = |name: &str| words.iter().find(|line| line.first() == Some(&name)).unwrap().clone();
    assert_eq!(row("ready"), ["ready"]);
    assert_eq!(
        row("messages")[4..],
        [&scene.received().to_string(), "received,", &scene.failed().to_string(), "failed"]
    );
    assert_eq!(row("under")[2..], ["0", "of", "20"]);
    assert_eq!(row("telemetry")[2..4], [&(scene.delivered + 2).to_string(), "0"]);
    assert_eq!(row("telemetry")[6..].join(" "), "2 (bad_payload 1, rejected 1)");
    assert_eq!(row("update_config")[2..4], [&scene.rejected.to_string(), "0"]);
    for text in [
        &scene.broker.url(),
        &scene.upstream.url(),
        "to do: The API does not take what the message says",
    ] {
        assert!(out.contains(text), "{text} is not in {out}");
    }
    assert!(!out.contains(KEY) && !out.contains('\u{1b}'), "{out}");
    // To a pipe it prints once as well.
    assert_eq!(run(&["top", "--url", &url], "").await.0, 0);

    let (_socket, nobody) = nobody();
    let (code, _, error) = run(&["top", "--once", "--url", &format!("http://{nobody}")], "").await;
    assert!(code == 1 && error.contains("does the gateway run"), "{error}");
    let (code, _, error) = run(&["top", "--once", "--url", &scene.upstream.url()], "").await;
    assert!(code == 1 && error.contains("it is no gateway"), "{error}");
}

#[tokio::test]
async fn top_draws_on_a_terminal_and_leaves_it_as_it_was() {
    let mut scene = Scene::new().await;
    let top = format!(
        "{} top --url http://{}",
        program().as_std().get_program().display(),
        scene.gateway.admin()
    );
    // `script` gives it a terminal.
    let mut script = Command::new("script");
    script.args(["-qec", &format!("stty rows 50 columns 80; exec {top}"), "/dev/null"]);
    let mut script =
        script.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
    let (mut keys, mut screen) = (script.stdin.take().unwrap(), script.stdout.take().unwrap());
    let mut seen = String::new();
    let mut shows = async |text: &str| {
        while !seen.contains(text) {
            let mut bytes = [0; 4096];
            let read = timeout(PATIENCE, screen.read(&mut bytes)).await.expect(text).unwrap();
            assert!(read > 0, "{text} is not in {seen:?}");
            seen.push_str(&String::from_utf8_lossy(&bytes[..read]));
            // It draws once a second, whatever it draws.
            assert!(seen.matches("\u{1b}[H").count() < 30, "{text} is not in {seen:?}");
        }
        std::mem::take(&mut seen)
    };
    assert!(shows("update_config").await.contains("\u{1b}[?1049h"), "another screen");
    scene.send("telemetry", "{}", "d1").await;
    let again = shows(&format!("{} received", scene.received() + 1)).await;
    assert!(again.contains("\u{1b}[H"), "it draws in place");
    scene.gateway.kill().await;
    shows("is asked again every second").await;
    // Ctrl-C.
    keys.write_all(b"\x03").await.unwrap();
    shows("\u{1b}[?7h\u{1b}[?25h\u{1b}[?1049l").await;
    assert!(timeout(PATIENCE, script.wait()).await.unwrap().unwrap().success());
}

/// A fleet at work, some of it failing.
#[tokio::test]
#[ignore = "draws the picture in the documentation; FILE=/tmp/page.png: there, and in the dark and on a phone as well"]
async fn picture() {
    let (broker, upstream) = (Broker::start().await, Upstream::start().await);
    let answer = |status, milliseconds, said| {
        let delay = Duration::from_millis(milliseconds);
        ResponseTemplate::new(status).set_body_json(said).set_delay(delay)
    };
    let mut devices = Vec::new();
    for id in ["lamp-3", "meter-12", "hub-7", "sensor-21"] {
        devices.push(broker.device(id).await);
        let telemetry = format!("/v1/devices/{id}/telemetry");
        upstream.responds("POST", &telemetry, answer(200, 24, json!({}))).await;
        let command = format!("/v1/devices/{id}/command");
        upstream.responds("POST", &command, answer(200, 41, json!({}))).await;
    }
    let said = json!({"error": "brightness must be a number from 0 to 100"});
    upstream.responds("POST", "/v1/devices/lamp-3/config", answer(422, 18, said)).await;
    let said = json!({"error": "unknown device"});
    upstream.responds("PUT", "/v1/devices/hub-7/cloud_settings", answer(404, 15, said)).await;
    let gateway = Gateway::start(&broker, &upstream).await;
    let mut browser = look(&gateway).await;
    for round in 0..400 {
        for device in &mut devices {
            device.send("telemetry", json!({"uptime": round})).await;
        }
        devices[2].send("commands/update", json!({"id": "1", "status": "in_progress"})).await;
        match round {
            150 | 310 => devices[0].send("config/update", json!({"brightness": "high"})).await,
            210 => {
                let half = devices[1].message("telemetry", "{\"power\": ");
                devices[1].publish(half).await;
            }
            260 => devices[2].send("cloud_settings/update", json!({"region": "north"})).await,
            _ => {}
        }
        tokio::time::sleep(Duration::from_millis(60 + 40 * u64::from(round % 90 > 60))).await;
    }
    let file = std::env::var("FILE").unwrap_or_else(|_| "docs/page.png".to_owned());
    let mut views = vec![(file.clone(), 1200, 1120, "light")];
    if file != "docs/page.png" {
        views.push((file.replace(".png", "-dark.png"), 1200, 1120, "dark"));
        views.push((file.replace(".png", "-phone.png"), 360, 1800, "dark"));
    }
    for (file, width, height, scheme) in views {
        browser.screen(width, height, scheme).await;
        let picture = browser.call("Page.captureScreenshot", json!({"format": "png"})).await;
        let picture = BASE64_STANDARD.decode(picture["data"].as_str().unwrap()).unwrap();
        std::fs::write(file, picture).unwrap();
    }
}
