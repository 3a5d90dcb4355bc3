//! What a runtime asks for one pod, by which source and in which spelling; and which namespace it
//! means. By the real binary. (The names begin with the IDs of tests/requirements.md.)

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use cni_test_harness::netns::Netns;
use cni_test_harness::observe::View;
use cni_test_harness::process::Output;
use cni_test_harness::runtime::{Attachment, Call};
use cni_test_harness::suite::{Plugins, Site};
use serde_json::{Value, json};

/// A node, and a pod that is not attached yet.
struct Stage {
    site: Site,
    pod: Netns,
}

impl Stage {
    fn new() -> Result<Self> {
        Ok(Self {
            site: Site::with(&Plugins::twill()?, "1.1.0", "10.77.0.0/24")?,
            pod: Netns::new("pod")?,
        })
    }

    /// A call for the pod, with CNI_ARGS and with keys put over the config's.
    fn call(&self, verb: &str, args: &str, over: Value) -> Result<Call> {
        let attachment = Attachment::eth0(self.pod.name(), &self.pod.path());
        let mut call =
            (self.site.runtime()).compose(verb, self.site.list(), 0, &attachment, &[])?;
        set(&mut call, "CNI_ARGS", args);
        let mut config: Value = serde_json::from_slice(&call.stdin)?;
        let into = config.as_object_mut().context("an object")?;
        into.extend(over.as_object().context("an object")?.clone());
        call.stdin = config.to_string().into_bytes();
        Ok(call)
    }

    fn run(&self, call: &Call) -> Result<Output> {
        self.site.runtime().call(call)
    }

    fn ok(&self, call: &Call) -> Result<Value> {
        let output = self.run(call)?;
        let said = output.stdout_text();
        ensure!(output.status.success(), "{said}");
        Ok(serde_json::from_slice(&output.stdout).unwrap_or_default())
    }

    fn refused(&self, call: &Call) -> Result<(i64, String)> {
        let output = self.run(call)?;
        let said = output.stdout_text();
        ensure!(output.code() == 1, "exit {}: {said}", output.code());
        let document: Value = serde_json::from_slice(&output.stdout)?;
        Ok((document["code"].as_i64().context("a code")?, said))
    }

    fn reserved(&self) -> usize {
        let names = std::fs::read_dir(self.site.ipam_dir().join("cbr0"));
        let is_address = |name: &str| name.parse::<std::net::IpAddr>().is_ok();
        names.map_or(0, |names| {
            let names = names.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
            names.filter(|name| is_address(name)).count()
        })
    }

    fn untouched(&self) -> Result<()> {
        let links = self.site.node().view().link_names()?;
        ensure!(links.is_empty(), "links: {links:?}");
        ensure!(self.reserved() == 0, "{} reserved", self.reserved());
        Ok(())
    }
}

fn set(call: &mut Call, name: &str, value: &str) {
    call.env.retain(|(key, _)| key != name);
    call.env.push((name.to_owned(), value.to_owned()));
}

fn mac(last: u8) -> String {
    format!("02:00:00:00:00:{last:02x}")
}

#[test]
fn p10_the_mac_is_the_capabilitys_then_the_args_then_the_variables() -> Result<()> {
    let variable = format!("IgnoreUnknown=1;MAC={}", mac(1));
    let args = json!({"cni": {"mac": mac(2)}});
    let capability = json!({"mac": mac(3)});
    for (over, expected) in [
        (json!({}), mac(1)),
        (json!({"args": args}), mac(2)),
        (json!({"args": args, "runtimeConfig": capability}), mac(3)),
        (json!({"runtimeConfig": capability}), mac(3)),
    ] {
        let stage = Stage::new()?;
        let result = stage.ok(&stage.call("ADD", &variable, over.clone())?)?;
        let has = View::of(&stage.pod).mac("eth0")?;
        ensure!(has == expected, "{over}: {has}, not {expected}");
        ensure!(
            result["interfaces"][2]["mac"] == expected.as_str(),
            "{result}"
        );
        stage.ok(&stage.call("DEL", &variable, over)?)?;
    }
    Ok(())
}

