//! The pool: the directories that units lie on.
//!
//! [`description`] is what pool and members say of themselves, [`trust`] which of them to believe,
//! [`places`] finds a journal's files on all that are trusted: that is all that readers need. The
//! writer has a [`Pool`] ([`live`]): it gives out room ([`placement`] chooses), takes it back,
//! changes the members, and moves units off those that are drained; a [`PoolThread`] looks after it.

pub mod allocate;
pub mod change;
pub mod description;
mod drain;
mod grant;
pub mod live;
pub mod placement;
pub mod places;
mod status;
mod survey;
pub(crate) mod tails;
mod thread;
pub mod trust;

pub use allocate::{Allocate, HomeAllocator, Slot};
pub use change::{Added, Limit};
pub use description::{Description, MEMBER_FILE, MemberEntry, MemberFile, MemberState, POOL_FILE};
pub use drain::{DrainStep, InUse};
pub use live::Pool;
pub use places::{FileName, Found, Places};
pub use status::{MemberStatus, PoolStatus};
pub use survey::{HELD_DIR, SPARE_DIR, Usage};
pub use thread::{PoolThread, Writers};
pub use trust::{Missing, Standing};
