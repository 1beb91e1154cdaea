//! When a server wants to be asked again.

use std::time::{Duration, SystemTime};

use http::HeaderValue;

/// Longest `Retry-After` that is passed on: a server may send a number that no clock can count to.
const MAX_RETRY_AFTER: Duration = Duration::from_hours(24 * 366);

/// `Retry-After` in seconds or as a date [RFC 9110, 10.2.3]; a date is read by the clock of who wrote it.
pub(super) fn retry_after(value: &HeaderValue, date: Option<&HeaderValue>) -> Option<Duration> {
    let text = value.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds).min(MAX_RETRY_AFTER));
    }
    let parse = |text: &str| httpdate::parse_http_date(text.trim()).ok();
    let then = parse(text)?;
    let now = date.and_then(|date| parse(date.to_str().ok()?)).unwrap_or_else(SystemTime::now);
    Some(then.duration_since(now).unwrap_or_default().min(MAX_RETRY_AFTER))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_comes_in_two_forms() {
        let parse = |text: &str| retry_after(&HeaderValue::try_from(text).unwrap(), None);
        assert_eq!(parse("120"), Some(Duration::from_mins(2)));
        let date = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(90));
        let left = parse(&date).unwrap();
        assert!(left > Duration::from_secs(80) && left <= Duration::from_secs(90), "{left:?}");
        assert_eq!(parse("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::ZERO));
        assert_eq!(parse("18446744073709551615"), Some(MAX_RETRY_AFTER));
        assert_eq!(parse("soon"), None);
        // Its clock is an hour behind ours.
        let at = |text: &str| HeaderValue::try_from(text).unwrap();
        let (date, then) = ("Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 21 Oct 2015 07:29:00 GMT");
        assert_eq!(retry_after(&at(then), Some(&at(date))), Some(Duration::from_mins(1)));
    }
}
