//! cnitool, the CNI project's own runtime: every verb against the built plugin.

use std::time::Duration;

use anyhow::Result;
use cni_test_harness::cluster::{Cluster, Member, Spec};
use cni_test_harness::netns::{self, Netns};
use cni_test_harness::process::{self, Output};
use cni_test_harness::{skip_unless, tools, wait};

const DEADLINE: Duration = Duration::from_secs(30);

fn cnitool(member: &Member, tool: &std::path::Path, verb: &str, pod: &Netns) -> Result<Output> {
    let mut command = member.node().command(tool)?;
    let twill = tools::built("twill")?;
    command
        .arg(verb)
        .arg("cbr0")
        .arg(pod.path())
        .env("NETCONFPATH", member.node().make_dir("net.d")?)
        .env(
            "CNI_PATH",
            twill.parent().expect("the plugin is in a folder"),
        )
        .env("CNI_IFNAME", "eth0");
    process::run(&mut command, b"", DEADLINE)
}

/// Its list at 1.1.0, which alone has GC and STATUS.
fn at_newest(member: &Member) -> Result<()> {
    let path = member.node().make_dir("net.d")?.join("10-twill.conflist");
    let text = std::fs::read_to_string(&path)?;
    let mut list: serde_json::Value = serde_json::from_str(&text)?;
    list["cniVersion"] = "1.1.0".into();
    std::fs::write(&path, list.to_string())?;
    Ok(())
}

#[test]
fn add_check_status_del_and_gc_through_libcni() -> Result<()> {
    let tool = skip_unless!(tools::go_tool("cnitool"));
    let cluster = Cluster::start(&Spec {
        nodes: 1,
        ..Spec::default()
    })?;
    let member = cluster.member(0);
    at_newest(member)?;
    let pod = Netns::create(&netns::unique_name("pod"))?;
    let run = |verb: &str| -> Result<Output> {
        let output = cnitool(member, &tool, verb, &pod)?;
        assert!(
            output.status.success(),
            "{verb}: {}{}",
            output.stdout_text(),
            output.stderr_text()
        );
        Ok(output)
    };
    run("status")?;
    let added = run("add")?;
    let result: serde_json::Value = serde_json::from_slice(&added.stdout)?;
    assert_eq!(result["cniVersion"], "1.1.0");
    let address = result["ips"][0]["address"].as_str().expect("an address");
    let view = cni_test_harness::observe::View::of(&pod);
    assert_eq!(view.addresses_of("eth0")?, [address]);
    run("check")?;
    run("del")?;
    // The daemon deletes what DEL has quiesced.
    wait::until_true("the interface is gone", Duration::from_secs(5), || {
        Ok(view.link_names()?.is_empty())
    })?;
    run("del")?;
    // libcni's GC first deletes what it has cached, then tells the plugin that nothing is valid.
    run("add")?;
    run("gc")?;
    let networks = member.node().make_dir("cni/networks")?.join("cbr0");
    let left: Vec<_> = std::fs::read_dir(networks)?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("10."))
        .collect();
    assert_eq!(left, Vec::<String>::new());
    Ok(())
}

#[test]
fn status_says_50_while_there_is_no_lease() -> Result<()> {
    let tool = skip_unless!(tools::go_tool("cnitool"));
    let mut cluster = Cluster::start(&Spec {
        nodes: 1,
        ..Spec::default()
    })?;
    // A running twilld would write the file again.
    cluster.member_mut(0).stop_daemon(DEADLINE)?;
    let member = cluster.member(0);
    at_newest(member)?;
    std::fs::remove_file(member.subnet_file()?)?;
    let pod = Netns::create(&netns::unique_name("pod"))?;
    let output = cnitool(member, &tool, "status", &pod)?;
    assert!(!output.status.success());
    let said = output.stdout_text() + &output.stderr_text();
    assert!(said.contains("subnet.env"), "{said}");
    Ok(())
}
