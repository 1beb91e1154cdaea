//! File descriptors. The gateway needs one for each HTTP exchange under way, and most systems give a process only 1,024
//! (the soft limit) unless it raises that number to the hard limit.

/// How many more are needed than exchanges: for the broker, the admin endpoint's connections, the log and name
/// resolution.
const OTHER_DESCRIPTORS: u64 = 128;

/// Raises the soft limit to the hard limit. Returns the limit that then holds, or `None` where the system has none.
pub(crate) fn raise() -> Option<u64> {
    rlimit::increase_nofile_limit(u64::MAX).or_else(|_| limit()).ok()
}

fn limit() -> std::io::Result<u64> {
    rlimit::Resource::NOFILE.get_soft()
}

/// The warning for the operator, if there are too few for `max_in_flight` exchanges at once.
pub(crate) fn warning(max_in_flight: usize) -> Option<String> {
    let (limit, wanted) = (raise()?, max_in_flight as u64 + OTHER_DESCRIPTORS);
    (limit < wanted).then(|| {
        format!(
            "[upstream] max_in_flight: {max_in_flight} exchanges at once need {wanted} file \
             descriptors, and this process may have {limit}; raise its limit (LimitNOFILE=, \
             ulimit -n) or write less"
        )
    })
}
