//! File descriptors: a gateway holds one for each HTTP exchange under way, and systems give a process
//! 1,024 of them unless it asks for those it may have.

/// What is needed beside the exchanges: the broker, the admin endpoint's connections, the logs, and names
/// being looked up.
pub(crate) const BESIDE: u64 = 128;

/// Raises the soft limit to the hard one; how many there are then. `None` where the system does not say.
pub(crate) fn raise() -> Option<u64> {
    rlimit::increase_nofile_limit(u64::MAX).or_else(|_| limit()).ok()
}

fn limit() -> std::io::Result<u64> {
    rlimit::Resource::NOFILE.get_soft()
}

/// What to say where they are too few for so many exchanges at once.
pub(crate) fn warning(max_in_flight: usize) -> Option<String> {
    let (limit, wanted) = (raise()?, max_in_flight as u64 + BESIDE);
    (limit < wanted).then(|| {
        format!(
            "[upstream] max_in_flight: {max_in_flight} exchanges at once need {wanted} file \
             descriptors, and this process may have {limit}; raise its limit (LimitNOFILE=, \
             ulimit -n) or write less"
        )
    })
}
