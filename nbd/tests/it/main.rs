//! The NBD server and client against real peers, hostile ones, and each other.

mod budget;
mod clients;
mod encoders;
mod fixture;
mod hostile_clients;
mod hostile_servers;
mod lifecycle;
mod observing;
mod our_client;
mod payloads;
mod sockets;
mod statuses;
