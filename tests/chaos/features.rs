//! What the daemon under test can do, as far as the suite depends on it.

/// A parked event holds its records: later events of theirs are parked behind it.
pub(crate) const HELD_RECORDS: bool = false;
/// Gap events are recorded as holes.
pub(crate) const GAP_HOLES: bool = true;
