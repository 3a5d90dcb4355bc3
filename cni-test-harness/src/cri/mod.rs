//! What container runtimes have in common on a node, whichever it is ([`crate::containerd`],
//! [`crate::crio`]): where one runs, what is asked of it, and what its pods are.
//!
//! [`Enclosure`] is the place, [`Cri`] the conversation, [`PodSpec`] and [`image`] what pods are made
//! of. What is peculiar to a runtime (its programs, its configuration) is its own module's.

mod cgroup;
mod client;
mod enclosure;
pub mod image;
mod inside;
mod pod;
mod setup;

use std::time::Duration;

pub use self::client::{Cri, ExecOutput, PodStatus};
pub use self::enclosure::Enclosure;
pub use self::inside::Process;
pub use self::pod::{HostPort, PodSpec};
pub use self::setup::Setup;
pub(crate) use self::setup::{may_lower_oom_scores, quote, socket_path};
pub use k8s_cri::v1::Protocol;

use crate::tools::{self, Missing};

/// How long a runtime may take from its start to its first answer, and a container to run.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

/// What must be on the machine for any runtime.
pub(crate) fn available() -> Result<(), Missing> {
    let programs = ["runc", "unshare", "nsenter", "socat", "perl"];
    programs
        .iter()
        .try_for_each(|name| tools::program(name).map(drop))?;
    image::busybox().map(drop)
}
