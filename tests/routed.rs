//! Routed mode: no bridge, every pod alone on its link with the node, and all that a bridge's pods
//! can do works all the same.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use cni_test_harness::cluster::{Cluster, Member, READY_DEADLINE, Spec};
use cni_test_harness::netconf::NetworkList;
use cni_test_harness::netns::{self, Netns};
use cni_test_harness::observe::{Family, View};
use cni_test_harness::pod::Pod;
use cni_test_harness::runtime::Attachment;
use cni_test_harness::wait;
use serde_json::{Value, json};

const REPLY: Duration = Duration::from_secs(2);
const HOST_PORT: u16 = 8080;
const POD_PORT: u16 = 80;
const ANSWER: &str = "the pod";

/// The node's list, routed: by a config of type `twill`, its keys beside each other.
fn routed(member: &Member, more: Value) -> Result<Arc<NetworkList>> {
    let plugin = &member.list().plugins[0];
    let mut conf = json!({"type": "twill", "mode": "routed", "subnetFile": plugin["subnetFile"],
        "dataDir": plugin["dataDir"], "ipam": plugin["ipam"],
        "capabilities": {"portMappings": true, "bandwidth": true}});
    let more = more.as_object().context("an object")?.clone();
    conf.as_object_mut().context("an object")?.extend(more);
    let list = json!({"name": "cbr0", "cniVersion": "1.1.0", "plugins": [conf]});
    Ok(Arc::new(NetworkList::parse(list)?))
}

fn pod(member: &Member) -> Result<Pod> {
    Pod::new(member.runtime(), &routed(member, json!({}))?)
}

fn dual_stack() -> Result<Cluster> {
    let net_conf = json!({"Network": "10.244.0.0/16", "EnableIPv6": true,
        "IPv6Network": "fd00:244::/48", "Backend": {"Type": "vxlan"}});
    let cluster = Cluster::start(&Spec {
        net_conf,
        ..Spec::default()
    })?;
    for member in cluster.members() {
        member.wait_for(
            "a route to the peer's IPv6 subnet",
            READY_DEADLINE,
            |view| {
                let routes = view.routes(Family::V6)?;
                Ok(routes
                    .iter()
                    .any(|route| route.dev == "flannel-v6.1" && !route.via.is_empty()))
            },
        )?;
    }
    Ok(cluster)
}

fn answers(from: View<'_>, to: IpAddr) -> Result<()> {
    let ping = from.ping(to, 2, REPLY)?;
    assert!(ping.complete(), "to {to}: {ping:?}");
    Ok(())
}

/// The gateways in a result, in order.
fn gateways(pod: &Pod) -> Vec<IpAddr> {
    let ips = pod.added().result["ips"].as_array().into_iter().flatten();
    ips.filter_map(|ip| ip["gateway"].as_str()?.parse().ok())
        .collect()
}

/// `dst` of each route through a device, sorted, link-local ones left out.
fn by_device(view: View<'_>, family: Family, dev: &str) -> Result<Vec<(String, String)>> {
    let routes = view.routes(family)?.into_iter().filter(|r| r.dev == dev);
    Ok(routes.map(|route| (route.dst, route.via)).collect())
}

fn the_nodes_end(pod: &Pod) -> String {
    let name = &pod.added().result["interfaces"][0]["name"];
    name.as_str().unwrap_or_default().to_owned()
}

#[test]
fn pods_of_two_nodes_reach_each_other_and_their_nodes_in_both_families() -> Result<()> {
    let cluster = dual_stack()?;
    let pods: Vec<Pod> = [0, 0, 1]
        .into_iter()
        .map(|node| pod(cluster.member(node)))
        .collect::<Result<_>>()?;
    for from in &pods {
        for to in &pods {
            for ip in to.added().ips() {
                answers(from.view(), ip)?;
            }
        }
        assert_eq!(from.added().ips().len(), 2);
        for gateway in gateways(from) {
            answers(from.view(), gateway)?;
        }
        let there = cluster.member(1).place();
        answers(from.view(), there.v4.addr().into())?;
        answers(from.view(), there.v6.addr().into())?;
        from.check()?;
    }
    for (pod, node) in pods.iter().zip([0, 0, 1]) {
        for ip in pod.added().ips() {
            answers(cluster.member(node).view(), ip)?;
        }
    }
    Ok(())
}

