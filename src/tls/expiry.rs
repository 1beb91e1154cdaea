//! When certificates end: that of the gateway itself, and of the authorities that it trusts.

use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;
use x509_parser::parse_x509_certificate;

/// How long before its end a certificate is worth a warning.
const SOON: Duration = Duration::from_hours(7 * 24);

/// When the certificates of a file end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Expiry {
    /// The key that names the file.
    pub(super) key: &'static str,
    /// When.
    pub(super) not_after: SystemTime,
}

impl Expiry {
    /// A chain ends with the first certificate of it that does.
    pub(super) fn of_chain(key: &'static str, chain: &[CertificateDer<'_>]) -> Option<Self> {
        let not_after = chain.iter().filter_map(not_after).min()?;
        Some(Self { key, not_after })
    }

    /// A list of authorities ends with its last one: those that have ended before are no harm.
    pub(super) fn of_authorities(key: &'static str, list: &[CertificateDer<'_>]) -> Option<Self> {
        let not_after = list.iter().filter_map(not_after).max()?;
        Some(Self { key, not_after })
    }

    /// A sentence, if it is near or past.
    pub(super) fn warning(self, section: &str, now: SystemTime) -> Option<String> {
        let Self { key, not_after } = self;
        let at = humantime::format_rfc3339_seconds(not_after);
        let renew = "renew it; the file is read again when it changes";
        match not_after.duration_since(now) {
            Ok(left) if left > SOON => None,
            Ok(left) => {
                let hours = left.as_secs() / 3600;
                let (days, hours) = (hours / 24, hours % 24);
                Some(format!(
                    "[{section}] {key}: this certificate ends in {days} days and {hours} hours, at {at}; {renew}"
                ))
            }
            Err(_) => {
                Some(format!("[{section}] {key}: this certificate has ended, at {at}; {renew}"))
            }
        }
    }
}

/// None if it cannot be read, which whoever uses it finds out.
fn not_after(certificate: &CertificateDer<'_>) -> Option<SystemTime> {
    let (_, certificate) = parse_x509_certificate(certificate).ok()?;
    let seconds = certificate.validity().not_after.timestamp();
    Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_certificate_is_told_a_week_before() {
        let days = |days: u64| SystemTime::UNIX_EPOCH + Duration::from_hours(24 * days);
        let end = Expiry { key: "cert_file", not_after: days(100) };
        assert_eq!(end.warning("broker", days(92)), None);
        let soon = end.warning("broker", days(93) + Duration::from_hours(1)).unwrap();
        assert!(soon.starts_with("[broker] cert_file: this certificate ends in 6 days"), "{soon}");
        assert!(soon.contains("at 1970-04-11T00:00:00Z"), "{soon}");
        assert!(end.warning("broker", days(101)).unwrap().contains("has ended"));
    }
}
