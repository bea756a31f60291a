//! The crate against a real QEMU (no operating system in the guest: see [`guest`]), and against
//! fakes for what no real peer would send.
//!
//! Needs qemu-system-x86_64, qemu-img, nbdkit, nbdinfo and, for the fake `virsh`, python3.

#![allow(missing_docs)]

mod agent;
mod bitmaps;
mod connect;
mod detach;
mod disks;
mod exports;
mod failures;
mod fakes;
mod guest;
mod libvirt;
mod mirror;
mod protocol;
mod rig;
mod snapshot;
