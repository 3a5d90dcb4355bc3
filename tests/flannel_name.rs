//! Installed as `flannel`, the plugin serves kube-flannel's stock conflist unchanged, with the
//! upstream portmap chained behind it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use cni_test_harness::cluster::{Cluster, Member, Spec};
use cni_test_harness::netconf::NetworkList;
use cni_test_harness::pod::Pod;
use cni_test_harness::runtime::Runtime;
use cni_test_harness::{skip_unless, tools};
use serde_json::{Map, Value, json};

/// A folder with `flannel` in it, as an operator installs it.
fn bin_dir(member: &Member) -> Result<PathBuf> {
    let dir = member.node().make_dir("bin")?;
    std::fs::copy(tools::built("twill")?, dir.join("flannel"))?;
    Ok(dir)
}

/// kube-flannel's list; only the paths are the node's own.
fn stock(member: &Member) -> Result<Value> {
    Ok(json!({
        "name": "cbr0",
        "cniVersion": "0.3.1",
        "plugins": [
            {
                "type": "flannel",
                "subnetFile": member.subnet_file()?,
                "dataDir": member.node().make_dir("cni/scratch")?,
                "ipam": {"dataDir": member.node().make_dir("cni/networks")?},
                "delegate": {"hairpinMode": true, "isDefaultGateway": true}
            },
            {"type": "portmap", "capabilities": {"portMappings": true}}
        ]
    }))
}

#[test]
fn the_stock_conflist_works_unchanged() -> Result<()> {
    let portmap = skip_unless!(tools::go_tool("portmap"));
    let cluster = Cluster::start(&Spec::default())?;
    let member = cluster.member(0);
    let dirs = [
        bin_dir(member)?,
        portmap.parent().expect("a folder").to_owned(),
    ];
    let runtime = Arc::new(Runtime::new(member.node().netns(), &dirs)?);
    let list = Arc::new(NetworkList::parse(stock(member)?)?);
    let pod = Pod::new(&runtime, &list)?;
    let far = cluster.pod(1)?;
    assert!(pod.ping(&far, 2, Duration::from_secs(2))?.complete());

    let result = &pod.added().result;
    let id = pod.attachment().container_id.clone();
    let gateway = member.subnet()?.addr();
    assert_eq!(result["cniVersion"], "0.3.1");
    assert_eq!(result["ips"][0]["version"], "4");
    assert_eq!(result["ips"][0]["interface"], 2);
    assert_eq!(result["ips"][0]["gateway"], gateway.to_string());
    assert_eq!(
        result["routes"],
        json!([{"dst": "10.244.0.0/16"}, {"dst": "0.0.0.0/0", "gw": gateway.to_string()}])
    );
    assert_eq!(result["dns"], json!({}));
    assert_eq!(result["interfaces"][0]["name"], "cni0");

    let ip = pod.ip()?;
    let networks = member.node().make_dir("cni/networks")?.join("cbr0");
    let reservation = std::fs::read_to_string(networks.join(ip.to_string()))?;
    assert_eq!(reservation, format!("{id}\r\neth0"));
    let last = std::fs::read_to_string(networks.join("last_reserved_ip.0"))?;
    assert_eq!(last, ip.to_string());
    pod.delete()?;
    assert!(!networks.join(ip.to_string()).exists());
    Ok(())
}

#[test]
fn the_conflists_in_conf_are_what_the_runtime_reads() -> Result<()> {
    for name in ["10-twill.conflist", "10-flannel.conflist"] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("conf")
            .join(name);
        let list = NetworkList::load(&path)?;
        assert_eq!(list.name, "cbr0", "{name}");
        assert!(!list.plugins.is_empty(), "{name}");
        // Whichever plugin it is, somebody must be told about host ports.
        let told = |plugin: &Map<String, Value>| plugin["capabilities"]["portMappings"] == true;
        let declares = |plugin: &Map<String, Value>| plugin.contains_key("capabilities");
        let mut declaring = list.plugins.iter().filter(|plugin| declares(plugin));
        assert!(declaring.any(told), "{name}");
        let own = &list.plugins[0];
        let expected = json!({"portMappings": true, "bandwidth": true});
        match name {
            "10-twill.conflist" => assert_eq!(own["capabilities"], expected),
            _ => assert!(!declares(own), "portmap behind would do it twice"),
        }
    }
    Ok(())
}
