//! GC and STATUS: what a runtime asks beside the life of a single pod (CNI 1.1.0).

use anyhow::{Result, ensure};

use super::site::{Site, failure};
use super::{Plugins, Promise};

pub(super) const GC_CLEARS_WHAT_IS_NOT_VALID: &str = "gc_clears_what_is_not_valid_and_nothing_else";
pub(super) const STATUS_OF_A_FULL_RANGE: &str = "status_of_a_full_range_is_code_50";
pub(super) const STATUS_WHEN_HEALTHY: &str = "status_of_a_healthy_network_is_success";

pub(super) const PROMISES: &[Promise] = &[
    Promise {
        name: GC_CLEARS_WHAT_IS_NOT_VALID,
        run: gc,
    },
    Promise {
        name: STATUS_WHEN_HEALTHY,
        run: healthy,
    },
    Promise {
        name: STATUS_OF_A_FULL_RANGE,
        run: full,
    },
];

fn gc(plugins: &Plugins) -> Result<()> {
    let site = Site::with(plugins, "1.1.0", "10.77.0.0/24")?;
    let (lost, stays) = (site.pod()?, site.pod()?);
    // A runtime that lost its cache sends no DEL of its own.
    site.runtime().forget(site.list(), lost.attachment());
    let valid = (stays.attachment().container_id.clone(), "eth0".to_owned());
    site.runtime().gc(site.list(), Some(&[valid]))?;
    ensure!(
        site.reserved()? == [stays.ip()?.to_string()],
        "reserved: {:?}",
        site.reserved()?
    );
    let named = &stays.added().result["interfaces"][1]["name"];
    let ports = site.ports()?;
    ensure!(
        ports.len() == 1 && *named == ports[0].as_str(),
        "links: {ports:?}, not {named}"
    );
    Ok(())
}

fn healthy(plugins: &Plugins) -> Result<()> {
    let site = Site::with(plugins, "1.1.0", "10.77.0.0/24")?;
    site.runtime().status(site.list())?;
    ensure!(
        site.node().view().link_names()?.is_empty(),
        "STATUS made a link"
    );
    ensure!(site.reserved()?.is_empty(), "STATUS reserved an address");
    Ok(())
}

/// CNI 1.1.0 STATUS: an exhausted range is an example of code 50.
fn full(plugins: &Plugins) -> Result<()> {
    let site = Site::with(plugins, "1.1.0", "10.77.0.0/29")?;
    let _pods = (0..5).map(|_| site.pod()).collect::<Result<Vec<_>>>()?;
    let said = failure("STATUS of a full range", site.runtime().status(site.list()))?;
    ensure!(said.code == Some(50), "not code 50: {said}");
    Ok(())
}
