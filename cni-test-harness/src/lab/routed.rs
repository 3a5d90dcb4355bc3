//! A subnet for each node, and three ways to route between them.

use anyhow::{Context, Result, ensure};

use super::stage::{NODES, Stage, pairs, underlay_ip, vtep_mac};

/// The first address of a node's subnet 10.5.N.0/24.
fn base(node: usize) -> String {
    format!("10.5.{node}.0")
}

fn all_pings(stage: &mut Stage<'_>) -> Result<()> {
    stage.say("Every subnet reaches every other.")?;
    for (from, to) in pairs() {
        stage.ping(NODES[from - 1], &base(to), true)?;
    }
    Ok(())
}

pub(super) fn routed(stage: &mut Stage<'_>) -> Result<()> {
    stage.underlay()?;
    stage.say("On each node a VXLAN device with the first address of the node's subnet.")?;
    for (number, node) in (1..).zip(NODES) {
        stage.run(&format!(
            "ip -n {{{node}}} link add flannel.1 address {} mtu 1450 type vxlan id 1 dstport 8472 \
             local {} dev eth0 nolearning",
            vtep_mac(number),
            underlay_ip(number)
        ))?;
        stage.run(&format!(
            "ip -n {{{node}}} addr add {}/32 dev flannel.1",
            base(number)
        ))?;
        stage.run(&format!("ip -n {{{node}}} link set flannel.1 up"))?;
    }
    stage.say("For each other node: where the MAC is, whose it is, and what is behind it.")?;
    for (from, to) in pairs() {
        let (node, mac, ip) = (NODES[from - 1], vtep_mac(to), base(to));
        stage.run(&format!(
            "bridge -n {{{node}}} fdb append {mac} dev flannel.1 dst {}",
            underlay_ip(to)
        ))?;
        stage.run(&format!(
            "ip -n {{{node}}} neigh replace {ip} lladdr {mac} dev flannel.1 nud permanent"
        ))?;
        stage.run(&format!(
            "ip -n {{{node}}} route replace {ip}/24 via {ip} dev flannel.1 onlink"
        ))?;
    }
    stage.shows(
        "ip -n {a} route show dev flannel.1",
        "10.5.2.0/24 via 10.5.2.0 onlink",
    )?;
    stage.run("ip -n {a} neigh show dev flannel.1")?;
    stage.run("bridge -n {a} fdb show dev flannel.1")?;
    all_pings(stage)
}

pub(super) fn host_gw(stage: &mut Stage<'_>) -> Result<()> {
    stage.underlay()?;
    stage.say("Each node has its subnet's first address, and a route to every other subnet.")?;
    for (number, node) in (1..).zip(NODES) {
        stage.run(&format!(
            "ip -n {{{node}}} addr add {}/32 dev lo",
            base(number)
        ))?;
    }
    for (from, to) in pairs() {
        let node = NODES[from - 1];
        stage.run(&format!(
            "ip -n {{{node}}} route replace {}/24 via {} dev eth0",
            base(to),
            underlay_ip(to)
        ))?;
    }
    stage.shows(
        "ip -n {a} route show",
        "10.5.3.0/24 via 192.168.50.3 dev eth0",
    )?;
    all_pings(stage)?;
    stage.say("A gateway that is not on the link is refused: this is where tunnels begin.")?;
    let refused = stage.run("ip -n {a} route replace 10.5.9.0/24 via 192.168.99.9 dev eth0");
    let error = refused
        .err()
        .context("the kernel took a gateway that is not on the link")?;
    ensure!(error.to_string().contains("invalid gateway"), "{error}");
    Ok(())
}

pub(super) fn tun(stage: &mut Stage<'_>) -> Result<()> {
    stage.underlay()?;
    stage.say("On a and b, socat joins a TUN device and a UDP socket: a packet, a datagram.")?;
    for (own, node, peer) in [(1, "a", 2), (2, "b", 1)] {
        let (here, there) = (underlay_ip(own), underlay_ip(peer));
        stage.start(&format!(
            "ip netns exec {{{node}}} socat -b 65536 \
             UDP4-DATAGRAM:{there}:8285,bind={here}:8285 \
             TUN:{}/32,tun-name=flannel0,iff-no-pi,iff-up",
            base(own)
        ))?;
        stage.shows(
            &format!("ip -n {{{node}}} addr show dev flannel0"),
            &base(own),
        )?;
        stage.say("28 bytes of IP and UDP header go around each packet.")?;
        stage.run(&format!("ip -n {{{node}}} link set flannel0 mtu 1472"))?;
        stage.run(&format!(
            "ip -n {{{node}}} route replace 10.5.0.0/16 dev flannel0"
        ))?;
    }
    stage.shows("ip -n {a} route show dev flannel0", "10.5.0.0/16")?;
    stage.ping("a", &base(2), true)?;
    stage.ping("b", &base(1), true)
}
