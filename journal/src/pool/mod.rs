//! The pool: the directories that units lie on.
//!
//! [`description`] is what pool and members say of themselves, [`trust`] which of them to believe,
//! [`places`] finds a journal's files on all that are trusted.

pub mod description;
pub mod places;
pub mod trust;

pub use description::{Description, MemberEntry, MemberFile, MemberState};
pub use places::{FileName, Found, Places};
pub use trust::{Missing, Standing};
