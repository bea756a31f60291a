//! The command line without a guest and without an agent: what it refuses and how, what it prints,
//! and restores from nothing but a journal on disk.

mod bad_input;
mod daemon;
mod documents;
mod encrypted;
mod export;
mod export_faults;
mod host;
mod hostile_text;
mod moments;
mod other_user;
mod pool;
mod s3;
pub mod shop;
mod site;
mod site_clock;
mod site_pool;
mod storage;
mod thinned;
