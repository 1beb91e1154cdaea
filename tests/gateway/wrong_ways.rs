//! Mistakes on the way to the broker and to the API: each is one sentence with the address that it is about and the key to
//! set.

use std::fs;

use rcgen::{CertificateParams, date_time_ymd};

use crate::{
    certificates::{Certificates, Https},
    harness::{Broker, Upstream, free_port, nobody, program},
};

/// The exit code and what is said by `check --connect` with these keys.
async fn check(keys: &[(&str, &str)]) -> (i32, String) {
    let mut check = program();
    check.args(["check", "--connect"]).envs(keys.iter().map(|(k, v)| (format!("GATEWAY_{k}"), v)));
    let output = check.output().await.unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

/// One line about this address has each of these texts.
fn says(text: &str, address: &str, parts: &[&str]) {
    let line = text.lines().find(|line| line.contains(address));
    let line = line.unwrap_or_else(|| panic!("nothing of {address}: {text}"));
    for part in parts {
        assert!(line.contains(part), "{part:?} is missing: {text}");
    }
    // What only a programmer can read.
    for no in ["docs.rs", "client error", "Os {", "Error("] {
        assert!(!text.contains(no), "{no:?}: {text}");
    }
}

/// Files with a certificate of the server that is changed like this.
fn certificates(change: impl FnOnce(&mut CertificateParams)) -> Certificates {
    let certificates = Certificates::new();
    let (certificate, key) = certificates.sign("server", change);
    certificates.change(&[("server.pem".to_owned(), certificate), ("server.key".to_owned(), key)]);
    certificates
}

fn expired() -> Certificates {
    certificates(|params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
    })
}

fn elsewhere() -> Certificates {
    certificates(|params| {
        params.subject_alt_names =
            vec![rcgen::SanType::DnsName("elsewhere.test".try_into().unwrap())];
    })
}

#[tokio::test]
async fn a_wrong_way_to_the_broker_is_one_sentence() {
    let (good, expired, elsewhere) = (Certificates::new(), expired(), elsewhere());
    let stranger = Certificates::new();
    let [tls, asks, web, old, other] = [(); 5].map(|()| free_port());
    let listeners = [
        good.listener("127.0.0.1", tls, ""),
        good.listener("127.0.0.1", asks, "require_certificate true"),
        good.listener("127.0.0.1", web, "require_certificate true\nprotocol websockets"),
        expired.listener("127.0.0.1", old, ""),
        elsewhere.listener("127.0.0.1", other, ""),
    ];
    let broker = Broker::configured(&listeners.join("\n")).await;
    let (upstream, (_socket, nobody)) = (Upstream::start().await, nobody());
    let ca = good.path("ca.pem");
    let check = async |url: &str, keys: &[(&str, &str)], parts: &[&str]| {
        let upstream = upstream.url();
        let given = [("BROKER_URL", url), ("UPSTREAM_URL", &*upstream)];
        let (code, text) = check(&[&given, keys].concat()).await;
        says(&text, &format!("broker: {}: ", url.trim_end_matches("/mqtt")), parts);
        assert_eq!(code, 1, "{text}");
    };
    let trusts = ("BROKER_CA_FILE", &*ca);
    let url = |scheme: &str, port: u16| format!("{scheme}://localhost:{port}");
    check(&format!("mqtt://{nobody}"), &[], &["refused", "nothing listens", "`[broker] url`"])
        .await;
    check("mqtt://nowhere.invalid:1883", &[], &["lookup", "is `[broker] url` right?"]).await;
    let wrong = stranger.path("ca.pem");
    let untrusted = ["invalid peer certificate", "set `[broker] ca_file` to its certificate"];
    check(&url("mqtts", tls), &[("BROKER_CA_FILE", &wrong)], &untrusted).await;
    let ca_of_old = expired.path("ca.pem");
    let over = ["certificate expired", "renew it on the server"];
    check(&url("mqtts", old), &[("BROKER_CA_FILE", &ca_of_old)], &over).await;
    let ca_of_other = elsewhere.path("ca.pem");
    let named = ["elsewhere.test", "write `[broker] url` with one of the names"];
    check(&url("mqtts", other), &[("BROKER_CA_FILE", &ca_of_other)], &named).await;
    let asked = ["received fatal alert", "set `[broker] cert_file` and `key_file`"];
    check(&url("mqtts", asks), &[trusts], &asked).await;
    check(&format!("{}/mqtt", url("wss", web)), &[trusts], &asked).await;
    let (certificate, key) = (stranger.path("client.pem"), stranger.path("client.key"));
    let own = [trusts, ("BROKER_CERT_FILE", &*certificate), ("BROKER_KEY_FILE", &*key)];
    let unknown = ["received fatal alert", "our certificate", "`[broker] cert_file`"];
    check(&url("mqtts", asks), &own, &unknown).await;
    let without_tls = ["is `[broker] url` its port without TLS?"];
    check(&url("mqtts", broker.port), &[trusts], &without_tls).await;
    let with_tls = ["before it answered", "is `[broker] url` its port for TLS (`mqtts://`)"];
    check(&url("mqtt", tls), &[], &with_tls).await;
    let no_web_sockets = ["web socket: ", "is `[broker] url` its port for web sockets"];
    check(&format!("{}/mqtt", url("ws", broker.port)), &[], &no_web_sockets).await;
    check(&format!("{}/mqtt", url("ws", web)), &[], &no_web_sockets).await;
}

