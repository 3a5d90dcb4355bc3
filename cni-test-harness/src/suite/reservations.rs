//! Addresses: who has which, in host-local's files.

use anyhow::{Context, Result, ensure};

use super::site::{NAME, Site, failure};
use super::{Plugins, Promise};
use crate::netns::Netns;
use crate::runtime::Attachment;

pub(super) const ADD_THAT_FAILS_LEAVES_NOTHING: &str = "add_that_fails_leaves_nothing";

pub(super) const PROMISES: &[Promise] = &[
    Promise {
        name: "reservations_are_files_in_host_locals_format",
        run: format,
    },
    Promise {
        name: "addresses_are_handed_out_round_robin",
        run: round_robin,
    },
    Promise {
        name: "exhausted_range_is_an_error_and_recovers",
        run: exhausted,
    },
    Promise {
        name: ADD_THAT_FAILS_LEAVES_NOTHING,
        run: failed_add,
    },
    Promise {
        name: "gateway_and_broadcast_are_never_handed_out",
        run: edges,
    },
];

fn format(plugins: &Plugins) -> Result<()> {
    let site = Site::new(plugins)?;
    let pod = site.pod()?;
    let dir = site.ipam_dir().join(NAME);
    let read = |name: &str| {
        let path = dir.join(name);
        std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
    };
    let address = site.address(2);
    let text = read(&address)?;
    let expected = format!("{}\r\neth0", pod.attachment().container_id);
    ensure!(
        text == expected,
        "the reservation says {text:?}, not {expected:?}"
    );
    let last = read("last_reserved_ip.0")?;
    ensure!(last == address, "last_reserved_ip.0 says {last:?}");
    ensure!(dir.join("lock").exists(), "there is no lock file");
    pod.delete()?;
    ensure!(
        !dir.join(&address).exists(),
        "the reservation is still there after DEL"
    );
    ensure!(
        read("last_reserved_ip.0")? == address,
        "DEL changed last_reserved_ip.0"
    );
    Ok(())
}

fn round_robin(plugins: &Plugins) -> Result<()> {
    let site = Site::new(plugins)?;
    let first = site.pod()?;
    ensure!(
        first.ip()?.to_string() == site.address(2),
        "the first is {}",
        first.ip()?
    );
    first.delete()?;
    let second = site.pod()?;
    ensure!(
        second.ip()?.to_string() == site.address(3),
        "the second is {}",
        second.ip()?
    );
    Ok(())
}

/// 10.77.0.0/29 has .2 to .6 for pods.
fn exhausted(plugins: &Plugins) -> Result<()> {
    let site = Site::with(plugins, "1.0.0", "10.77.0.0/29")?;
    let mut pods = (0..5).map(|_| site.pod()).collect::<Result<Vec<_>>>()?;
    let refused = failure("ADD to a full range", site.pod().map(drop))?;
    ensure!(refused.code.is_some(), "not one error object: {refused}");
    ensure!(
        site.reserved()?.len() == 5,
        "reserved: {:?}",
        site.reserved()?
    );
    let freed = pods.remove(1);
    let ip = freed.ip()?;
    freed.delete()?;
    let again = site.pod().context("after one address was released")?;
    ensure!(
        again.ip()? == ip,
        "{} was handed out, {ip} was free",
        again.ip()?
    );
    Ok(())
}

fn failed_add(plugins: &Plugins) -> Result<()> {
    let site = Site::with(plugins, "1.0.0", "10.77.0.0/29")?;
    let _pods = (0..5).map(|_| site.pod()).collect::<Result<Vec<_>>>()?;
    let ports = site.ports()?;
    let netns = Netns::new("pod")?;
    let attachment = Attachment::eth0(netns.name(), &netns.path());
    failure(
        "ADD to a full range",
        site.runtime().add(site.list(), &attachment),
    )?;
    ensure!(
        site.ports()? == ports,
        "links are {:?}, were {ports:?}",
        site.ports()?
    );
    let left = crate::observe::View::of(&netns).link_names()?;
    ensure!(left.is_empty(), "links left in the pod: {left:?}");
    Ok(())
}

fn edges(plugins: &Plugins) -> Result<()> {
    let site = Site::with(plugins, "1.0.0", "10.77.0.0/29")?;
    let pods = (0..5).map(|_| site.pod()).collect::<Result<Vec<_>>>()?;
    let ips = pods
        .iter()
        .map(|pod| Ok(pod.ip()?.to_string()))
        .collect::<Result<Vec<_>>>()?;
    let expected: Vec<String> = (2..=6).map(|number| site.address(number)).collect();
    ensure!(ips == expected, "handed out: {ips:?}");
    Ok(())
}
