//! A rate limit, as the configuration writes it: `10/s`, `600/m`, `10/h`.

use std::{num::NonZeroU32, str::FromStr, time::Duration};

/// A number of attempts per second, minute or hour. All of them may be made at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many attempts.
    pub count: NonZeroU32,
    /// The time in which they may be made.
    pub per: Duration,
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = || {
            let (count, unit) = text.split_once('/')?;
            let per = match unit.trim() {
                "s" => 1,
                "m" => 60,
                "h" => 3600,
                _ => return None,
            };
            let rate = Self { count: count.trim().parse().ok()?, per: Duration::from_secs(per) };
            // The limiter counts in whole nanoseconds, and there must be at least one between two turns.
            (!(rate.per / rate.count.get()).is_zero()).then_some(rate)
        };
        parse().ok_or_else(|| format!("invalid rate `{text}`; write `100/s`, `600/m` or `10/h`"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_written_per_second_minute_or_hour() {
        let rate: Rate = "10/h".parse().unwrap();
        assert_eq!((rate.count.get(), rate.per.as_secs()), (10, 3600));
        for bad in ["", "10", "0/s", "x/s", "10/day", "-1/s", "4000000000/s"] {
            assert!(bad.parse::<Rate>().unwrap_err().contains("100/s"), "{bad}");
        }
    }
}
