//! Tests of restore over real journals, real files, and `qemu-img`.

mod batches;
mod bed;
mod damage;
mod export;
mod far;
mod live;
mod machine;
mod member;
mod memory;
mod open;
mod points;
mod ram;
mod resume;
mod start;
mod target;
mod verify;
mod warm;
