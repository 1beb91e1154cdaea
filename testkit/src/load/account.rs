//! What became of every message: lost, out of order, twice.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use super::Arrival;

/// What became of the messages.
#[derive(Default)]
pub struct Account {
    pub sent: u64,
    pub arrived: u64,
    /// Sent and never arrived.
    pub lost: Vec<(String, u64)>,
    /// First arrived after a later one of its device; or came, on the same gateway, after a later.
    pub disordered: Vec<(String, u64)>,
    /// Taken by the API again from another gateway: was in flight when the first ended.
    pub again: u64,
    /// Taken again from the same gateway, though the device sent it once.
    pub twice: Vec<(String, u64)>,
    /// Longest time without an arrival.
    pub stall: Duration,
}

impl Account {
    pub(super) fn of(
        sent: &BTreeMap<String, u64>,
        repeated: &BTreeSet<(String, u64)>,
        arrivals: &[Arrival],
    ) -> Self {
        let mut account = Self { sent: sent.values().sum(), ..Self::default() };
        // By device and message, which gateways brought it to a success.
        let mut taken: BTreeMap<(&str, u64), BTreeSet<u32>> = BTreeMap::new();
        let mut highest: BTreeMap<&str, u64> = BTreeMap::new();
        let mut last: BTreeMap<(&str, u32), u64> = BTreeMap::new();
        for arrival in arrivals {
            let (device, n, incarnation) = (&*arrival.device, arrival.n, arrival.incarnation);
            let name = || (device.to_owned(), n);
            let top = highest.entry(device).or_insert(n);
            let previous = last.insert((device, incarnation), n);
            let first = !taken.contains_key(&(device, n));
            if previous.is_some_and(|previous| previous > n) || first && *top > n {
                account.disordered.push(name());
            }
            *top = n.max(*top);
            if !arrival.taken {
                continue;
            }
            let gateways = taken.entry((device, n)).or_default();
            if !gateways.insert(incarnation) {
                if !repeated.contains(&name()) {
                    account.twice.push(name());
                }
            } else if gateways.len() > 1 {
                account.again += 1;
            }
        }
        let all = sent.iter().flat_map(|(device, count)| (0..*count).map(move |n| (&**device, n)));
        let missing = all.filter(|message| !taken.contains_key(message));
        account.lost = missing.map(|(device, n)| (device.to_owned(), n)).collect();
        account.arrived = account.sent - account.lost.len() as u64;
        let gaps = arrivals.windows(2).map(|pair| pair[1].at - pair[0].at);
        account.stall = gaps.max().unwrap_or_default();
        account
    }

    /// What is promised in any case.
    pub fn nothing_lost_and_all_in_order(&self) {
        assert!(self.lost.is_empty() && self.disordered.is_empty(), "{self:?}");
    }

    /// What is promised to a gateway that lives on: nothing twice.
    pub fn exactly_once(&self) {
        self.nothing_lost_and_all_in_order();
        assert!(self.twice.is_empty() && self.again == 0, "{self:?}");
    }
}

impl fmt::Debug for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sent, arrived, lost, disordered, again, twice, stall } = self;
        let some = |list: &[(String, u64)]| format!("{:?}", &list[..list.len().min(8)]);
        writeln!(f, "sent {sent}, arrived {arrived}, longest stall {stall:?}")?;
        writeln!(f, "lost          {:5} {}", lost.len(), some(lost))?;
        writeln!(f, "out of order  {:5} {}", disordered.len(), some(disordered))?;
        writeln!(f, "twice         {:5} {}", twice.len(), some(twice))?;
        write!(f, "from the next {again:5}")
    }
}