#[test]
fn p10_an_address_may_be_asked_for_by_every_source() -> Result<()> {
    for (args, over) in [
        ("IP=10.77.0.9", json!({})),
        (
            "IP=10.77.0.9/24;K8S_POD_NAME=p;IgnoreUnknown=true",
            json!({}),
        ),
        ("", json!({"args": {"cni": {"ips": ["10.77.0.9"]}}})),
        ("", json!({"ARGS": {"CNI": {"IPs": ["10.77.0.9/24"]}}})),
        ("", json!({"runtimeConfig": {"ips": ["10.77.0.9/24"]}})),
        (
            "IP=10.77.0.9",
            json!({"runtimeConfig": {"ips": ["10.77.0.9"]}}),
        ),
    ] {
        let stage = Stage::new()?;
        let result = stage.ok(&stage.call("ADD", args, over.clone())?)?;
        let address = &result["ips"][0]["address"];
        ensure!(address == "10.77.0.9/24", "{args:?} {over}: {address}");
        stage.ok(&stage.call("DEL", args, over)?)?;
        ensure!(stage.reserved() == 0);
    }
    Ok(())
}

#[test]
fn p10_bad_arguments_are_refused_by_add_and_do_not_stop_del() -> Result<()> {
    let stage = Stage::new()?;
    for (args, named) in [
        ("IgnoreUnknown=1;", "invalid pair"),
        ("A", "invalid pair"),
        ("A=b=c", "invalid pair"),
        ("Unknown=1", "Unknown=1"),
        ("ip=10.77.0.9", "ip=10.77.0.9"),
        ("IP=x", "IP=x"),
        ("IP=10.77.0.9;IgnoreUnknown=yes", "IgnoreUnknown=yes"),
        ("MAC=garbage", "garbage"),
        ("IP=10.77.0.9\n", "invalid"),
    ] {
        let (code, said) = stage.refused(&stage.call("ADD", args, json!({}))?)?;
        ensure!(code == 4 || code == 7, "{args}: {said}");
        ensure!(said.contains(named), "{args}: {said}");
        stage.untouched()?;
    }
    stage.ok(&stage.call("ADD", "", json!({}))?)?;
    stage.ok(&stage.call("DEL", "A=b=c;IP=x;;", json!({}))?)?;
    ensure!(stage.reserved() == 0);
    Ok(())
}

#[test]
fn p9_keys_match_in_any_case_and_null_is_absent() -> Result<()> {
    for over in [
        json!({"runtimeConfig": {
            "portMappings": [{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""}],
            "bandwidth": {"IngressRate": 8_000_000, "IngressBurst": 800_000}}}),
        json!({"RuntimeConfig": {
            "portmappings": [{"hostport": 8080, "CONTAINERPORT": 80, "protocol": "tcp", "hostIP": null}],
            "bandWidth": {"ingressRate": 8_000_000, "INGRESSBURST": 800_000, "egressRate": null}}}),
        json!({"RUNTIMECONFIG": {
            "PortMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "x": {}}],
            "Bandwidth": {"ingressrate": 8_000_000, "ingressburst": 800_000, "unknown": []},
            "dns": null, "ips": null}, "Delegate": null}),
    ] {
        let stage = Stage::new()?;
        // The site's own `delegate` stays where the case has none.
        stage.ok(&stage.call("ADD", "", over.clone())?)?;
        let node = stage.site.node();
        ensure!(
            node.view().nft_text()?.contains("8080"),
            "{over}: no host port"
        );
        let qdiscs = node.exec("tc", &["qdisc"])?.stdout_text();
        ensure!(qdiscs.contains("tbf"), "{over}: {qdiscs}");
        stage.ok(&stage.call("DEL", "", over)?)?;
        ensure!(!node.view().nft_text()?.contains("8080"));
    }
    Ok(())
}

