//! The journal on a simulated disk: seeded runs with every kind of end, and the image that each
//! sync boundary of a recorded run could leave.
//!
//! `AFTERIMAGE_SEED=n` replays one seed of whatever failed.

mod clock;
mod disk;
mod disk_tests;
mod file;
mod frozen;
mod images;
mod model;
mod pool;
mod rng;
mod run;
mod seeds;
mod site;
mod site_check;
mod steps;
mod storage;
mod world;
