//! Agent's and site's ends against each other over real TLS on loopback.

mod bed;
mod credit;
mod forged;
mod gone;
mod hostile;
mod identity;
mod ops;
mod proxy;
mod raw;
mod versions;
