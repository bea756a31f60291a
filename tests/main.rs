//! End-to-end tests: the program as a person runs it, beside real QEMU guests.

mod cli;
mod conform;
mod e2e;
mod kit;
mod tidy;
