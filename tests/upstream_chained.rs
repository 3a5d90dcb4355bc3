//! Upstream's own plugins in one list with twill: each finds in twill's result what it needs, its
//! work is seen, CHECK passes, and DEL leaves nothing of it. With a bridge and without.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use cni_test_harness::cluster::{Cluster, Member, Spec};
use cni_test_harness::netconf::NetworkList;
use cni_test_harness::netns::Netns;
use cni_test_harness::observe::View;
use cni_test_harness::process;
use cni_test_harness::runtime::{Added, Attachment, PluginFailure, Runtime};
use cni_test_harness::{skip_unless, tools, wait};
use serde_json::{Value, json};

const HOST_PORT: u16 = 8080;
const POD_PORT: u16 = 80;
const ANSWER: &str = "the pod";
const WAIT: Duration = Duration::from_secs(2);
/// What is chained behind a network; each needs a result to start from.
const BEHIND: [&str; 5] = ["portmap", "tuning", "firewall", "sbr", "bandwidth"];
const MODES: [&str; 2] = ["bridge", "routed"];

/// A runtime that finds twill, and of everything else upstream's.
fn runtime(member: &Member) -> Result<Runtime, tools::Missing> {
    let path = tools::go_plugin_path(&[&BEHIND[..], &["loopback"]].concat())?;
    let mut dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let wrong = |error: anyhow::Error| tools::Missing::new("a runtime", format!("{error:#}"));
    let twill = tools::built("twill").map_err(wrong)?;
    dirs.extend(twill.parent().map(PathBuf::from));
    Runtime::new(member.node().netns(), &dirs).map_err(wrong)
}

/// twill of a mode with plugins before and behind it.
fn list(member: &Member, mode: &str, before: &[Value], behind: &[Value]) -> Result<NetworkList> {
    let mut twill = Value::Object(member.list().plugins[0].clone());
    twill["delegate"] = json!({"mode": mode, "isDefaultGateway": true, "hairpinMode": true});
    let plugins: Vec<&Value> = before.iter().chain([&twill]).chain(behind).collect();
    NetworkList::parse(json!({"name": "cbr0", "cniVersion": "1.1.0", "plugins": plugins}))
}

/// An attached sandbox; what is left of it goes with the cluster.
struct Pod<'a> {
    runtime: &'a Runtime,
    list: NetworkList,
    attachment: Attachment,
    added: Added,
    netns: Netns,
}

impl<'a> Pod<'a> {
    fn attach(runtime: &'a Runtime, list: NetworkList, offered: Value) -> Result<Self> {
        let netns = Netns::new("pod")?;
        let mut attachment = Attachment::eth0(netns.name(), &netns.path());
        attachment.capability_args = offered.as_object().context("an object")?.clone();
        let added = runtime.add(&list, &attachment)?;
        Ok(Self {
            runtime,
            list,
            attachment,
            added,
            netns,
        })
    }

    fn check(&self) -> Result<()> {
        self.runtime.check(&self.list, &self.attachment)
    }

    fn del(&self) -> Result<()> {
        self.runtime.del(&self.list, &self.attachment)
    }

    fn serve(&self) -> Result<()> {
        let listener = self
            .netns
            .run(|| Ok(TcpListener::bind(("0.0.0.0", POD_PORT))?))?;
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let _ = stream.write_all(ANSWER.as_bytes());
            }
        });
        Ok(())
    }

    fn ip(&self) -> Result<String> {
        let first = self.added.ips().into_iter().next();
        Ok(first.context("an address")?.to_string())
    }

    /// Whether a node answers on its underlay's address; the pod names its own, by which sbr routes.
    fn reaches(&self, member: &Member) -> Result<bool> {
        let (ip, to) = (self.ip()?, member.place().v4.addr().to_string());
        let mut ping = self.netns.command("ping")?;
        ping.args(["-c", "2", "-i", "0.1", "-W", "2", "-I", &ip, &to]);
        Ok(process::run(&mut ping, b"", 10 * WAIT)?.status.success())
    }
}

fn ask(from: &Member, to: SocketAddr) -> Result<String> {
    from.node().netns().run(|| {
        let mut stream = TcpStream::connect_timeout(&to, WAIT)?;
        stream.set_read_timeout(Some(WAIT))?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })
}

fn said(member: &Member, program: &str, args: &[&str]) -> Result<String> {
    Ok(member.node().exec(program, args)?.stdout_text())
}

