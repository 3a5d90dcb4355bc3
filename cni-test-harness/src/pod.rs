//! A pod: a namespace that a runtime attached to a network.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::netconf::NetworkList;
use crate::netns::{self, Netns};
use crate::observe::{Ping, View};
use crate::runtime::{Added, Attachment, Runtime};

/// An attached pod; DEL and removal of its namespace when dropped, unless kept.
pub struct Pod {
    attachment: Attachment,
    added: Added,
    runtime: Arc<Runtime>,
    list: Arc<NetworkList>,
    attached: bool,
    netns: Netns,
}

impl Pod {
    /// Makes a namespace with a unique name and attaches it as `eth0`.
    pub fn new(runtime: &Arc<Runtime>, list: &Arc<NetworkList>) -> Result<Self> {
        Self::create(&netns::unique_name("pod"), runtime, list)
    }

    /// Makes the namespace `name` and attaches it as `eth0`; the container ID is the name.
    pub fn create(name: &str, runtime: &Arc<Runtime>, list: &Arc<NetworkList>) -> Result<Self> {
        let netns = Netns::create(name)?;
        let attachment = Attachment::eth0(name, &netns.path());
        let added = runtime.add(list, &attachment);
        // As every runtime does: a failed ADD is followed by DEL.
        let added = added.inspect_err(|_| drop(runtime.del(list, &attachment)))?;
        let (runtime, list) = (Arc::clone(runtime), Arc::clone(list));
        Ok(Self {
            attachment,
            added,
            runtime,
            list,
            attached: true,
            netns,
        })
    }

    /// Its first address.
    pub fn ip(&self) -> Result<IpAddr> {
        let first = self.added.ips().into_iter().next();
        first.with_context(|| format!("no address in {}", self.added.result))
    }

    /// What ADD answered.
    pub fn added(&self) -> &Added {
        &self.added
    }

    /// What was attached.
    pub fn attachment(&self) -> &Attachment {
        &self.attachment
    }

    /// Its namespace.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// A look at its network from inside.
    pub fn view(&self) -> View<'_> {
        View::of(&self.netns)
    }

    /// Pings another pod's first address, `count` times.
    pub fn ping(&self, other: &Self, count: u32, wait: Duration) -> Result<Ping> {
        self.view().ping(other.ip()?, count, wait)
    }

    /// CHECK.
    pub fn check(&self) -> Result<()> {
        self.runtime.check(&self.list, &self.attachment)
    }

    /// DEL, with its failure reported; then the namespace goes.
    pub fn delete(mut self) -> Result<()> {
        self.attached = false;
        self.runtime.del(&self.list, &self.attachment)
    }

    /// Leaves the pod standing when this is dropped.
    pub fn keep(&mut self) {
        self.attached = false;
        self.netns.keep();
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if self.attached {
            let _ = self.runtime.del(&self.list, &self.attachment);
        }
    }
}