#[test]
fn a_routed_pod_and_a_bridged_pod_of_another_node_reach_each_other() -> Result<()> {
    let cluster = Cluster::start(&Spec::default())?;
    let (routed, bridged) = (pod(cluster.member(0))?, cluster.pod(1)?);
    assert!(routed.ping(&bridged, 2, REPLY)?.complete());
    assert!(bridged.ping(&routed, 2, REPLY)?.complete());
    Ok(())
}

#[test]
fn a_pod_is_alone_on_its_link_and_the_node_routes_to_it() -> Result<()> {
    let cluster = dual_stack()?;
    let member = cluster.member(0);
    let pod = pod(member)?;
    let [v4, v6] = pod.added().ips()[..] else {
        panic!("two addresses: {}", pod.added().result)
    };
    let [gateway4, gateway6] = gateways(&pod)[..] else {
        panic!("two gateways: {}", pod.added().result)
    };
    let pair = |a: &dyn ToString, b: &str| (a.to_string(), b.to_owned());
    let inside = pod.view();
    assert_eq!(
        inside.addresses_of("eth0")?,
        [format!("{v4}/32"), format!("{v6}/128")]
    );
    let via4 = gateway4.to_string();
    assert_eq!(
        by_device(inside, Family::V4, "eth0")?,
        [
            pair(&"10.244.0.0/16", &via4),
            pair(&gateway4, ""),
            pair(&"default", &via4)
        ]
    );
    let routes6 = by_device(inside, Family::V6, "eth0")?;
    let via6 = gateway6.to_string();
    for route in [pair(&"default", &via6), pair(&gateway6, "")] {
        assert!(routes6.contains(&route), "{route:?} in {routes6:?}");
    }

    let (outside, end) = (member.view(), the_nodes_end(&pod));
    assert_eq!(outside.link("cni0")?, None, "there is no bridge");
    assert_eq!(outside.link(&end)?.context("the end")?.get("master"), None);
    assert_eq!(
        outside.addresses_of(&end)?,
        [format!("{gateway4}/32"), format!("{gateway6}/128")]
    );
    assert_eq!(by_device(outside, Family::V4, &end)?, [pair(&v4, "")]);
    let routes6 = by_device(outside, Family::V6, &end)?;
    assert!(routes6.contains(&pair(&v6, "")), "{routes6:?}");
    for key in ["proxy_arp", "proxy_arp_pvlan"] {
        assert_eq!(
            member
                .node()
                .netns()
                .sysctl(&format!("ipv4/conf/{end}/{key}"))?,
            "0"
        );
    }
    let result = &pod.added().result;
    assert_eq!(result["interfaces"].as_array().map(Vec::len), Some(2));
    assert_eq!(result["interfaces"][1]["name"], "eth0");
    assert_eq!(result["ips"][0]["interface"], 1);
    assert_eq!(result["ips"][0]["address"], format!("{v4}/32"));
    Ok(())
}

/// What a bridge's pod could say with another's address, a routed pod cannot.
#[test]
fn what_carries_another_pods_address_does_not_pass() -> Result<()> {
    let cluster = Cluster::start(&Spec::default())?;
    let [honest, liar] = [pod(cluster.member(0))?, pod(cluster.member(0))?];
    let far = cluster.pod(1)?;
    answers(liar.view(), far.ip()?)?;
    let stolen = honest.ip()?.to_string();
    liar.netns()
        .ip(&["addr", "add", &format!("{stolen}/32"), "dev", "eth0"])?;
    liar.netns().ip(&["neigh", "flush", "all"])?;
    let mut ping = liar.netns().command("ping")?;
    ping.args([
        "-c",
        "2",
        "-i",
        "0.2",
        "-W",
        "1",
        "-I",
        &stolen,
        &far.ip()?.to_string(),
    ]);
    let said = cni_test_harness::process::run(&mut ping, b"", Duration::from_secs(20))?;
    assert!(
        said.stdout_text().contains(" 0 received"),
        "{}",
        said.stdout_text()
    );
    // Its owner is not even disturbed.
    answers(honest.view(), far.ip()?)?;
    answers(far.view(), honest.ip()?)
}

