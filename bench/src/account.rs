//! What became of a load: a comparison of what was sent with what arrived, and in which order.

use std::collections::HashMap;

/// What is wrong with it, in messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    pub lost: u64,
    /// Arrived more than once.
    pub repeated: u64,
    /// Arrived, for the first time, after a later one of the same device.
    pub out_of_order: u64,
}

impl Account {
    /// Of messages 0 to `messages` - 1 of devices that take turns; `arrivals` are the numbers in order of arrival.
    pub fn of(arrivals: &[u64], messages: u64, devices: u64) -> Self {
        let mut times: HashMap<u64, u64> = HashMap::new();
        let mut latest: HashMap<u64, u64> = HashMap::new();
        let mut out_of_order = 0;
        for &n in arrivals.iter().filter(|n| **n < messages) {
            let times = times.entry(n).or_default();
            *times += 1;
            if *times > 1 {
                continue;
            }
            let latest = latest.entry(n % devices).or_insert(n);
            out_of_order += u64::from(n < *latest);
            *latest = n.max(*latest);
        }
        let repeated = times.values().filter(|times| **times > 1).count() as u64;
        Self { lost: messages - times.len() as u64, repeated, out_of_order }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn account(arrivals: &[u64]) -> (u64, u64, u64) {
        let Account { lost, repeated, out_of_order } = Account::of(arrivals, 6, 2);
        (lost, repeated, out_of_order)
    }

    #[test]
    fn devices_may_overtake_each_other() {
        assert_eq!(account(&[1, 3, 0, 5, 2, 4]), (0, 0, 0));
    }

    #[test]
    fn what_never_arrives_is_lost() {
        assert_eq!(account(&[0, 1, 4, 5]), (2, 0, 0));
        assert_eq!(account(&[]), (6, 0, 0));
    }

    #[test]
    fn a_repetition_is_counted_once_for_each_message_and_is_not_out_of_order() {
        assert_eq!(account(&[0, 2, 0, 0, 1, 3, 2, 4, 5]), (0, 2, 0));
    }

    #[test]
    fn every_message_behind_a_later_one_of_its_device_is_out_of_order() {
        assert_eq!(account(&[4, 0, 2, 1, 5, 3]), (0, 0, 3));
    }

    #[test]
    fn what_was_not_sent_is_not_counted() {
        assert_eq!(account(&[0, 1, 2, 3, 4, 5, 6, 99]), (0, 0, 0));
    }
}
