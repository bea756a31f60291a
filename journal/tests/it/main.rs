//! Tests of the journal engine over real files.

mod append;
mod beside;
mod catalogue;
mod cheap;
mod crash;
mod encryption;
mod faults;
mod find;
mod fixture;
mod keeping;
mod losses;
mod memory;
mod model;
mod mortal;
mod pool;
mod power;
mod reopening;
mod ring;
mod rot;
mod rounds;
mod site;
mod steps;
mod thinning;
mod when;
mod window;
