//! Bugs that are put into the code on purpose, to see that a test catches each of them (`make planted`).
//!
//! What always holds: without the feature `on`, which no program has, no bug is there and [`is`] is a
//! constant. With it, the environment variable `AFTERIMAGE_PLANTED` names the one bug that is active in
//! this process and in those that it starts.

/// True if the bug `name` is active.
#[cfg(feature = "on")]
#[must_use]
pub fn is(name: &str) -> bool {
    use std::sync::OnceLock;
    static ACTIVE: OnceLock<Option<String>> = OnceLock::new();
    let active = ACTIVE.get_or_init(|| std::env::var("AFTERIMAGE_PLANTED").ok());
    active.as_deref() == Some(name)
}

/// False: no bug is compiled in.
#[cfg(not(feature = "on"))]
#[must_use]
pub const fn is(_name: &str) -> bool {
    false
}
