//! The pool: the directories that units lie on.
//!
//! [`description`] is what pool and members say of themselves, [`trust`] which of them to believe,
//! [`places`] finds a journal's files on all that are trusted, by the unit [`table`] where there are several:
//! that is all that readers need. The
//! writer has a [`Pool`] ([`live`]): it gives out room ([`placement`] chooses), takes it back,
//! changes the members, and moves units off those that are drained; a [`PoolThread`] looks after it.

pub mod allocate;
pub mod change;
mod copying;
pub mod description;
mod drain;
mod grant;
pub mod live;
pub mod name;
pub mod placement;
pub mod places;
#[cfg(test)]
mod places_tests;
mod purge;
pub(crate) mod settle;
mod status;
pub(crate) mod strays;
mod survey;
pub mod table;
pub(crate) mod tails;
mod thread;
pub mod trust;

pub use allocate::{Allocate, HomeAllocator, Slot};
pub use change::{Added, Limit};
pub use description::{Description, MEMBER_FILE, MemberEntry, MemberFile, MemberState, POOL_FILE};
pub use drain::{DrainStep, InUse, UnitUse};
pub use live::Pool;
pub use name::{FileName, Found};
pub use places::{Listing, Places, Stray};
pub use status::{MemberStatus, PoolStatus, StrayFile, stray_files};
pub use strays::STRAY_DIR;
pub use survey::{HELD_DIR, SPARE_DIR, Usage};
pub use thread::{PoolThread, Writers};
pub use trust::{Missing, Standing};
