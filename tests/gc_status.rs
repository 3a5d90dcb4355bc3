//! GC and STATUS of CNI 1.1.0, by the real binary. (The names begin with the IDs of
//! tests/requirements.md.)

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use cni_test_harness::netconf::NetworkList;
use cni_test_harness::pod::Pod;
use cni_test_harness::runtime::{Call, PluginFailure};
use cni_test_harness::suite::{BRIDGE, Plugins, Site};
use serde_json::{Value, json};

const KEYS: [&str; 2] = ["cni.dev/valid-attachments", "cni.dev/attachments"];

fn site(subnet: &str) -> Result<Site> {
    Site::with(&Plugins::twill()?, "1.1.0", subnet)
}

/// A GC whose config has these keys besides; exit code and stderr are looked at by the caller.
fn gc(site: &Site, more: &[(&str, Value)]) -> Result<Call> {
    let nobody = cni_test_harness::runtime::Attachment {
        ifname: String::new(),
        ..cni_test_harness::runtime::Attachment::eth0("", "".as_ref())
    };
    site.runtime().compose("GC", site.list(), 0, &nobody, more)
}

fn collect(site: &Site, more: &[(&str, Value)]) -> Result<String> {
    let output = site.runtime().call(&gc(site, more)?)?;
    let said = output.stdout_text();
    ensure!(output.status.success() && said.is_empty(), "{said}");
    Ok(output.stderr_text())
}

fn valid(pods: &[&Pod]) -> Value {
    let one = |pod: &&Pod| {
        let attachment = pod.attachment();
        json!({"containerID": attachment.container_id, "ifname": attachment.ifname})
    };
    pods.iter().map(one).collect()
}

/// The addresses that have a reservation, and the veth pairs' ends on the node.
fn standing(site: &Site) -> Result<(usize, usize)> {
    let dir = site.ipam_dir().join("cbr0");
    let names = std::fs::read_dir(&dir).with_context(|| format!("read {}", dir.display()))?;
    let is_address = |name: &str| name.parse::<std::net::IpAddr>().is_ok();
    let addresses = names.filter(|entry| {
        let name = entry.as_ref().map(|entry| entry.file_name());
        name.is_ok_and(|name| name.to_str().is_some_and(is_address))
    });
    let mut links = site.node().view().link_names()?;
    links.retain(|name| name != BRIDGE);
    Ok((addresses.count(), links.len()))
}

#[test]
fn gc1_either_key_names_the_valid_attachments() -> Result<()> {
    for keys in [&KEYS[..], &KEYS[..1], &KEYS[1..]] {
        let site = site("10.77.0.0/24")?;
        let (lost, stays) = (pod(&site)?, pod(&site)?);
        let list = valid(&[&stays]);
        let more: Vec<_> = keys.iter().map(|key| (*key, list.clone())).collect();
        collect(&site, &more)?;
        ensure!(
            standing(&site)? == (1, 1),
            "{keys:?}: {:?}",
            standing(&site)?
        );
        stays.check()?;
        ensure!(lost.check().is_err());
    }
    Ok(())
}

#[test]
fn gc3_null_and_empty_mean_that_nothing_is_valid() -> Result<()> {
    for key in KEYS {
        for nothing in [Value::Null, json!([])] {
            let site = site("10.77.0.0/24")?;
            let _pods = (pod(&site)?, pod(&site)?);
            collect(&site, &[(key, nothing.clone())])?;
            ensure!(
                standing(&site)? == (0, 0),
                "{key}: {nothing}: {:?}",
                standing(&site)?
            );
            // What is everybody's stays.
            ensure!(site.node().view().link(BRIDGE)?.is_some());
        }
    }
    Ok(())
}

#[test]
fn gc3_an_absent_list_says_nothing_and_nothing_is_collected() -> Result<()> {
    let site = site("10.77.0.0/24")?;
    let pods = [pod(&site)?, pod(&site)?];
    let said = collect(&site, &[])?;
    ensure!(said.contains("no list of valid attachments"), "{said}");
    ensure!(standing(&site)? == (2, 2));
    pods.iter().try_for_each(Pod::check)
}

