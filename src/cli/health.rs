//! `health`: whether a gateway beside this process lives, for images that have no shell and no `curl`.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use clap::Args;
use url::Url;

use super::{error::CommandError, print};
use crate::{
    admin::ask,
    config::{Config, ConfigError},
    log::printable,
};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// What to ask instead of `[admin] listen`: `http://host:port/path`.
    #[arg(long, value_name = "URL")]
    url: Option<Url>,
    /// Ask `/readyz` (does it forward?) instead of `/livez` (does it live?). What restarts a gateway must not ask this:
    /// it is not ready while the API is away, and a restart mends nothing.
    #[arg(long, conflicts_with = "url")]
    ready: bool,
    /// How long to wait for the answer.
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

/// Asks, and prints the answer; every status but 2xx is an error. The configuration is read where no URL is given.
pub(super) async fn health(
    arguments: Arguments,
    config: impl FnOnce() -> Result<Config, ConfigError>,
) -> Result<(), CommandError> {
    let url = match arguments.url {
        Some(url) => url,
        None => url(config()?.admin, if arguments.ready { "readyz" } else { "livez" })?,
    };
    let answer = ask(&url, arguments.timeout).await;
    let (status, text) = answer.map_err(|error| format!("{url}: {error}"))?;
    let text = printable::lines(&text);
    if status.is_success() {
        print(&text)
    } else {
        Err(format!("{url}: {status}\n{}", text.trim_end()).into())
    }
}

/// Where a gateway that listens here is asked.
pub(super) fn url(listen: Option<SocketAddr>, page: &str) -> Result<Url, String> {
    let mut address = listen.ok_or("the admin endpoint is off: set [admin] listen")?;
    // All addresses of a machine are none to connect to.
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        });
    }
    let url = Url::parse(&format!("http://{address}/{page}"));
    Ok(url.expect("an address is a host and a port of a URL"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gateway_that_listens_everywhere_is_asked_at_home() {
        let url = |listen: &str, page| url(Some(listen.parse().unwrap()), page).unwrap();
        assert_eq!(url("0.0.0.0:9180", "livez").as_str(), "http://127.0.0.1:9180/livez");
        assert_eq!(url("[::]:9180", "readyz").as_str(), "http://[::1]:9180/readyz");
        assert_eq!(url("10.0.0.1:80", "livez").as_str(), "http://10.0.0.1/livez");
    }

    #[test]
    fn an_endpoint_that_is_off_cannot_be_asked() {
        assert!(url(None, "livez").is_err());
    }
}
