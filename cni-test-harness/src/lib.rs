//! Plays everything around twill: the node, the underlay, the peer, the container runtime.
//!
//! ```text
//!  Underlay (bridge | routed)
//!     │ eth0          │ eth0
//!   Node            Node         network namespaces, each with a state folder and its daemons
//!     │ Runtime       │          calls plugins as libcni does
//!   Pod  Pod        Pod
//!     └─ View: ip -j, bridge -j, nft -j, ping: other people's tools look at the result
//! ```
//!
//! [`cluster`] puts these together with twilld on every node; [`suite`] is the list of promises
//! that twill and the reference plugins are both held to. The binary of this crate is the demo and
//! the benchmark.
#![cfg(feature = "harness")]

pub mod bench;
pub mod card;
pub mod certificates;
pub mod cluster;
pub mod containerd;
pub mod cri;
pub mod crio;
pub mod demo;
pub mod etcd;
pub mod flanneld;
pub mod kubernetes;
pub mod lab;
pub mod netconf;
pub mod netns;
pub mod node;
pub mod observe;
pub mod packet;
pub mod pod;
pub mod process;
pub mod progress;
pub mod runtime;
pub mod skip;
pub mod stores;
pub mod stream;
pub mod suite;
pub mod tools;
pub mod underlay;
pub mod vm;
pub mod wait;
