//! The link between an agent and a site: TLS 1.3 with certificates on both ends, frames, a sink.
pub mod error;
pub mod frame;
pub mod identity;
pub use error::{Error, Result};
