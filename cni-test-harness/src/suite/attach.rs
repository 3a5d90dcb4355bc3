//! What ADD makes.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::site::{BRIDGE, MTU, NETWORK, Site, failure};
use super::{Plugins, Promise};
use crate::observe::Family;
use crate::runtime::Attachment;

pub(super) const HOST_NETNS_IS_REFUSED_BEFORE_ANY_DEED: &str =
    "host_netns_is_refused_before_any_deed";

pub(super) const PROMISES: &[Promise] = &[
    Promise {
        name: "add_gives_address_gateway_and_routes",
        run: addresses_and_routes,
    },
    Promise {
        name: "add_gives_a_hairpin_port_with_the_mtu",
        run: port,
    },
    Promise {
        name: "result_names_what_was_made",
        run: result,
    },
    Promise {
        name: "pods_ping_each_other_and_the_gateway",
        run: ping,
    },
    Promise {
        name: "second_add_of_an_interface_is_refused",
        run: second_add,
    },
    Promise {
        name: "add_to_a_missing_netns_is_an_error",
        run: missing_netns,
    },
    Promise {
        name: HOST_NETNS_IS_REFUSED_BEFORE_ANY_DEED,
        run: host_netns,
    },
    Promise {
        name: "pods_have_distinct_addresses_when_added_at_once",
        run: at_once,
    },
];

const WAIT: Duration = Duration::from_secs(2);

fn addresses_and_routes(plugins: &Plugins) -> Result<()> {
    let site = Site::new(plugins)?;
    let pod = site.pod()?;
    let inside = pod.view();
    let addresses = inside.addresses_of("eth0")?;
    ensure!(
        addresses == [format!("{}/24", site.address(2))],
        "the pod has {addresses:?}"
    );
    let gateway = site.gateway().to_string();
    let routes = inside.routes(Family::V4)?;
    let via_gateway = |dst: &str| {
        routes
            .iter()
            .any(|route| route.dst == dst && route.via == gateway && route.dev == "eth0")
    };
    ensure!(
        via_gateway("default") && via_gateway(NETWORK),
        "the pod's routes are {routes:?}"
    );
    let addresses = site.node().view().addresses_of(BRIDGE)?;
    ensure!(
        addresses == [format!("{gateway}/24")],
        "the bridge has {addresses:?}"
    );
    ensure!(
        site.node().netns().sysctl("ipv4/ip_forward")? == "1",
        "forwarding is off"
    );
    Ok(())
}

fn port(plugins: &Plugins) -> Result<()> {
    let site = Site::new(plugins)?;
    let pod = site.pod()?;
    let ports = site.ports()?;
    ensure!(ports.len() == 1, "the node has the links {ports:?}");
    let outside = site.node().view();
    let port = outside.link(&ports[0])?.context("the host end is gone")?;
    ensure!(
        port["master"] == BRIDGE,
        "the host end's master is {}",
        port["master"]
    );
    ensure!(
        port["linkinfo"]["info_slave_data"]["hairpin"] == true,
        "hairpin is off"
    );
    ensure!(
        port["operstate"] == "UP",
        "the host end is {}",
        port["operstate"]
    );
    for mtu in [
        outside.mtu(&ports[0])?,
        outside.mtu(BRIDGE)?,
        pod.view().mtu("eth0")?,
    ] {
        ensure!(mtu == MTU, "an MTU is {mtu}");
    }
    Ok(())
}

fn result(plugins: &Plugins) -> Result<()> {
    let site = Site::new(plugins)?;
    let pod = site.pod()?;
    let result = &pod.added().result;
    let host_end = site.ports()?.pop().context("no host end")?;
    let outside = site.node().view();
    let sandbox = pod.netns().path().to_string_lossy().into_owned();
    let expected = [
        (BRIDGE, outside.mac(BRIDGE)?, ""),
        (host_end.as_str(), outside.mac(&host_end)?, ""),
        ("eth0", pod.view().mac("eth0")?, sandbox.as_str()),
    ];
    for (index, (name, mac, sandbox)) in expected.into_iter().enumerate() {
        let interface = &result["interfaces"][index];
        let same = interface["name"] == name
            && interface["mac"] == mac.as_str()
            && interface["sandbox"].as_str().unwrap_or_default() == sandbox;
        ensure!(
            same,
            "interface {index} is {interface}, not {name} {mac} {sandbox}"
        );
    }
    ensure!(
        result["interfaces"]
            .as_array()
            .is_some_and(|all| all.len() == 3),
        "{result}"
    );
    let ip = &result["ips"][0];
    ensure!(
        ip["address"] == format!("{}/24", site.address(2))
            && ip["gateway"] == site.gateway().to_string()
            && ip["interface"] == 2,
        "the address is {ip}"
    );
    let routes = &result["routes"];
    ensure!(
        routes[0]["dst"] == NETWORK && routes[1]["dst"] == "0.0.0.0/0",
        "routes {routes}"
    );
    Ok(())
}

