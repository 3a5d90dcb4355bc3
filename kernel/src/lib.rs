//! The only code of twill that talks to the kernel.
//!
//! ```text
//!            Request ─┐                          ┌─ Result per request
//!  link address route │  Socket::apply, one send │
//!  neighbour fdb veth ├─────────────────────────▶│  rtnetlink
//!                     │  Socket::dump ───────────┼─▶ Link, Address, Route, Neighbour, FdbEntry
//!  nft::Table ────────┴─ nft::Socket, one transaction
//!  Netns: which network namespace a socket or a sysctl belongs to
//! ```
//!
//! Rooms: [`socket`] (batches, dumps, deadlines), one file per kernel object ([`link`], [`device`],
//! [`veth`], [`bridge`], [`vlan`], [`vxlan`], [`ipip`], [`ifb`], [`address`], [`route`], [`neighbour`],
//! [`fdb`], [`solicit`], [`tc`]), [`netns`], [`feature`], [`mod@file`], [`sysctl`], [`nft`],
//! [`conntrack`], and, for the daemon, `monitor`, `miss` and `wireguard`.
//!
//! Nothing here decides what should exist: callers say it, as plain values. Every operation is
//! idempotent where the kernel lets it be, and every request has a deadline.

pub mod address;
mod attribute;
pub mod bridge;
pub mod conntrack;
mod describe;
pub mod device;
pub mod error;
pub mod fdb;
pub mod feature;
pub mod file;
#[cfg(feature = "fuzz")]
pub mod fuzz;
pub mod ifb;
pub mod ipip;
pub mod leaving;
pub mod link;
pub mod mac;
#[cfg(feature = "monitor")]
pub mod miss;
#[cfg(feature = "monitor")]
pub mod monitor;
pub mod neighbour;
pub mod netns;
pub mod nft;
pub mod offload;
pub mod route;
pub mod socket;
pub mod solicit;
#[cfg(feature = "monitor")]
mod subscription;
pub mod sysctl;
pub mod tc;
pub mod tun;
pub mod veth;
pub mod vlan;
pub mod vxlan;
#[cfg(feature = "wireguard")]
pub mod wireguard;

pub use error::{Error, Result};
pub use mac::Mac;
pub use netns::Netns;
pub use socket::{Request, Socket};
