//! What this kernel can do, tried out where nobody sees it: in a network namespace that lives as
//! long as the trial.

use std::thread;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};

use crate::error::{Error, Result};
use crate::link;
use crate::socket::{Request, Socket};

/// The kind of device to be tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feature {
    /// `type vxlan`.
    Vxlan,
    /// `type ipip`.
    Ipip,
    /// `type wireguard`.
    Wireguard,
}

impl Feature {
    /// The kernel's module, which is also the name of the kind.
    pub fn module(self) -> &'static str {
        match self {
            Feature::Vxlan => "vxlan",
            Feature::Ipip => "ipip",
            Feature::Wireguard => "wireguard",
        }
    }

    fn request(self) -> Request {
        link::create_plain("probe", self.module())
    }

    /// Whether the kernel can make such a device, loading the module if it has one. None if that
    /// cannot be found out without making it here (no right to a namespace of one's own).
    pub fn is_there(self) -> Option<bool> {
        // A thread of its own: there is no way back for one that has left its namespace.
        let trial = thread::Builder::new()
            .name("probe".to_owned())
            .spawn(move || self.attempt());
        match trial.ok()?.join().ok()? {
            Ok(()) => Some(true),
            Err(error) if error.errno() == Some(Errno::EOPNOTSUPP) => Some(false),
            // It knows the kind and wants to know more about it (EINVAL for a VXLAN without VNI).
            Err(Error::Refused { .. }) => Some(true),
            Err(_) => None,
        }
    }

    fn attempt(self) -> Result<()> {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| Error::io("unshare", errno))?;
        Socket::open()?.apply_all(&[self.request()])
    }
}