#[test]
fn what_is_sent_to_no_pod_is_answered_instead_of_sent_on() -> Result<()> {
    let cluster = Cluster::start(&Spec::default())?;
    let member = cluster.member(0);
    let near = pod(member)?;
    let nobody = match member.subnet()?.broadcast() {
        IpAddr::V4(ip) => IpAddr::from(std::net::Ipv4Addr::from(u32::from(ip) - 5)),
        ip => ip,
    };
    let mut ping = near.netns().command("ping")?;
    ping.args(["-n", "-c", "1", "-W", "2", &nobody.to_string()]);
    let said = cni_test_harness::process::run(&mut ping, b"", Duration::from_secs(20))?;
    assert!(
        said.stdout_text().contains("Destination Host Unreachable"),
        "{}",
        said.stdout_text()
    );
    Ok(())
}

#[test]
fn check_notices_what_is_lost_on_either_end() -> Result<()> {
    let cluster = Cluster::start(&Spec::default())?;
    let member = cluster.member(0);
    let losses: [(bool, &[&str], &str); 4] = [
        (true, &["route", "del", "GATEWAY"], "the pod's route to"),
        (true, &["route", "del", "default"], "Expected Route"),
        (true, &["addr", "del", "IP/32", "dev", "eth0"], "match addr"),
        (false, &["route", "del", "IP"], "the node's route to"),
    ];
    for (inside, command, word) in losses {
        let pod = pod(member)?;
        pod.check()?;
        let (ip, gateway) = (pod.ip()?.to_string(), member.subnet()?.addr().to_string());
        let fill = |arg: &&str| arg.replace("IP", &ip).replace("GATEWAY", &gateway);
        let command: Vec<String> = command.iter().map(fill).collect();
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        match inside {
            true => pod.netns().ip(&command)?,
            false => member.node().netns().ip(&command)?,
        };
        let error = format!("{:#}", pod.check().expect_err("it is lost"));
        assert!(error.contains(word), "{word}: {error}");
    }
    Ok(())
}

#[test]
fn nothing_of_a_pod_stays_after_del_or_gc() -> Result<()> {
    let cluster = dual_stack()?;
    let member = cluster.member(0);
    drop(pod(member)?);
    let state = || -> Result<_> {
        let mut names: Vec<_> = std::fs::read_dir(member.node().make_dir("cni/networks/cbr0")?)?
            .map(|entry| Ok(entry?.file_name()))
            .collect::<Result<Vec<_>>>()?;
        names.retain(|name| !name.to_string_lossy().starts_with("last_reserved_ip"));
        names.sort();
        Ok((
            member.view().link_names()?,
            member.view().routes(Family::V4)?,
            member.view().routes(Family::V6)?,
            names,
        ))
    };
    wait::until_true("the first pod is gone", REPLY, || {
        Ok(!state()?.0.iter().any(|name| name.starts_with("veth")))
    })?;
    let before = state()?;
    pod(member)?.delete()?;
    // The daemon deletes what DEL took out of use.
    wait::until_true("all is gone after DEL", REPLY, || Ok(state()? == before))?;

    let list = routed(member, json!({}))?;
    let netns = Netns::create(&netns::unique_name("pod"))?;
    let attachment = Attachment::eth0(netns.name(), &netns.path());
    member.runtime().add(&list, &attachment)?;
    let known = [(netns.name().to_owned(), "eth0".to_owned())];
    member.runtime().gc(&list, Some(&known))?;
    assert_ne!(state()?, before, "GC leaves what is known");
    member.runtime().forget(&list, &attachment);
    member.runtime().gc(&list, Some(&[]))?;
    wait::until_true("all is gone after GC", REPLY, || Ok(state()? == before))?;
    Ok(())
}

/// Answers every connection from inside; ends with the test's process.
fn serve(netns: &Netns) -> Result<()> {
    let listener = netns.run(|| Ok(TcpListener::bind(("::", POD_PORT))?))?;
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.write_all(ANSWER.as_bytes());
        }
    });
    Ok(())
}

fn ask(from: &Netns, to: SocketAddr) -> Result<String> {
    from.run(|| {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))
            .with_context(|| format!("connect to {to}"))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })
}

