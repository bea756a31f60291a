//! The guard with real processes. This program starts itself again as the guard, as the worker
//! and as what runs after a death (see `roles`).

mod decision;
mod guarded;
mod restart;
mod roles;
mod stall;
mod stop;
