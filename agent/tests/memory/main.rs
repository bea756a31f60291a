//! Guest memory, from a stream to what the journal says of it.

mod failures;
mod kit;
mod model;
mod qemu;