#[test]
fn host_ports_and_limits_work_without_a_bridge() -> Result<()> {
    let cluster = dual_stack()?;
    let [here, there] = [0, 1].map(|index| cluster.member(index));
    let list = routed(here, json!({}))?;
    let netns = Netns::create(&netns::unique_name("pod"))?;
    let mut attachment = Attachment::eth0(netns.name(), &netns.path());
    let offered = json!({"portMappings":
        [{"hostPort": HOST_PORT, "containerPort": POD_PORT, "protocol": "tcp"}],
        "bandwidth": {"ingressRate": 800_000_000, "ingressBurst": 80_000_000}});
    attachment.capability_args = offered.as_object().context("an object")?.clone();
    here.runtime().add(&list, &attachment)?;
    serve(&netns)?;
    let neighbour = pod(here)?;
    let v4 = SocketAddr::from((here.place().v4.addr(), HOST_PORT));
    let v6 = SocketAddr::from((here.place().v6.addr(), HOST_PORT));
    let local = SocketAddr::from(([127, 0, 0, 1], HOST_PORT));
    for (from, to) in [
        (there.node().netns(), v4),
        (there.node().netns(), v6),
        (here.node().netns(), v4),
        (here.node().netns(), local),
        (neighbour.netns(), v4),
        (neighbour.netns(), v6),
        // The pod itself, by the node's address.
        (&netns, v4),
        (&netns, v6),
    ] {
        let answer = ask(from, to).with_context(|| format!("from {} to {to}", from.name()))?;
        assert_eq!(answer, ANSWER, "from {} to {to}", from.name());
    }
    here.runtime().check(&list, &attachment)?;
    here.runtime().del(&list, &attachment)?;
    assert!(!here.view().nft_text()?.contains(netns.name()));
    assert!(ask(there.node().netns(), v4).is_err());
    Ok(())
}

#[test]
fn a_pod_that_masquerades_itself_leaves_with_the_nodes_address_and_cleans_up() -> Result<()> {
    let mut spec = Spec::default();
    spec.twilld_args.push("--ip-masq=false".to_owned());
    let cluster = Cluster::start(&spec)?;
    let member = cluster.member(0);
    let list = routed(member, json!({"ipMasq": true}))?;
    let pod = Pod::new(member.runtime(), &list)?;
    // The other node has no route back to the pod's address but through the overlay.
    let other = cluster.member(1).place().v4.addr();
    answers(pod.view(), other.into())?;
    let rules = member.view().nft_text()?;
    let subnet = member.subnet()?.trunc();
    let wanted = format!("ip saddr {} ip daddr != {subnet} masquerade", pod.ip()?);
    assert!(rules.contains(&wanted), "{wanted} in {rules}");
    let ip = pod.ip()?.to_string();
    pod.delete()?;
    assert!(!member.view().nft_text()?.contains(&ip));
    Ok(())
}

#[test]
fn the_mode_inside_delegate_is_the_same() -> Result<()> {
    let cluster = Cluster::start(&Spec::default())?;
    let member = cluster.member(0);
    let mut list = NetworkList::clone(member.list());
    list.plugins[0]["delegate"] = json!({"mode": "routed", "isDefaultGateway": true});
    let pod = Pod::new(member.runtime(), &Arc::new(list))?;
    assert_eq!(member.view().link("cni0")?, None);
    answers(pod.view(), member.subnet()?.addr())?;
    pod.check()?;
    pod.delete()
}

#[test]
fn what_only_a_bridge_can_do_is_refused_and_nothing_is_changed() -> Result<()> {
    let cluster = Cluster::start(&Spec::default())?;
    let member = cluster.member(0);
    let links = member.view().link_names()?;
    for more in [
        json!({"promiscMode": true}),
        json!({"bridge": "br0"}),
        json!({"mode": "l2"}),
    ] {
        let list = routed(member, more.clone())?;
        let Err(error) = Pod::new(member.runtime(), &list) else {
            panic!("{more} was accepted")
        };
        assert!(format!("{error:#}").contains("code 7"), "{more}: {error:#}");
        assert_eq!(member.view().link_names()?, links);
    }
    Ok(())
}
