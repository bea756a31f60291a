//! QEMU's migration stream: what a real QEMU writes and loads, made-up streams, hostile ones.

mod loading;
mod made;
mod memory;
mod reading;
mod refused;
mod rig;
mod settings;
mod splits;
