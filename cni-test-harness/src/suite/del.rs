//! What DEL takes away, whatever is missing already.

use anyhow::{Context, Result, ensure};

use super::site::{BRIDGE, Site};
use super::{Plugins, Promise};
use crate::netns::Netns;
use crate::runtime::Attachment;
use crate::wait;

pub(super) const DEL_WITHOUT_NETNS_REMOVES_THE_VETH: &str = "del_without_netns_removes_the_veth";

pub(super) const PROMISES: &[Promise] = &[
    Promise {
        name: "del_removes_both_ends_and_the_reservation",
        run: del,
    },
    Promise {
        name: "del_twice_is_success",
        run: twice,
    },
    Promise {
        name: "del_before_add_is_success",
        run: before_add,
    },
    Promise {
        name: "del_without_netns_releases_the_address",
        run: without_netns,
    },
    Promise {
        name: DEL_WITHOUT_NETNS_REMOVES_THE_VETH,
        run: without_netns_link,
    },
    Promise {
        name: "del_after_the_netns_is_gone_releases_the_address",
        run: netns_gone,
    },
    Promise {
        name: "del_without_prev_result_is_complete",
        run: without_prev_result,
    },
    Promise {
        name: "del_leaves_other_pods_alone",
        run: others,
    },
];

/// A pod that the runtime attached in a namespace of ours, with nothing deleted by itself.
fn attached(site: &Site) -> Result<(Netns, Attachment)> {
    let netns = Netns::new("pod")?;
    let attachment = Attachment::eth0(netns.name(), &netns.path());
    site.runtime().add(site.list(), &attachment)?;
    Ok((netns, attachment))
}

fn nothing_left(site: &Site) -> Result<()> {
    ensure!(
        site.reserved()?.is_empty(),
        "still reserved: {:?}",
        site.reserved()?
    );
    ensure!(site.ports()?.is_empty(), "links left: {:?}", site.ports()?);
    Ok(())
}

fn del(plugins: &Plugins) -> Result<()> {
    let site = Site::new(plugins)?;
    let (netns, attachment) = attached(&site)?;
    site.runtime().del(site.list(), &attachment)?;
    nothing_left(&site)?;
    let left = crate::observe::View::of(&netns).link_names()?;
    ensure!(left.is_empty(), "links left in the pod: {left:?}");
    ensure!(
        site.node().view().link(BRIDGE)?.is_some(),
        "the bridge is gone"
    );
    Ok(())
}

fn twice(plugins: &Plugins) -> Result<()> {
    let site = Site::new(plugins)?;
    let (_netns, attachment) = attached(&site)?;
    (0..3).try_for_each(|_| site.runtime().del(site.list(), &attachment))?;
    nothing_left(&site)
}

fn before_add(plugins: &Plugins) -> Result<()> {
    let (site, netns) = (Site::new(plugins)?, Netns::new("pod")?);
    let attachment = Attachment::eth0("cid", &netns.path());
    site.runtime().del(site.list(), &attachment)
}

fn without_netns(plugins: &Plugins) -> Result<()> {
    let site = Site::new(plugins)?;
    let (_netns, mut attachment) = attached(&site)?;
    attachment.netns.clear();
    site.runtime().del(site.list(), &attachment)?;
    ensure!(
        site.reserved()?.is_empty(),
        "still reserved: {:?}",
        site.reserved()?
    );
    Ok(())
}

fn without_netns_link(plugins: &Plugins) -> Result<()> {
    let site = Site::new(plugins)?;
    let (_netns, mut attachment) = attached(&site)?;
    attachment.netns.clear();
    site.runtime().del(site.list(), &attachment)?;
    nothing_left(&site)
}

fn netns_gone(plugins: &Plugins) -> Result<()> {
    let site = Site::new(plugins)?;
    let (netns, attachment) = attached(&site)?;
    netns.remove();
    site.runtime().del(site.list(), &attachment)?;
    ensure!(
        site.reserved()?.is_empty(),
        "still reserved: {:?}",
        site.reserved()?
    );
    // The kernel takes a dead namespace's links away in its own time.
    let deadline = crate::process::DEADLINE;
    wait::until_true("the veth to go with its namespace", deadline, || {
        Ok(site.ports()?.is_empty())
    })
}

fn without_prev_result(plugins: &Plugins) -> Result<()> {
    let site = Site::new(plugins)?;
    let (_netns, attachment) = attached(&site)?;
    site.runtime().forget(site.list(), &attachment);
    site.runtime().del(site.list(), &attachment)?;
    nothing_left(&site)
}

fn others(plugins: &Plugins) -> Result<()> {
    let site = Site::new(plugins)?;
    let (gone, stays) = (site.pod()?, site.pod()?);
    let ip = stays.ip()?;
    gone.delete()?;
    ensure!(
        site.reserved()? == [ip.to_string()],
        "reserved: {:?}",
        site.reserved()?
    );
    let wait = std::time::Duration::from_secs(2);
    let ping = stays.view().ping(site.gateway(), 1, wait)?;
    ensure!(ping.complete(), "the other pod lost its gateway: {ping:?}");
    let host_end = site
        .ports()?
        .pop()
        .context("the other pod's host end is gone")?;
    let named = &stays.added().result["interfaces"][1]["name"];
    ensure!(
        *named == host_end.as_str(),
        "{host_end} is left, not {named}"
    );
    Ok(())
}
