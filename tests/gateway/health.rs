//! `health`: the image has neither a shell nor `curl`, so its health check is the program itself.

use std::net::TcpListener;

use crate::harness::{Options, Upstream, eventually, nobody, program};

/// Exit code and all that is printed of `health` for a gateway that listens here.
async fn health(arguments: &[&str], listen: &str) -> (i32, String) {
    let mut program = program();
    program.arg("health").args(arguments).env("GATEWAY_ADMIN_LISTEN", listen);
    let output = program.output().await.unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    (output.status.code().unwrap(), text)
}

#[tokio::test]
async fn health_asks_the_gateway_that_listens() {
    let upstream = Upstream::start().await;
    let (_socket, nobody) = nobody();
    let options = Options::default().set("UPSTREAM_URL", &upstream.url());
    let gateway = options.set("BROKER_URL", &format!("mqtt://{nobody}")).spawn().await;
    let listen = gateway.admin();
    assert_eq!(health(&[], listen).await, (0, "alive\n".to_owned()));
    // It lives, and does not forward.
    eventually("not ready", || async {
        let (code, text) = health(&["--ready"], listen).await;
        let is_unready = text.contains("503") && text.contains("broker: not connected");
        (code == 1 && is_unready).then_some(())
    })
    .await;
    // What is named is asked, and no configuration is read.
    let url = |page: &str| format!("http://{listen}/{page}");
    assert_eq!(health(&["--url", &url("routes")], "no address").await.0, 0);
    assert_eq!(health(&["--url", &url("nothing")], "no address").await.0, 1);
    assert_eq!(health(&[], "no address").await.0, 78);
}

#[tokio::test]
async fn who_is_not_there_or_silent_is_not_healthy() {
    let (_socket, nobody) = nobody();
    let (code, text) = health(&[], &nobody).await;
    assert!(code == 1 && text.contains("refused") && text.contains("[admin] listen"), "{text}");
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let (code, text) = health(&["--timeout", "50ms"], &address).await;
    assert!(code == 1 && text.contains("no answer within 50ms"), "{text}");
    let (code, text) = health(&["--url", "https://localhost/"], "").await;
    assert!(code == 1 && text.contains("write `http://host:port/path`"), "{text}");
}
