//! Which program this is: its version, the commit that it was built of, and the machine that it was built for.

/// The version of the package, with commit and target as `build.rs` says them.
pub(crate) const LONG: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (commit ",
    env!("BUILD_COMMIT"),
    ", ",
    env!("BUILD_TARGET"),
    ")"
);