#[test]
fn portmap_behind_twill_leads_a_port_to_the_pod_until_del() -> Result<()> {
    let cluster = Cluster::start(&Spec::default())?;
    let [here, there] = [0, 1].map(|index| cluster.member(index));
    let runtime = skip_unless!(runtime(here));
    let to = SocketAddr::from((here.place().v4.addr(), HOST_PORT));
    let offered = json!({"portMappings":
        [{"hostPort": HOST_PORT, "containerPort": POD_PORT, "protocol": "tcp"}]});
    for mode in MODES {
        for backend in ["iptables", "nftables"] {
            let what = format!("{mode}, {backend}");
            let portmap = json!({"type": "portmap", "capabilities": {"portMappings": true},
                "snat": true, "backend": backend});
            let list = list(here, mode, &[], &[portmap])?;
            let pod = Pod::attach(&runtime, list, offered.clone()).context(what.clone())?;
            pod.serve()?;
            for from in [there, here] {
                let answer = ask(from, to).with_context(|| format!("{what}, from a node"))?;
                assert_eq!(answer, ANSWER, "{what}");
            }
            pod.check().context(what.clone())?;
            let ours = here.view().nft_text()?.contains("twill-hostports");
            assert!(!ours, "{what}: twill was not asked for ports");
            pod.del().context(what.clone())?;
            assert!(ask(there, to).is_err(), "{what}: after DEL");
        }
    }
    Ok(())
}

#[test]
fn tuning_behind_twill_changes_the_pod_and_check_knows() -> Result<()> {
    let cluster = Cluster::start(&Spec::default())?;
    let member = cluster.member(0);
    let runtime = skip_unless!(runtime(member));
    for mode in MODES {
        let data_dir = member.node().make_dir("tuning")?;
        let tuning = json!({"type": "tuning", "dataDir": data_dir, "mtu": 1300, "sysctl": {"net.core.somaxconn": "500"}});
        let list = list(member, mode, &[], &[tuning])?;
        let pod = Pod::attach(&runtime, list, json!({})).context(mode)?;
        let inside = View::of(&pod.netns);
        assert_eq!(inside.mtu("eth0")?, 1300, "{mode}");
        assert_eq!(pod.netns.sysctl("core/somaxconn")?, "500", "{mode}");
        assert!(
            pod.reaches(member)? && pod.reaches(cluster.member(1))?,
            "{mode}"
        );
        pod.check().context(mode)?;
        pod.del().context(mode)?;
    }
    Ok(())
}

#[test]
fn firewall_behind_twill_lets_the_pod_through_a_closed_node() -> Result<()> {
    let cluster = Cluster::start(&Spec::default())?;
    let [here, there] = [0, 1].map(|index| cluster.member(index));
    let runtime = skip_unless!(runtime(here));
    said(here, "iptables", &["-P", "FORWARD", "DROP"])?;
    for mode in MODES {
        let closed = Pod::attach(&runtime, list(here, mode, &[], &[])?, json!({}))?;
        assert!(!closed.reaches(there)?, "{mode}: the node is open");
        closed.del()?;
        let firewall = json!({"type": "firewall", "backend": "iptables"});
        let list = list(here, mode, &[], &[firewall])?;
        let pod = Pod::attach(&runtime, list, json!({})).context(mode)?;
        assert!(pod.reaches(there)?, "{mode}");
        pod.check().context(mode)?;
        let ip = pod.ip()?;
        assert!(said(here, "iptables", &["-S"])?.contains(&ip), "{mode}");
        pod.del().context(mode)?;
        assert!(!said(here, "iptables", &["-S"])?.contains(&ip), "{mode}");
    }
    Ok(())
}

#[test]
fn sbr_behind_twill_routes_by_source_and_pods_still_reach_each_other() -> Result<()> {
    let cluster = Cluster::start(&Spec::default())?;
    let [here, there] = [0, 1].map(|index| cluster.member(index));
    let runtime = skip_unless!(runtime(here));
    for mode in MODES {
        let list = list(here, mode, &[], &[json!({"type": "sbr"})])?;
        let pod = Pod::attach(&runtime, list, json!({})).context(mode)?;
        let rules = pod.netns.ip(&["rule"])?.stdout_text();
        let ip = pod.ip()?;
        assert!(
            rules.contains(&format!("from {ip} lookup 100")),
            "{mode}: {rules}"
        );
        let routes = pod
            .netns
            .ip(&["route", "show", "table", "100"])?
            .stdout_text();
        assert!(routes.contains("default via"), "{mode}: {routes}");
        assert!(
            pod.reaches(here)? && pod.reaches(there)?,
            "{mode}: {routes}"
        );
        pod.del().context(mode)?;
    }
    Ok(())
}