#[tokio::test]
async fn a_wrong_way_to_the_upstream_is_one_sentence() {
    let (good, expired, elsewhere) = (Certificates::new(), expired(), elsewhere());
    let stranger = Certificates::new();
    let (broker, plain) = (Broker::start().await, Upstream::start().await);
    let start = async |certificates, asks| Https::start(certificates, "127.0.0.1", asks).await;
    let (fine, asks) = (start(&good, false).await, start(&good, true).await);
    let (old, other) = (start(&expired, false).await, start(&elsewhere, false).await);
    let (_socket, nobody) = nobody();
    let check = async |url: &str, address: &str, keys: &[(&str, &str)], parts: &[&str]| {
        let broker = broker.url();
        let given = [("BROKER_URL", &*broker), ("UPSTREAM_URL", url)];
        let (code, text) = check(&[&given, keys].concat()).await;
        says(&text, &format!("upstream: {address}"), parts);
        assert_eq!(code, 1, "{text}");
    };
    let reaches = async |url: &str, keys: &[(&str, &str)], parts: &[&str]| {
        check(url, &format!("{url}: "), keys, parts).await;
    };
    let ca = |certificates: &Certificates| certificates.path("ca.pem");
    let (wrong, right, ca_of_old, ca_of_other) =
        (ca(&stranger), ca(&good), ca(&expired), ca(&elsewhere));
    let url = format!("http://{nobody}");
    reaches(&url, &[], &["refused", "nothing listens there", "`[upstream] url`"]).await;
    reaches("http://nowhere.invalid", &[], &["lookup", "is `[upstream] url` right?"]).await;
    let untrusted = ["invalid peer certificate", "set `[upstream] ca_file` to its certificate"];
    reaches(&fine.url("localhost"), &[("UPSTREAM_CA_FILE", &wrong)], &untrusted).await;
    let over = ["certificate expired", "renew it on the server"];
    reaches(&old.url("localhost"), &[("UPSTREAM_CA_FILE", &ca_of_old)], &over).await;
    let named = ["elsewhere.test", "write `[upstream] url` with one of the names"];
    reaches(&other.url("localhost"), &[("UPSTREAM_CA_FILE", &ca_of_other)], &named).await;
    let asked = ["received fatal alert", "set `[upstream] cert_file` and `key_file`"];
    check(&asks.url("localhost"), &asks.url("localhost"), &[("UPSTREAM_CA_FILE", &right)], &asked)
        .await;
    let (certificate, key) = (stranger.path("client.pem"), stranger.path("client.key"));
    let own = [
        ("UPSTREAM_CA_FILE", &*right),
        ("UPSTREAM_CERT_FILE", &*certificate),
        ("UPSTREAM_KEY_FILE", &*key),
    ];
    let not_ours = ["received fatal alert", "our certificate", "`[upstream] cert_file`"];
    check(&asks.url("localhost"), &asks.url("localhost"), &own, &not_ours).await;
    let no_tls = ["does not speak TLS: is `[upstream] url` its port without TLS?"];
    reaches(&plain.url().replace("http:", "https:"), &[("UPSTREAM_CA_FILE", &right)], &no_tls)
        .await;
    let hidden = fine.url("localhost").replace("https:", "http:");
    check(&hidden, &hidden, &[], &["this is no HTTP: is `[upstream] url` right"]).await;
    let proxy = format!("http://user:secret@{nobody}");
    let down = ["refused", "nothing listens there: is `[upstream] proxy` right"];
    let address = format!("proxy http://{nobody}/: ");
    check("http://api.invalid", &address, &[("UPSTREAM_PROXY", &proxy)], &down).await;
    let through = [("UPSTREAM_PROXY", &*proxy), ("UPSTREAM_CA_FILE", &*right)];
    check("https://api.invalid", &address, &through, &down).await;
}

/// Before any socket opens, with the line's key and what to do.
#[tokio::test]
async fn a_key_that_cannot_be_used_is_a_mistake_of_its_own_key() {
    let (good, stranger) = (Certificates::new(), Certificates::new());
    let encrypted = good.file("encrypted.key");
    fs::write(
        &encrypted,
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
    )
    .unwrap();
    let (ca, certificate) = (good.path("ca.pem"), good.path("client.pem"));
    for (side, url) in [("BROKER", "mqtts://localhost:1"), ("UPSTREAM", "https://localhost:1")] {
        for (key, says) in [
            (
                stranger.path("client.key"),
                "this key does not belong to the certificate in `cert_file`",
            ),
            (encrypted.display().to_string(), "the key is encrypted"),
            (certificate.clone(), "no private key in this file"),
        ] {
            let names =
                ["URL", "CA_FILE", "CERT_FILE", "KEY_FILE"].map(|key| format!("{side}_{key}"));
            let values = [url, &ca, &certificate, &key];
            let keys: Vec<_> = names.iter().map(String::as_str).zip(values).collect();
            let (code, text) = check(&keys).await;
            let place = format!("[{}] key_file: ", side.to_lowercase());
            let line = text.lines().find(|line| line.contains(says));
            assert!(line.is_some_and(|line| line.contains(&place)), "{text}");
            assert_eq!(code, 78, "{text}");
        }
    }
}
