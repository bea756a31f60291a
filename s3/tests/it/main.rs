//! Tests of a bucket as a site: over a store in memory that fails as it is told, and over a real server.

mod conform;
mod crash;
mod faults;
mod fence;
mod fixture;
mod garbage;
mod live;
mod lost;
mod reading;
#[path = "../../../tests/kit/s3.rs"]
mod server;
mod store;
