//! Tests of the journal engine over real files.

mod append;
mod catalogue;
mod crash;
mod faults;
mod fixture;
mod model;
mod pool;
mod power;
mod ring;
mod rot;
mod when;
mod window;
