//! CHECK: right after ADD it passes; what is missing it notices.

use std::path::Path;

use anyhow::{Context, Result};

use super::site::{BRIDGE, NAME, Site, failure};
use super::{Plugins, Promise};
use crate::pod::Pod;

pub(super) const CHECK_PASSES_AFTER_ADD: &str = "check_passes_after_add";

pub(super) const NOTICES_ADDRESS: &str = "check_notices_a_missing_address";
pub(super) const NOTICES_ROUTE: &str = "check_notices_a_missing_default_route";
pub(super) const NOTICES_PORT: &str = "check_notices_a_port_off_the_bridge";
pub(super) const NOTICES_RESERVATION: &str = "check_notices_a_missing_reservation";
pub(super) const PROMISES: &[Promise] = &[
    Promise {
        name: CHECK_PASSES_AFTER_ADD,
        run: passes,
    },
    Promise {
        name: NOTICES_ADDRESS,
        run: address,
    },
    Promise {
        name: NOTICES_ROUTE,
        run: route,
    },
    Promise {
        name: NOTICES_PORT,
        run: port,
    },
    Promise {
        name: NOTICES_RESERVATION,
        run: reservation,
    },
];

fn passes(plugins: &Plugins) -> Result<()> {
    for version in ["0.4.0", "1.0.0"] {
        let site = Site::with(plugins, version, "10.77.0.0/24")?;
        let pod = site.pod()?;
        pod.check()
            .with_context(|| format!("in version {version}"))?;
        // CHECK changes nothing: it passes again.
        pod.check()
            .with_context(|| format!("again in version {version}"))?;
    }
    Ok(())
}

fn notices(plugins: &Plugins, damage: impl FnOnce(&Site, &Pod) -> Result<()>) -> Result<()> {
    let site = Site::new(plugins)?;
    let pod = site.pod()?;
    pod.check()
        .context("CHECK fails before anything is missing")?;
    damage(&site, &pod)?;
    failure("CHECK", pod.check())?;
    Ok(())
}

fn address(plugins: &Plugins) -> Result<()> {
    notices(plugins, |_, pod| {
        pod.netns().ip(&["addr", "flush", "dev", "eth0"]).map(drop)
    })
}

fn route(plugins: &Plugins) -> Result<()> {
    notices(plugins, |_, pod| {
        pod.netns().ip(&["route", "del", "default"]).map(drop)
    })
}

fn port(plugins: &Plugins) -> Result<()> {
    notices(plugins, |site, _| {
        let port = site
            .ports()?
            .pop()
            .with_context(|| format!("no port on {BRIDGE}"))?;
        site.node()
            .netns()
            .ip(&["link", "set", &port, "nomaster"])
            .map(drop)
    })
}

fn reservation(plugins: &Plugins) -> Result<()> {
    notices(plugins, |site, pod| {
        let path = site
            .ipam_dir()
            .join(NAME)
            .join(Path::new(&pod.ip()?.to_string()));
        std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))
    })
}