#[test]
fn gc1_a_list_that_is_none_is_code_6_and_nothing_is_collected() -> Result<()> {
    let site = site("10.77.0.0/24")?;
    let _pod = pod(&site)?;
    let lists = [
        json!({}),
        json!("x"),
        json!([7]),
        json!([{"containerID": "a"}]),
        json!([{"containerID": 5, "ifname": "eth0"}]),
    ];
    for key in KEYS {
        for list in &lists {
            let output = site.runtime().call(&gc(&site, &[(key, list.clone())])?)?;
            let said: Value = serde_json::from_slice(&output.stdout)?;
            ensure!(output.code() == 1 && said["code"] == 6, "{list}: {said}");
            ensure!(
                said["msg"].as_str().is_some_and(|msg| msg.contains(key)),
                "{said}"
            );
        }
    }
    ensure!(standing(&site)? == (1, 1));
    Ok(())
}

#[test]
fn gc2_another_network_of_the_node_is_left_alone() -> Result<()> {
    let site = site("10.77.0.0/24")?;
    let mut plugin = site.list().plugins[0].clone();
    plugin["delegate"]["bridge"] = json!("other0");
    let list = json!({"name": "other", "cniVersion": "1.1.0", "plugins": [plugin]});
    let list = Arc::new(NetworkList::parse(list)?);
    let (lost, other) = (pod(&site)?, Pod::new(site.runtime(), &list)?);
    collect(&site, &[(KEYS[0], json!([]))])?;
    ensure!(lost.check().is_err());
    other.check()
}

#[test]
fn gc2_what_hostile_names_were_left_harms_nothing_outside() -> Result<()> {
    let site = site("10.77.0.0/24")?;
    let _pod = pod(&site)?;
    let outside = site.node().dir().join("outside");
    std::fs::write(&outside, "stays")?;
    let dir = site.ipam_dir().join("cbr0");
    std::fs::write(dir.join("10.77.0.77"), "../../outside\r\neth0")?;
    std::fs::write(dir.join("10.77.0.78"), "a\0b\r\n../eth0")?;
    collect(&site, &[(KEYS[0], json!([]))])?;
    ensure!(standing(&site)? == (0, 0), "{:?}", standing(&site)?);
    ensure!(std::fs::read_to_string(&outside)? == "stays");
    Ok(())
}

fn pod(site: &Site) -> Result<Pod> {
    Pod::new(site.runtime(), site.list())
}

fn status(site: &Site) -> Result<PluginFailure> {
    let error = site.runtime().status(site.list()).err();
    let error = error.context("STATUS said yes")?;
    PluginFailure::of(&error).cloned().context(error)
}

#[test]
fn s1_no_subnet_torn_subnet_and_full_range_are_code_50_and_say_so() -> Result<()> {
    let site = site("10.77.0.0/29")?;
    site.runtime().status(site.list())?;
    let file = site.subnet_file();
    let right = std::fs::read_to_string(&file)?;
    let torn = right.replace("FLANNEL_MTU", "FLANNEL_MT");
    for (text, said) in [
        (None, "subnet.env"),
        (Some(""), "FLANNEL_"),
        (Some(&torn), "FLANNEL_MTU"),
    ] {
        match text {
            None => std::fs::remove_file(&file)?,
            Some(text) => std::fs::write(&file, text)?,
        }
        let failure = status(&site)?;
        ensure!(
            failure.code == Some(50) && failure.msg.contains(said),
            "{failure}"
        );
    }
    std::fs::write(&file, right)?;
    let mut pods = (0..5).map(|_| pod(&site)).collect::<Result<Vec<_>>>()?;
    let failure = status(&site)?;
    ensure!(
        failure.code == Some(50) && failure.msg.contains("no IP addresses"),
        "{failure}"
    );
    pods.remove(2).delete()?;
    site.runtime().status(site.list())
}

#[test]
fn s3_status_needs_no_container_and_changes_nothing() -> Result<()> {
    let site = site("10.77.0.0/24")?;
    let mut call = gc(&site, &[])?;
    let keep = |name: &str| !name.starts_with("CNI_") || name == "CNI_COMMAND";
    call.env.retain(|(name, _)| keep(name));
    for (name, value) in &mut call.env {
        if name == "CNI_COMMAND" {
            "STATUS".clone_into(value);
        }
    }
    for _ in 0..3 {
        let output = site.runtime().call(&call)?;
        ensure!(output.status.success() && output.stdout.is_empty());
    }
    ensure!(site.node().view().link_names()?.is_empty());
    ensure!(!site.ipam_dir().exists());
    Ok(())
}
