//! What a bucket holds of a journal, told by numbered manifests: their bytes, their sum, and how they are
//! found and written.

mod chain;
mod message;
mod state;

pub use chain::{Chain, ChainError, Committed, Found, MILESTONE, Remains, Stamp};
pub use message::Manifest;
pub use state::{Change, File, Holding, Segment, State, objects_of};
