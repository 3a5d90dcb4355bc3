//! The plugin suite: promises that a plugin keeps, whoever wrote it.
//!
//! twill and the reference plugins are held to the same list, so that the list itself is tested: a
//! promise that only twill could keep would be suspect. Where a reference plugin breaks one, its
//! [`Plugins`] says so with the reason; such a promise is run all the same, and a broken promise
//! that turns out to be kept is a failure of the suite, for then the reason has gone stale.
//!
//! Each promise has a [`Site`] of its own: a node with an empty network state and empty folders.

mod attach;
mod check;
mod del;
mod protocol;
mod reservations;
mod site;
mod upkeep;

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

pub use site::{BRIDGE, MTU, NETWORK, Site};

use crate::tools::{self, Missing};

/// One thing that a plugin must do.
#[derive(Clone, Copy)]
pub struct Promise {
    /// Its name: a sentence.
    pub name: &'static str,
    run: fn(&Plugins) -> Result<()>,
}

/// Why a promise is not kept by a set of plugins.
pub type Exception = (&'static str, &'static str);

/// A set of plugins under test.
#[derive(Debug, Clone)]
pub struct Plugins {
    /// What it is called in messages.
    pub name: &'static str,
    /// Where its binaries are.
    pub cni_path: Vec<PathBuf>,
    /// The plugin object of the conflist at a site.
    pub conf: fn(&Site) -> Value,
    /// The promises it does not keep, each with the reason.
    pub exceptions: &'static [Exception],
}

const NO_GUARD_BEFORE: Exception = (
    attach::HOST_NETNS_IS_REFUSED_BEFORE_ANY_DEED,
    "skel compares the namespaces after the deed; veth and reservation stay behind",
);
const FAILED_ADD_LEAVES_VETH: Exception = (
    reservations::ADD_THAT_FAILS_LEAVES_NOTHING,
    "bridge makes the veth before it asks IPAM and leaves it to the runtime's DEL",
);
const NO_NETNS_NO_VETH: Exception = (
    del::DEL_WITHOUT_NETNS_REMOVES_THE_VETH,
    "bridge only tells IPAM when CNI_NETNS is empty (containernetworking/plugins#810)",
);
const VERSION_1_1_0_UNKNOWN: &str = "plugins 1.1.1 are older than CNI 1.1.0";
const NO_GC: &str = "bridge and host-local have no GC (containernetworking/plugins#1013)";
const NO_STATUS: &str = "host-local's STATUS does not look at the range";
const CHECK_NEEDS_GATEWAY: &str =
    "plugins 1.1.1 fail every CHECK of a pod with a route that has no gateway in the result";

impl Plugins {
    /// twill as built, of type `twill`.
    pub fn twill() -> Result<Self> {
        let binary = tools::built("twill")?;
        let dir = binary.parent().map(PathBuf::from).unwrap_or_default();
        Ok(Self {
            name: "twill",
            cni_path: vec![dir],
            conf: twill_conf,
            exceptions: &[],
        })
    }

    /// bridge and host-local of Debian's package containernetworking-plugins.
    pub fn debian() -> Result<Self, Missing> {
        tools::debian_plugin("bridge")?;
        tools::debian_plugin("host-local")?;
        Ok(Self {
            name: "bridge + host-local (Debian)",
            cni_path: vec![tools::DEBIAN_PLUGIN_DIR.into()],
            conf: bridge_conf,
            exceptions: &[
                NO_GUARD_BEFORE,
                FAILED_ADD_LEAVES_VETH,
                NO_NETNS_NO_VETH,
                (protocol::RESULT_IN_1_1_0_IS_RIGHT, VERSION_1_1_0_UNKNOWN),
                (upkeep::GC_CLEARS_WHAT_IS_NOT_VALID, VERSION_1_1_0_UNKNOWN),
                (upkeep::STATUS_WHEN_HEALTHY, VERSION_1_1_0_UNKNOWN),
                (upkeep::STATUS_OF_A_FULL_RANGE, VERSION_1_1_0_UNKNOWN),
                (check::CHECK_PASSES_AFTER_ADD, CHECK_NEEDS_GATEWAY),
                (check::NOTICES_ADDRESS, CHECK_NEEDS_GATEWAY),
                (check::NOTICES_ROUTE, CHECK_NEEDS_GATEWAY),
                (check::NOTICES_PORT, CHECK_NEEDS_GATEWAY),
                (check::NOTICES_RESERVATION, CHECK_NEEDS_GATEWAY),
            ],
        })
    }

