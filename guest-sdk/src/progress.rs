//! How far the step has come. Needs no grant.

/// Says how far the step is, in percent (over 100 counts as 100), with an optional word for people.
///
/// The host throttles what it records: calling this in a loop is fine.
pub fn report(percent: u8, message: Option<&str>) {
    crate::backend::report(percent.min(100), message);
}
