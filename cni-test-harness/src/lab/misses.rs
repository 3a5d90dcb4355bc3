//! Devices that ask.

use anyhow::Result;

use super::l2::{bridged, host_mac, neighbour};
use super::stage::{Stage, underlay_ip};

pub(super) fn misses(stage: &mut Stage<'_>) -> Result<()> {
    stage.underlay()?;
    // The device looks into its neighbour table only when it is to answer ARP itself.
    bridged(stage, "nolearning proxy l2miss l3miss")?;
    stage.say("Somebody listens on node a, as a daemon would.")?;
    stage.start("ip -n {a} monitor neigh")?;
    stage.say("host-a asks for host-b's MAC. The device does not know it either, and says so.")?;
    stage.ping("host-a", "10.9.0.2", false)?;
    stage.heard("miss 10.9.0.2")?;
    stage.say("The third layer is answered: the address has this MAC.")?;
    neighbour(stage, "a", 2)?;
    stage.say("Now host-a sends a frame to that MAC, and the second layer is missing.")?;
    stage.ping("host-a", "10.9.0.2", false)?;
    stage.heard(&format!("miss dev vx0 lladdr {}", host_mac(2)))?;
    stage.say("It is answered too: the MAC is on this node. The way back is written at once.")?;
    stage.run(&format!(
        "bridge -n {{a}} fdb append {} dev vx0 dst {}",
        host_mac(2),
        underlay_ip(2)
    ))?;
    neighbour(stage, "b", 1)?;
    stage.run(&format!(
        "bridge -n {{b}} fdb append {} dev vx0 dst {}",
        host_mac(1),
        underlay_ip(1)
    ))?;
    stage.ping("host-a", "10.9.0.2", true)?;
    stage.run("bridge -n {a} fdb show dev vx0")?;
    stage.run("ip -n {a} neigh show dev vx0")?;
    Ok(())
}
