//! Agent's and site's ends against each other over real TLS on loopback.

mod bed;
mod ops;
