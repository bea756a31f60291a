//! The pool: the directories that units lie on.
//!
//! [`places`] finds a journal's files on all of them.

pub mod places;

pub use places::{FileName, Found, Places};
