//! Real runtimes with twill as their plugin: containerd, CRI-O and podman make containers and pods
//! that reach others, publish ports and leave nothing.

mod containerd;
mod crash;
mod crio;
mod podman;
mod seen;