fn ping(plugins: &Plugins) -> Result<()> {
    let site = Site::new(plugins)?;
    let (a, b) = (site.pod()?, site.pod()?);
    for (from, to) in [
        (&a, b.ip()?),
        (&b, a.ip()?),
        (&a, site.gateway()),
        (&b, site.gateway()),
    ] {
        let ping = from.view().ping(to, 2, WAIT)?;
        ensure!(ping.complete(), "{} → {to}: {ping:?}", from.netns().name());
    }
    for pod in [&a, &b] {
        let ping = site.node().view().ping(pod.ip()?, 2, WAIT)?;
        ensure!(ping.complete(), "node → {}: {ping:?}", pod.ip()?);
    }
    Ok(())
}

/// CNI 1.1.0 ADD: an interface of that name in the container is an error.
fn second_add(plugins: &Plugins) -> Result<()> {
    let site = Site::new(plugins)?;
    let pod = site.pod()?;
    failure(
        "the second ADD",
        site.runtime().add(site.list(), pod.attachment()),
    )?;
    let other = Attachment::eth0("another-container", &pod.netns().path());
    failure(
        "ADD of another container",
        site.runtime().add(site.list(), &other),
    )?;
    let ping = pod.view().ping(site.gateway(), 1, WAIT)?;
    ensure!(
        ping.complete(),
        "the first attachment does not work any more: {ping:?}"
    );
    ensure!(
        site.reserved()?.contains(&site.address(2)),
        "the first address is not reserved"
    );
    Ok(())
}

fn missing_netns(plugins: &Plugins) -> Result<()> {
    let site = Site::new(plugins)?;
    let nowhere = Attachment::eth0("cid", std::path::Path::new("/run/netns/there-is-no-such"));
    failure("ADD", site.runtime().add(site.list(), &nowhere))?;
    ensure!(
        site.reserved()?.is_empty(),
        "reserved: {:?}",
        site.reserved()?
    );
    ensure!(site.ports()?.is_empty(), "links: {:?}", site.ports()?);
    Ok(())
}

fn host_netns(plugins: &Plugins) -> Result<()> {
    let site = Site::new(plugins)?;
    let host = Attachment::eth0("cid", &site.node().netns().path());
    let refused = failure("ADD", site.runtime().add(site.list(), &host))?;
    ensure!(refused.code == Some(8), "not code 8: {refused}");
    ensure!(
        site.node().view().link_names()?.is_empty(),
        "a link was made"
    );
    ensure!(site.reserved()?.is_empty(), "an address was reserved");
    Ok(())
}

fn at_once(plugins: &Plugins) -> Result<()> {
    const PODS: usize = 20;
    let site = Site::new(plugins)?;
    let pods = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..PODS).map(|_| scope.spawn(|| site.pod())).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<_>>| {
            thread
                .join()
                .map_err(|_| anyhow::anyhow!("a thread panicked"))?
        };
        threads.into_iter().map(join).collect::<Result<Vec<_>>>()
    })?;
    let ips = pods
        .iter()
        .map(|pod| pod.ip())
        .collect::<Result<std::collections::BTreeSet<_>>>()?;
    ensure!(ips.len() == PODS, "{} addresses for {PODS} pods", ips.len());
    ensure!(
        site.reserved()?.len() == PODS,
        "{} reservations",
        site.reserved()?.len()
    );
    ensure!(site.ports()?.len() == PODS, "{} links", site.ports()?.len());
    for pod in &pods {
        let has = pod.view().addresses_of("eth0")?;
        ensure!(
            has == [format!("{}/24", pod.ip()?)],
            "a pod has {has:?}, not {}",
            pod.ip()?
        );
    }
    pods.into_iter().try_for_each(|pod| pod.delete())?;
    ensure!(
        site.reserved()?.is_empty(),
        "reserved after DEL: {:?}",
        site.reserved()?
    );
    ensure!(
        site.ports()?.is_empty(),
        "links after DEL: {:?}",
        site.ports()?
    );
    Ok(())
}