    /// bridge and host-local of today, in the version of the list of Go tools.
    pub fn upstream() -> Result<Self, Missing> {
        let path = tools::go_plugin_path(&["bridge", "host-local"])?;
        Ok(Self {
            name: "bridge + host-local v1.9.1",
            cni_path: std::env::split_paths(&path).collect(),
            conf: bridge_conf,
            exceptions: &[
                NO_GUARD_BEFORE,
                FAILED_ADD_LEAVES_VETH,
                NO_NETNS_NO_VETH,
                (upkeep::GC_CLEARS_WHAT_IS_NOT_VALID, NO_GC),
                (upkeep::STATUS_OF_A_FULL_RANGE, NO_STATUS),
            ],
        })
    }
}

/// What flannel would hand to bridge, written by hand.
fn bridge_conf(site: &Site) -> Value {
    json!({
        "type": "bridge",
        "bridge": site::BRIDGE,
        "isDefaultGateway": true,
        "hairpinMode": true,
        "ipMasq": false,
        "mtu": site::MTU,
        "ipam": {
            "type": "host-local",
            "dataDir": site.ipam_dir(),
            "ranges": [[{"subnet": site.subnet().to_string()}]],
            "routes": [{"dst": site::NETWORK}]
        }
    })
}

/// The same network in flannel's shape; the rest is in the site's subnet.env.
fn twill_conf(site: &Site) -> Value {
    json!({
        "type": "twill",
        "subnetFile": site.subnet_file(),
        "dataDir": site.node().dir().join("scratch"),
        "delegate": {"bridge": site::BRIDGE, "isDefaultGateway": true, "hairpinMode": true},
        "ipam": {"dataDir": site.ipam_dir()}
    })
}

/// All promises, in the order they are run.
pub fn promises() -> Vec<Promise> {
    [
        attach::PROMISES,
        protocol::PROMISES,
        del::PROMISES,
        reservations::PROMISES,
        check::PROMISES,
        upkeep::PROMISES,
    ]
    .concat()
}

/// Holds `plugins` to every promise; prints one line per promise as it goes. An error names all
/// that failed.
pub fn run(plugins: &Plugins) -> Result<()> {
    let mut failed = Vec::new();
    for promise in promises() {
        let exception = plugins
            .exceptions
            .iter()
            .find(|(name, _)| *name == promise.name);
        let line = match ((promise.run)(plugins), exception) {
            (Ok(()), None) => "kept".to_owned(),
            (Err(_), Some((_, reason))) => {
                // Past the test runner's capture, as a skipped test says its reason.
                let (who, what) = (plugins.name, promise.name);
                let _ = writeln!(std::io::stderr(), "not kept: {who}: {what}: {reason}");
                "not kept".to_owned()
            }
            (Ok(()), Some((_, reason))) => {
                failed.push(format!(
                    "{}: kept, though {reason:?} is written down",
                    promise.name
                ));
                "KEPT, against what is written down".to_owned()
            }
            (Err(error), None) => {
                failed.push(format!("{}: {error:#}", promise.name));
                format!("BROKEN: {error:#}")
            }
        };
        println!("{}: {}: {line}", plugins.name, promise.name);
    }
    ensure!(
        failed.is_empty(),
        "{}:\n  {}",
        plugins.name,
        failed.join("\n  ")
    );
    Ok(())
}
