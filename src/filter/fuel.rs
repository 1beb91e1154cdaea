//! Limits the work of one run of a filter.
//!
//! The library cannot be interrupted while it runs a filter. So every operation on a value burns fuel, and when none is
//! left the stack is unwound to where the run began. How much is burnt depends on the filter and its input alone: the
//! same message always ends in the same way, on any machine and at any load.

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
};

/// What one run may burn. A unit is one step of the interpreter, or `BYTES` bytes copied or kept.
pub(super) const FUEL: u64 = 200_000;
/// Bytes to a unit.
const BYTES: u64 = 64;
/// How far a run may go down the stack, in bytes.
const MAX_STACK: usize = 512 * 1024;

thread_local! {
    static LEFT: Cell<u64> = const { Cell::new(0) };
    /// Where the stack stood when the run began.
    static STACK: Cell<usize> = const { Cell::new(0) };
}

/// Why a run was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Spent {
    /// No fuel is left.
    #[error("it takes too many steps or too much memory on this input")]
    Fuel,
    /// Too deep a recursion.
    #[error("it goes too deep on this input")]
    Stack,
    /// A panic of the library.
    #[error("it hit a defect of the jq library")]
    Defect,
}

/// Runs something that burns at most `fuel`; gives back how much is left.
///
/// # Errors
/// [`Spent`].
pub(super) fn metered<T>(fuel: u64, run: impl FnOnce() -> T) -> Result<(T, u64), Spent> {
    LEFT.set(fuel);
    STACK.set(here());
    // Values that a run leaves half-done are dropped with it: they belong to that run, and a value with another owner
    // is never changed in place.
    match catch_unwind(AssertUnwindSafe(run)) {
        Ok(value) => Ok((value, LEFT.get())),
        Err(payload) => Err(payload.downcast_ref().copied().unwrap_or(Spent::Defect)),
    }
}

/// Burns this many units, or ends the run.
pub(super) fn burn(units: u64) {
    match LEFT.get().checked_sub(units) {
        Some(left) => LEFT.set(left),
        None => stop(Spent::Fuel),
    }
    if here().abs_diff(STACK.get()) > MAX_STACK {
        stop(Spent::Stack);
    }
}

/// Burns the price of a step that reads, copies or keeps this many bytes.
pub(super) fn burn_bytes(bytes: usize) {
    burn(1 + bytes as u64 / BYTES);
}

/// Burns the price of a step over this many items, `each` units for one.
pub(super) fn burn_items(items: usize, each: u64) {
    burn((items as u64).saturating_mul(each).saturating_add(1));
}

/// Ends the run.
pub(super) fn stop(why: Spent) -> ! {
    // No panic: no hook hears of it.
    resume_unwind(Box::new(why))
}

/// About where the stack stands.
fn here() -> usize {
    let probe = 0_u8;
    std::ptr::from_ref(std::hint::black_box(&probe)).addr()
}
