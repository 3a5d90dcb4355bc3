//! Every lab builds, proves itself, and prints commands that can be typed again.

use anyhow::Result;
use cni_test_harness::{lab, skip_unless, tools};

fn printed(name: &str) -> Result<String> {
    let mut out = Vec::new();
    let result = lab::run(name, &mut out);
    let text = String::from_utf8_lossy(&out).into_owned();
    result.map_err(|error| error.context(text.clone()))?;
    Ok(text)
}

#[test]
fn static_fdb_holds() -> Result<()> {
    let text = printed("static-fdb")?;
    assert!(text.contains(" fdb append 02:00:00:00:09:02 dev vx0 dst 192.168.50.2\n"));
    Ok(())
}

#[test]
fn multicast_learning_holds() -> Result<()> {
    let text = printed("multicast-learning")?;
    assert!(
        !text.contains("fdb append"),
        "nothing is written by hand:\n{text}"
    );
    Ok(())
}

#[test]
fn flood_list_and_proxy_holds() -> Result<()> {
    printed("flood-list-and-proxy").map(drop)
}

#[test]
fn misses_are_heard_before_they_are_answered() -> Result<()> {
    let text = printed("misses")?;
    let (asked, answered) = (
        text.find("    miss 10.9.0.2"),
        text.find("neigh replace 10.9.0.2"),
    );
    assert!(asked.is_some() && asked < answered, "{text}");
    Ok(())
}

#[test]
fn the_routed_overlay_holds_with_three_entries_for_each_peer() -> Result<()> {
    let text = printed("routed")?;
    for (what, command) in [
        ("route", " route replace "),
        ("neighbour", " neigh "),
        ("FDB", " fdb append "),
    ] {
        let lines = text
            .lines()
            .filter(|line| line.contains(command) && !line.contains("show"));
        assert_eq!(
            lines.count(),
            6,
            "one {what} for each of two peers on three nodes:\n{text}"
        );
    }
    Ok(())
}

#[test]
fn host_gw_holds() -> Result<()> {
    printed("host-gw").map(drop)
}

#[test]
fn the_tun_tunnel_holds() -> Result<()> {
    skip_unless!(tools::program("socat"));
    printed("tun").map(drop)
}

#[test]
fn nothing_is_left_of_a_lab() -> Result<()> {
    let text = printed("host-gw")?;
    let names = text
        .lines()
        .filter_map(|line| line.strip_prefix("ip netns add "));
    let names: Vec<&str> = names.collect();
    assert_eq!(names.len(), 4);
    for name in names {
        assert!(
            !std::path::Path::new("/run/netns").join(name).exists(),
            "{name}"
        );
    }
    Ok(())
}