#[test]
fn p11_the_nodes_own_namespace_is_refused_unless_that_is_wanted() -> Result<()> {
    let stage = Stage::new()?;
    let own = stage.site.node().netns().path();
    let of_node = |verb: &str| -> Result<Call> {
        let mut call = stage.call(verb, "", json!({}))?;
        set(&mut call, "CNI_NETNS", &own.to_string_lossy());
        Ok(call)
    };
    for wanted in ["", "0", "false", "yes"] {
        let mut call = of_node("ADD")?;
        set(&mut call, "CNI_NETNS_OVERRIDE", wanted);
        let (code, said) = stage.refused(&call)?;
        ensure!(code == 8, "{wanted:?}: {said}");
        stage.untouched()?;
    }
    // DEL too: an interface of the node that happens to be called eth0 is not the pod's.
    let node = stage.site.node().netns();
    node.ip(&[
        "link", "add", "eth0", "type", "veth", "peer", "name", "other0",
    ])?;
    ensure!(stage.refused(&of_node("DEL")?)?.0 == 8);
    ensure!(
        stage.site.node().view().link("eth0")?.is_some(),
        "the node's eth0 is gone"
    );
    node.ip(&["link", "del", "eth0"])?;
    for wanted in ["1", "TRUE", "true"] {
        let mut add = of_node("ADD")?;
        set(&mut add, "CNI_NETNS_OVERRIDE", wanted);
        stage.ok(&add)?;
        ensure!(stage.site.node().view().link("eth0")?.is_some(), "{wanted}");
        let mut del = of_node("DEL")?;
        set(&mut del, "CNI_NETNS_OVERRIDE", wanted);
        stage.ok(&del)?;
        ensure!(stage.site.node().view().link("eth0")?.is_none(), "{wanted}");
    }
    Ok(())
}

/// Paths that are no namespace, each with what it is.
fn no_namespaces(dir: &Path) -> Result<Vec<(&'static str, PathBuf)>> {
    let file = dir.join("a-file");
    std::fs::write(&file, "x")?;
    let empty = dir.join("an-empty-file");
    std::fs::write(&empty, "")?;
    Ok(vec![
        ("nothing", dir.join("nothing")),
        ("below a file", file.join("below")),
        ("a regular file", file),
        ("an empty file", empty),
        ("a folder", dir.to_owned()),
        ("a device", "/dev/null".into()),
        ("a process that is gone", "/proc/4194304/ns/net".into()),
        ("a name too long", format!("/{}", "n".repeat(5000)).into()),
    ])
}

#[test]
fn p11_d2_what_is_no_namespace_is_refused_by_add_and_gone_for_del() -> Result<()> {
    let stage = Stage::new()?;
    for (what, path) in no_namespaces(stage.site.node().dir())? {
        let of_path = |verb: &str| -> Result<Call> {
            let mut call = stage.call(verb, "", json!({}))?;
            set(&mut call, "CNI_NETNS", &path.to_string_lossy());
            Ok(call)
        };
        let (code, said) = stage.refused(&of_path("ADD")?)?;
        ensure!(
            said.contains("namespace") || said.contains("CNI_NETNS"),
            "{what}: {code} {said}"
        );
        stage.untouched()?;
        // What an ADD made is cleared all the same.
        stage.ok(&stage.call("ADD", "", json!({}))?)?;
        let gone = stage.ok(&of_path("DEL")?);
        gone.with_context(|| format!("DEL, where CNI_NETNS is {what}"))?;
        ensure!(stage.reserved() == 0, "{what}: still reserved");
        let links = stage.site.node().view().link_names()?;
        ensure!(links == ["cni0"], "{what}: {links:?}");
        stage.site.node().netns().ip(&["link", "del", "cni0"])?;
    }
    Ok(())
}