#[test]
fn bandwidth_behind_twill_limits_the_pods_pair() -> Result<()> {
    let cluster = Cluster::start(&Spec {
        nodes: 1,
        ..Spec::default()
    })?;
    let member = cluster.member(0);
    let runtime = skip_unless!(runtime(member));
    for mode in MODES {
        let bandwidth = json!({"type": "bandwidth", "ingressRate": 8_000_000,
            "ingressBurst": 800_000, "egressRate": 4_000_000, "egressBurst": 800_000});
        let list = list(member, mode, &[], &[bandwidth])?;
        let pod = Pod::attach(&runtime, list, json!({})).context(mode)?;
        let limits = said(member, "tc", &["qdisc"])?.matches("qdisc tbf").count();
        assert_eq!(limits, 2, "{mode}");
        assert!(pod.reaches(member)?, "{mode}");
        pod.check().context(mode)?;
        pod.del().context(mode)?;
        // They go with the pair, which the daemon deletes.
        wait::until_true(mode, Duration::from_secs(5), || {
            Ok(!said(member, "tc", &["qdisc"])?.contains("qdisc tbf"))
        })?;
    }
    Ok(())
}

#[test]
fn all_of_them_at_once_behind_a_loopback_and_twill() -> Result<()> {
    let cluster = Cluster::start(&Spec::default())?;
    let [here, there] = [0, 1].map(|index| cluster.member(index));
    let runtime = skip_unless!(runtime(here));
    let to = SocketAddr::from((here.place().v4.addr(), HOST_PORT));
    let offered = json!({"portMappings":
        [{"hostPort": HOST_PORT, "containerPort": POD_PORT, "protocol": "tcp"}]});
    for mode in MODES {
        let data_dir = here.node().make_dir("tuning")?;
        let behind = [
            json!({"type": "tuning", "dataDir": data_dir, "sysctl": {"net.core.somaxconn": "500"}}),
            json!({"type": "bandwidth", "ingressRate": 80_000_000, "ingressBurst": 8_000_000}),
            json!({"type": "firewall", "backend": "iptables"}),
            json!({"type": "portmap", "capabilities": {"portMappings": true}, "snat": true}),
        ];
        let list = list(here, mode, &[json!({"type": "loopback"})], &behind)?;
        let pod = Pod::attach(&runtime, list, offered.clone()).context(mode)?;
        pod.serve()?;
        assert_eq!(ask(there, to).context(mode)?, ANSWER);
        pod.check().context(mode)?;
        pod.del().context(mode)?;
        assert!(ask(there, to).is_err(), "{mode}");
        // A runtime may say it twice.
        pod.del().context(mode)?;
    }
    Ok(())
}

/// Before a network none of them has anything to work on: they say so, whoever makes the network,
/// and the runtime's DEL clears the list.
#[test]
fn before_twill_they_refuse_and_del_clears() -> Result<()> {
    let cluster = Cluster::start(&Spec {
        nodes: 1,
        ..Spec::default()
    })?;
    let member = cluster.member(0);
    let runtime = skip_unless!(runtime(member));
    for plugin in BEHIND {
        let conf = json!({"type": plugin, "ingressRate": 8_000_000, "ingressBurst": 800_000,
            "backend": "iptables"});
        let list = list(member, "bridge", &[conf], &[])?;
        let netns = Netns::new("pod")?;
        let attachment = Attachment::eth0(netns.name(), &netns.path());
        let error = runtime.add(&list, &attachment).err();
        // Some have nothing to do without ports and are content.
        if let Some(error) = error {
            let failure = PluginFailure::of(&error).context("the plugin's own failure")?;
            assert!(failure.call.ends_with(plugin), "{failure}");
        }
        runtime.del(&list, &attachment).context(plugin)?;
        assert_eq!(
            View::of(&netns).link_names()?,
            Vec::<String>::new(),
            "{plugin}"
        );
    }
    Ok(())
}
