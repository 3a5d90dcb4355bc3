//! Bad input changes nothing and loses nothing, and the answer names the field and the file.

use std::time::Duration;

use anyhow::Result;
use cni_test_harness::cluster::{Cluster, READY_DEADLINE, Spec};
use cni_test_harness::netns::{self, Netns};
use cni_test_harness::runtime::Attachment;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(5);

/// What the plugin answers to a raw ADD of these bytes: the code, and message with details.
fn add(cluster: &Cluster, pod: &Netns, stdin: &[u8]) -> Result<(i64, String)> {
    let member = cluster.member(0);
    let attachment = Attachment::eth0(pod.name(), &pod.path());
    let mut call = member
        .runtime()
        .compose("ADD", member.list(), 0, &attachment, &[])?;
    call.stdin = stdin.to_vec();
    let output = member.runtime().call(&call)?;
    assert!(!output.status.success(), "it was accepted");
    // One JSON document and nothing else.
    let answer: Value = serde_json::from_slice(&output.stdout)?;
    let text = format!("{} {}", answer["msg"], answer["details"]);
    Ok((answer["code"].as_i64().expect("a code"), text))
}

#[test]
fn a_bad_config_is_refused_by_name_and_makes_nothing() -> Result<()> {
    let cluster = Cluster::start(&Spec {
        nodes: 1,
        ..Spec::default()
    })?;
    let member = cluster.member(0);
    let pod = Netns::create(&netns::unique_name("pod"))?;
    let before = member.view().link_names()?;
    let good: Value = serde_json::from_slice(
        &member
            .runtime()
            .compose(
                "ADD",
                member.list(),
                0,
                &Attachment::eth0("x", &pod.path()),
                &[],
            )?
            .stdin,
    )?;
    let with = |key: &str, value: Value| {
        let mut conf = good.clone();
        conf[key] = value;
        conf.to_string().into_bytes()
    };
    let env = member.subnet_file()?;
    let cases: Vec<(Vec<u8>, i64, &str)> = vec![
        (b"".to_vec(), 6, ""),
        (b"[]".to_vec(), 6, ""),
        (b"{".to_vec(), 6, ""),
        (with("name", json!("")), 7, "name"),
        (with("name", json!("../escape")), 7, "name"),
        (with("cniVersion", json!("9.9.9")), 1, "9.9.9"),
        (with("cniVersion", json!(7)), 6, "cniVersion"),
        (with("delegate", json!({"mtu": "1500"})), 0, "mtu"),
        (with("delegate", json!({"name": "x"})), 0, "name"),
        (with("delegate", json!({"ipam": {}})), 0, "ipam"),
        (with("delegate", json!({"bridge": "a/b"})), 0, "bridge"),
        (
            with("subnetFile", json!("/nowhere/subnet.env")),
            11,
            "/nowhere/subnet.env",
        ),
        (with("subnetFile", json!(5)), 0, "subnetFile"),
    ];
    for (stdin, code, named) in cases {
        let shown = String::from_utf8_lossy(&stdin).into_owned();
        let (got, text) = add(&cluster, &pod, &stdin)?;
        assert!(code == 0 || code == got, "{shown}: code {got}: {text}");
        assert!(
            text.contains(named),
            "{shown}: {text} does not name {named}"
        );
    }
    // subnet.env itself.
    let right = std::fs::read_to_string(&env)?;
    for (text, named) in [
        ("", "FLANNEL_"),
        ("FLANNEL_NETWORK=10.244.0.0/16\n", "FLANNEL_SUBNET"),
        (&right.replace("FLANNEL_MTU=1450", "FLANNEL_MTU=x"), "MTU"),
        (&right.replace("/24", ""), "SUBNET"),
    ] {
        std::fs::write(&env, text)?;
        let (code, said) = add(&cluster, &pod, good.to_string().as_bytes())?;
        assert_eq!(code, 11, "{said}");
        assert!(
            said.contains(named) && said.contains("subnet.env"),
            "{said}"
        );
    }
    std::fs::write(&env, right)?;
    assert_eq!(member.view().link_names()?, before);
    let networks = member.node().make_dir("cni/networks")?.join("cbr0");
    let reserved = std::fs::read_dir(&networks).map_or(0, |entries| {
        entries
            .filter(|e| {
                e.as_ref()
                    .is_ok_and(|e| e.file_name().to_string_lossy().starts_with("10."))
            })
            .count()
    });
    assert_eq!(reserved, 0);
    Ok(())
}

#[test]
fn a_bad_net_conf_is_named_and_a_right_one_is_taken_up_without_a_restart() -> Result<()> {
    let name = netns::unique_name("badconf");
    let dir = std::env::temp_dir().join(&name);
    let mut cluster = Cluster::lay_out(
        &Spec {
            nodes: 1,
            ..Spec::default()
        },
        &name,
        &dir,
    )?;
    let config = cluster.store_dir().join("config");
    let right = std::fs::read(&config)?;
    for (text, named) in [
        ("{", "config"),
        (r#"{"Network":"10.244.0.0"}"#, "Network"),
        (
            r#"{"Network":"10.244.0.0/16","SubnetLen":"24"}"#,
            "SubnetLen",
        ),
        (r#"{"Network":"10.244.0.0/16","SubnetLen":17}"#, "SubnetLen"),
        (
            r#"{"Network":"10.244.0.0/16","SubnetMin":"10.9.0.0"}"#,
            "SubnetMin",
        ),
        (
            r#"{"Network":"10.244.0.0/16","Backend":{"Type":"teleport"}}"#,
            "teleport",
        ),
        (
            r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","Port":"8472"}}"#,
            "Port",
        ),
        (r#"{"Network":"10.244.0.0/16","Backend":null}"#, "Backend"),
    ] {
        std::fs::write(&config, text)?;
        let member = cluster.member_mut(0);
        let log = member.node().dir().join("log/twilld.log");
        let seen = std::fs::metadata(&log).map_or(0, |m| m.len()) as usize;
        member.start_daemon()?;
        member.wait_for(&format!("{text} is refused"), SOON, |_| {
            let said = std::fs::read_to_string(&log)?;
            Ok(said.get(seen..).is_some_and(|said| said.contains(named)))
        })?;
        assert!(!member.subnet_file()?.exists(), "{text}");
        assert_eq!(member.view().link("flannel.1")?, None, "{text}");
        member.kill_daemon();
        let leases = std::fs::read_dir(cluster.store_dir().join("subnets"));
        assert_eq!(leases.map_or(0, Iterator::count), 0, "{text}");
        assert_eq!(
            std::fs::read_to_string(&config)?,
            text,
            "the store is not touched"
        );
    }
    std::fs::write(&config, "{")?;
    cluster.member_mut(0).start_daemon()?;
    std::fs::write(&config, right)?;
    cluster.member_mut(0).wait_ready(READY_DEADLINE)
}