#[test]
fn p13_del_clears_what_add_made_with_another_config() -> Result<()> {
    for over in [
        json!({"delegate": {"bridge": "other0"}}),
        json!({"delegate": {"bridge": "a/b", "mtu": "x", "vlan": 9999}}),
        json!({"subnetFile": "/nowhere", "delegate": []}),
        json!({"prevResult": {"cniVersion": "0.1.0", "interfaces": 5}}),
        json!({"runtimeConfig": {"portMappings": [{"hostPort": -1}]}}),
    ] {
        let stage = Stage::new()?;
        stage.ok(&stage.call("ADD", "", json!({}))?)?;
        let gone = stage.ok(&stage.call("DEL", "", over.clone())?);
        gone.with_context(|| over.to_string())?;
        ensure!(stage.reserved() == 0, "{over}: still reserved");
        let links = stage.site.node().view().link_names()?;
        ensure!(links == ["cni0"], "{over}: {links:?}");
    }
    Ok(())
}

#[test]
fn c2_check_tolerates_what_later_plugins_change() -> Result<()> {
    let stage = Stage::new()?;
    let mut result = stage.ok(&stage.call("ADD", "", json!({}))?)?;
    // tuning: another hardware address, which is in the result; sbr and the operator: more routes.
    stage.pod.ip(&["link", "set", "eth0", "address", &mac(9)])?;
    result["interfaces"][2]["mac"] = json!(mac(9));
    stage
        .pod
        .ip(&["route", "add", "10.99.0.0/16", "via", "10.77.0.1"])?;
    stage
        .pod
        .ip(&["addr", "add", "10.98.0.1/32", "dev", "eth0"])?;
    stage.pod.ip(&["link", "set", "eth0", "txqueuelen", "17"])?;
    // bandwidth and others: more interfaces.
    let more = json!({"name": "bwp0123456789ab", "mac": mac(8)});
    result["interfaces"]
        .as_array_mut()
        .context("a list")?
        .push(more);
    stage.ok(&stage.call("CHECK", "", json!({"prevResult": result}))?)?;
    Ok(())
}

#[test]
fn c1_check_needs_a_result_and_one_that_it_can_read() -> Result<()> {
    let stage = Stage::new()?;
    let result = stage.ok(&stage.call("ADD", "", json!({}))?)?;
    let with = |key: &str, value: Value| {
        let mut result = result.clone();
        result[key] = value;
        json!({"prevResult": result})
    };
    for over in [
        json!({}),
        json!({"prevResult": null}),
        json!({"prevResult": []}),
        with("cniVersion", json!("0.4.0")),
        with("cniVersion", json!(7)),
        with("interfaces", json!("x")),
        with("interfaces", json!([])),
        with("ips", json!([{"address": "10.77.0.200/24"}])),
        with("ips", json!([{"address": "x"}])),
        with(
            "routes",
            json!([{"dst": "10.200.0.0/16", "gw": "10.77.0.1"}]),
        ),
    ] {
        let (code, said) = stage.refused(&stage.call("CHECK", "", over.clone())?)?;
        ensure!(code > 0, "{over}: {said}");
    }
    stage.ok(&stage.call("CHECK", "", json!({"prevResult": result}))?)?;
    Ok(())
}

#[test]
fn traceparent_is_logged_and_nothing_that_is_none() -> Result<()> {
    let stage = Stage::new()?;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let huge = "a".repeat(10_000);
    for (value, logged) in [
        (trace, true),
        ("", false),
        ("x\ny", false),
        (huge.as_str(), false),
    ] {
        for verb in ["ADD", "DEL", "STATUS"] {
            let mut call = stage.call(verb, "", json!({}))?;
            set(&mut call, "TRACEPARENT", value);
            let said = stage.run(&call)?.stderr_text();
            ensure!(
                said.contains("traceparent=") == logged,
                "{verb} {value:?}: {said}"
            );
        }
    }
    Ok(())
}
