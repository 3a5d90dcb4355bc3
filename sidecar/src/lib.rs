//! twilld: the daemon that gives a node its subnet and keeps the overlay to the other nodes.
//!
//! ```text
//!  store/file               underlay (links, addresses, routes)      kernel dump (ours only)
//!      │ LeaseEvent                │ Facts                                │ observe
//!      ▼                           ▼                                      ▼
//!  lease_table ──▶ peers ──▶ backend ──────────▶ Tables wanted ──▶ diff(want, have) ──Plan──▶ apply
//!  (pure fold)     (pure)    (pure, total)                         (pure, ordered)        (only I/O)
//!                        reconcile: the one loop     run: the one wiring
//! ```
//!
//! Of that a round does everything, a step only what one lease changes (`wanted`, `standing`);
//! `concern` says which of the kernel's notifications make a round necessary.
//!
//! With vxlan on demand only the peers in use are in the kernel's tables (`demand`).
//!
//! Before the loop: `flags` and `net_conf` read what people write, `config` waits for the
//! configuration and follows it, `subnet` decides which subnet to take, `restraint` when a dual-stack
//! node holds its IPv6 back, `persist` remembers what must survive a reboot.
//!
//! Beside the loop: `keeper` renews this node's lease, `health` answers probes, `masquerade` says
//! which nftables rules there are, `offload` finds out whether checksums may be left to the hardware,
//! `sweep` deletes the pods' interfaces that DEL has left to us, and `subnet_env` is the file in which
//! the CNI plugin finds all of it, which is there as long as `subnet_file` says.

mod apply;
mod atomic_file;
pub mod backend;
mod budget;
mod carrier;
mod concern;
mod config;
pub mod demand;
pub mod desired;
pub mod diff;
mod due;
pub mod family;
pub mod flags;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod health;
mod keeper;
mod key_file;
pub mod lease;
pub mod lease_table;
pub mod masquerade;
mod migrate;
pub mod net_conf;
mod offload;
pub mod peers;
pub mod persist;
mod prepare;
mod reconcile;
mod restraint;
mod run;
pub mod standing;
pub mod store;
pub mod subnet;
pub mod subnet_env;
mod subnet_file;
pub mod subnets;
mod sweep;
pub mod tables;
mod trouble;
pub mod udp;
pub mod underlay;
pub mod wanted;

pub use migrate::migrate;
pub use run::run;
