//! One Ethernet stretched over three nodes, in three ways.

use anyhow::Result;

use super::stage::{NODES, Stage, pairs, underlay_ip, vtep_mac};

fn inner_ip(node: usize) -> String {
    format!("10.9.0.{node}")
}

/// A VXLAN device on each node that is itself the host on the stretched Ethernet.
fn devices(stage: &mut Stage<'_>, options: impl Fn(usize) -> String) -> Result<()> {
    for (number, node) in (1..).zip(NODES) {
        stage.run(&format!(
            "ip -n {{{node}}} link add vx0 address {} mtu 1450 type vxlan id 9 dstport 4789 {}",
            vtep_mac(number),
            options(number)
        ))?;
        let ip = inner_ip(number);
        stage.run(&format!("ip -n {{{node}}} addr add {ip}/24 dev vx0"))?;
        stage.run(&format!("ip -n {{{node}}} link set vx0 up"))?;
    }
    Ok(())
}

pub(super) fn static_fdb(stage: &mut Stage<'_>) -> Result<()> {
    stage.underlay()?;
    stage.say("A VXLAN device on each node; `nolearning`: frames teach it nothing.")?;
    devices(stage, |number| {
        format!("local {} nolearning", underlay_ip(number))
    })?;
    stage.say("Nothing is known, and there is nowhere to flood to: nobody answers.")?;
    stage.ping("a", &inner_ip(2), false)?;
    stage.say("Who has an address (neighbour), and on which node that MAC is (FDB), by hand.")?;
    for (from, to) in pairs() {
        let (node, mac) = (NODES[from - 1], vtep_mac(to));
        stage.run(&format!(
            "ip -n {{{node}}} neigh replace {} lladdr {mac} dev vx0 nud permanent",
            inner_ip(to)
        ))?;
        stage.run(&format!(
            "bridge -n {{{node}}} fdb append {mac} dev vx0 dst {}",
            underlay_ip(to)
        ))?;
    }
    stage.shows(
        "bridge -n {a} fdb show dev vx0",
        "192.168.50.3 self permanent",
    )?;
    stage.ping("a", &inner_ip(2), true)?;
    stage.ping("c", &inner_ip(1), true)?;
    stage.say("One entry less, one node less.")?;
    let gone = vtep_mac(2);
    stage.run(&format!(
        "bridge -n {{a}} fdb del {gone} dev vx0 dst {}",
        underlay_ip(2)
    ))?;
    stage.ping("a", &inner_ip(2), false)?;
    stage.ping("a", &inner_ip(3), true)
}

pub(super) fn multicast_learning(stage: &mut Stage<'_>) -> Result<()> {
    stage.underlay()?;
    stage
        .say("A VXLAN device on each node, all in one multicast group; learning is the default.")?;
    devices(stage, |number| {
        format!("group 239.9.9.9 dev eth0 local {}", underlay_ip(number))
    })?;
    stage.say("Only the all-zero MAC has an entry: what is unknown goes to the group.")?;
    stage.shows("bridge -n {a} fdb show dev vx0", "dst 239.9.9.9")?;
    stage.say("ARP goes to the group; the answer tells where b is.")?;
    stage.ping("a", &inner_ip(2), true)?;
    let learnt = format!("{} dst {} self", vtep_mac(2), underlay_ip(2));
    stage.shows("bridge -n {a} fdb show dev vx0", &learnt)?;
    stage.shows("ip -n {a} neigh show dev vx0", &vtep_mac(2))?;
    stage.say(
        "c heard the question as well, and has learnt where a is without a packet of its own.",
    )?;
    let learnt = format!("{} dst {} self", vtep_mac(1), underlay_ip(1));
    stage.shows("bridge -n {c} fdb show dev vx0", &learnt)
}

/// Behind each node a host of its own, bridged onto the VXLAN device: ARP then comes through the
/// device from outside, which is what `proxy` and `l3miss` are about.
pub(super) fn bridged(stage: &mut Stage<'_>, options: &str) -> Result<()> {
    stage.say("On nodes a and b: a VXLAN device and a host, joined by a bridge.")?;
    for (number, node, host) in [(1, "a", "host-a"), (2, "b", "host-b")] {
        stage.namespace(host)?;
        stage.run(&format!(
            "ip -n {{{node}}} link add vx0 mtu 1450 type vxlan id 9 dstport 4789 local {} {options}",
            underlay_ip(number)
        ))?;
        stage.run(&format!("ip -n {{{node}}} link add br0 type bridge"))?;
        stage.run(&format!("ip -n {{{node}}} link set vx0 master br0"))?;
        stage.run(&format!(
            "ip -n {{{node}}} link add port0 type veth peer eth0 netns {{{host}}}"
        ))?;
        stage.run(&format!("ip -n {{{node}}} link set port0 master br0"))?;
        for device in ["vx0", "port0", "br0"] {
            stage.run(&format!("ip -n {{{node}}} link set {device} up"))?;
        }
        stage.run(&format!(
            "ip -n {{{host}}} link set eth0 address {} mtu 1450",
            host_mac(number)
        ))?;
        stage.run(&format!(
            "ip -n {{{host}}} addr add {}/24 dev eth0",
            inner_ip(number)
        ))?;
        stage.run(&format!("ip -n {{{host}}} link set eth0 up"))?;
    }
    Ok(())
}

pub(super) fn host_mac(number: usize) -> String {
    format!("02:00:00:00:10:{number:02x}")
}

/// The device on `node` answers ARP for the host behind `peer`.
pub(super) fn neighbour(stage: &mut Stage<'_>, node: &str, peer: usize) -> Result<()> {
    stage.run(&format!(
        "ip -n {{{node}}} neigh replace {} lladdr {} dev vx0 nud permanent",
        inner_ip(peer),
        host_mac(peer)
    ))?;
    Ok(())
}

pub(super) fn flood_list_and_proxy(stage: &mut Stage<'_>) -> Result<()> {
    stage.underlay()?;
    bridged(stage, "nolearning proxy")?;
    stage.say("The devices know whose address has which MAC, and answer ARP for it themselves.")?;
    neighbour(stage, "a", 2)?;
    neighbour(stage, "b", 1)?;
    stage.say("So host-a learns host-b's MAC, although no frame can reach b yet.")?;
    stage.ping("host-a", &inner_ip(2), false)?;
    stage.shows("ip -n {host-a} neigh show dev eth0", &host_mac(2))?;
    stage.say("An all-zero entry: whatever has no entry of its own is sent to these nodes.")?;
    for (node, peers) in [("a", [2, 3]), ("b", [1, 3])] {
        for peer in peers {
            stage.run(&format!(
                "bridge -n {{{node}}} fdb append 00:00:00:00:00:00 dev vx0 dst {}",
                underlay_ip(peer)
            ))?;
        }
    }
    stage.shows(
        "bridge -n {a} fdb show dev vx0",
        "00:00:00:00:00:00 dst 192.168.50.3",
    )?;
    stage.ping("host-a", &inner_ip(2), true)
}
