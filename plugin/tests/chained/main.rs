//! The plugins `portmap`, `bandwidth`, `tuning` and `loopback`, under their own names, on a node
//! made by hand: what they do is looked at with `nft`, `tc`, `ip` and `conntrack`, and by traffic.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../calls/mod.rs"]
mod calls;
mod host_ports;
mod limits;
#[path = "../namespaces/mod.rs"]
mod namespaces;
mod node;
mod replay;
mod tuned;
