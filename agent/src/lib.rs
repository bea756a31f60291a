//! The source side: capture, its engine, and the API that commands speak with.

pub mod api;
