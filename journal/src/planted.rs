//! Bugs on purpose, to see that the tests catch them (`make planted`).
//!
//! What always holds: without the feature `planted`, which no program has, none is there, and the
//! questions are gone from the code. With it, `AFTERIMAGE_PLANTED` names the one that is.

/// Whether this bug is in.
#[cfg(feature = "planted")]
pub(crate) fn is(name: &str) -> bool {
    use std::sync::OnceLock;
    static PLANTED: OnceLock<Option<String>> = OnceLock::new();
    let planted = PLANTED.get_or_init(|| std::env::var("AFTERIMAGE_PLANTED").ok());
    planted.as_deref() == Some(name)
}

/// No bug is in.
#[cfg(not(feature = "planted"))]
pub(crate) const fn is(_name: &str) -> bool {
    false
}
