//! The leases in a real Kubernetes API server, without kubelets: nodes find each other through their
//! Node objects, with what the manifest in conf/ allows and no more; twilld beside the real flanneld
//! and in its place.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use cni_test_harness::cluster::{Cluster, READY_DEADLINE, Spec};
use cni_test_harness::kubernetes::{ApiServer, Programs, Setup, node};
use cni_test_harness::observe::Family;
use cni_test_harness::process::log_tail;
use cni_test_harness::stream::Stream;
use cni_test_harness::underlay::Shape;
use cni_test_harness::{flanneld, netns, skip_unless, wait};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);
const REPLY: Duration = Duration::from_secs(2);
const MANIFEST: &str = include_str!("../conf/kube-twill.yaml");

/// Nodes without daemons, and an API server where their default gateway is.
struct Kube {
    cluster: Cluster,
    server: ApiServer,
    /// The flags that say so, to flanneld and twilld alike.
    args: Vec<String>,
}

impl Kube {
    fn start(programs: &Programs) -> Result<Self> {
        let name = netns::unique_name("kube");
        let dir = std::env::temp_dir().join(&name);
        let spec = Spec {
            shape: Shape::Bridge,
            ..Spec::default()
        };
        let mut cluster = Cluster::lay_out(&spec, &name, &dir)?;
        let server = Setup::default()
            .inside(
                cluster.underlay().middle(),
                cluster.member(0).place().v4_gateway,
            )
            .start(programs)?;
        server.kubectl(&["apply", "-f", "-"], MANIFEST.as_bytes())?;
        let net_conf = dir.join("net-conf.json");
        std::fs::write(&net_conf, spec.net_conf.to_string())?;
        let kubeconfig = server.service_account_kubeconfig("kube-twill", "twill")?;
        let args = vec![
            "--kube-subnet-mgr".to_owned(),
            format!("--kubeconfig-file={}", kubeconfig.display()),
            format!("--net-config-path={}", net_conf.display()),
        ];
        for index in [0, 1] {
            let member = cluster.member_mut(index);
            member.add_twilld_args(&args);
            member.set_env("NODE_NAME", &node_name(index));
        }
        Ok(Self {
            cluster,
            server,
            args,
        })
    }

    /// Makes a Node as a kubelet and a cloud do: its network is said to be missing.
    fn make_node(&self, index: usize, pod_cidrs: &[&str]) -> Result<()> {
        let mut object = node::node(&node_name(index), pod_cidrs, &[]);
        object["status"]["conditions"] = json!([
            {"type": "NetworkUnavailable", "status": "True", "reason": "NoRouteCreated"},
        ]);
        self.server.create(&[object])
    }

    fn start_twilld(&mut self, index: usize) -> Result<()> {
        let member = self.cluster.member_mut(index);
        member.start_daemon()?;
        member.wait_ready(READY_DEADLINE)
    }

    fn start_flanneld(&mut self, index: usize, flanneld: &Path) -> Result<()> {
        let args = self.args.clone();
        let member = self.cluster.member_mut(index);
        member.start_instead("flanneld", flanneld, &args)?;
        member.wait_ready(READY_DEADLINE)
    }

    fn object(&self, index: usize) -> Result<Value> {
        self.server.get_json(&["node", &node_name(index)])
    }

    fn log(&self, index: usize) -> String {
        let daemon = self.cluster.member(index).daemon().expect("it runs");
        log_tail(daemon.log_path(), 1000)
    }

    fn wait_for_log(&self, index: usize, text: &str) -> Result<()> {
        self.cluster
            .member(index)
            .wait_for(text, SOON, |_| Ok(self.log(index).contains(text)))
    }

    /// Waits until a node has a route to `subnet`, or has none.
    fn wait_for_route(&self, index: usize, subnet: &str, wanted: bool) -> Result<()> {
        let what = format!("route to {subnet}: {wanted}");
        self.cluster.member(index).wait_for(&what, SOON, |view| {
            let routes = view.routes(Family::V4)?;
            Ok(routes.iter().any(|route| route.dst == subnet) == wanted)
        })
    }

    /// Waits until the nodes follow the store: a peer that comes is seen, and one that goes.
    fn seen_to_follow(&self) -> Result<()> {
        let data = r#"{"VNI":1,"VtepMAC":"02:00:00:00:00:77"}"#;
        let annotations = [
            ("backend-data", data),
            ("backend-type", "vxlan"),
            ("kube-subnet-manager", "true"),
            ("public-ip", "192.168.50.77"),
        ];
        let extra = node::node("extra", &["10.244.250.0/24"], &annotations);
        self.server.create(&[extra])?;
        [0, 1]
            .iter()
            .try_for_each(|index| self.wait_for_route(*index, "10.244.250.0/24", true))?;
        self.server.kubectl(&["delete", "node", "extra"], b"")?;
        [0, 1]
            .iter()
            .try_for_each(|index| self.wait_for_route(*index, "10.244.250.0/24", false))
    }
}

fn node_name(index: usize) -> String {
    format!("k{}", index + 1)
}

fn condition(object: &Value) -> (&str, &str) {
    let conditions = object["status"]["conditions"].as_array();
    let found = conditions
        .into_iter()
        .flatten()
        .find(|condition| condition["type"] == "NetworkUnavailable");
    let text = |key| found.and_then(|found| found[key].as_str()).unwrap_or("-");
    (text("status"), text("reason"))
}

#[test]
fn nodes_of_one_api_server_reach_each_other_and_say_so() -> Result<()> {
    let programs = skip_unless!(Programs::find());
    let mut kube = Kube::start(&programs)?;
    kube.make_node(0, &["10.244.1.0/24"])?;
    kube.make_node(1, &["10.244.2.0/24"])?;
    kube.start_twilld(0)?;
    kube.start_twilld(1)?;
    kube.cluster.wait_in_sync(READY_DEADLINE)?;
    let (near, far) = (kube.cluster.pod(0)?, kube.cluster.pod(1)?);
    assert!(near.ping(&far, 3, REPLY)?.complete());
    assert!(far.ping(&near, 3, REPLY)?.complete());
    for index in [0, 1] {
        let member = kube.cluster.member(index);
        let mac = member.view().mac("flannel.1")?;
        wait::until_true("the condition NetworkUnavailable to be False", SOON, || {
            Ok(condition(&kube.object(index)?) == ("False", "FlannelIsUp"))
        })?;
        let annotations = &kube.object(index)?["metadata"]["annotations"];
        for (suffix, value) in [
            ("kube-subnet-manager", "true".to_owned()),
            ("backend-type", "vxlan".to_owned()),
            ("backend-data", format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#)),
            ("public-ip", member.place().v4.addr().to_string()),
        ] {
            assert_eq!(
                annotations[format!("flannel.alpha.coreos.com/{suffix}")],
                value
            );
        }
        assert!(!kube.log(index).contains("WARN"), "{}", kube.log(index));
    }
    // The token has what the manifest grants, and that was enough.
    let asked = kube.server.requests("twilld")?;
    assert!(asked.iter().all(|request| request.code < 300), "{asked:#?}");
    assert!(
        asked.iter().any(|request| request.verb == "watch"),
        "{asked:#?}"
    );

    // Three seconds and more without the API server: nothing changes; then it is followed again.
    std::thread::scope(|scope| -> Result<()> {
        let ping = scope.spawn(|| near.ping(&far, 600, REPLY));
        kube.server.kill_all();
        [0, 1]
            .iter()
            .try_for_each(|index| kube.wait_for_log(*index, "WARN"))?;
        let new = kube.cluster.pod(0)?;
        assert!(new.ping(&far, 300, REPLY)?.complete());
        kube.server.restart()?;
        let ping = ping.join().expect("ping's thread")?;
        assert!(ping.complete(), "{ping:?}");
        Ok(())
    })?;
    kube.seen_to_follow()?;
    assert!(near.ping(&far, 3, REPLY)?.complete());
    Ok(())
}

#[test]
fn what_the_cluster_has_not_given_yet_is_waited_for_with_a_reason() -> Result<()> {
    let programs = skip_unless!(Programs::find());
    let mut kube = Kube::start(&programs)?;
    kube.cluster.member_mut(0).start_daemon()?;
    kube.wait_for_log(0, "there is no node k1 in the cluster yet")?;
    kube.make_node(0, &[])?;
    kube.wait_for_log(0, "node k1: it has no podCIDR yet")?;
    assert!(!kube.cluster.member(0).subnet_file()?.exists());
    assert_eq!(condition(&kube.object(0)?).0, "True");
    let patch = r#"{"spec":{"podCIDR":"10.244.7.0/24","podCIDRs":["10.244.7.0/24"]}}"#;
    kube.server
        .kubectl(&["patch", "node", "k1", "-p", patch], b"")?;
    kube.cluster.member_mut(0).wait_ready(SOON)?;
    assert_eq!(
        kube.cluster.member(0).subnet()?.to_string(),
        "10.244.7.1/24"
    );
    // Said once each, not at every look.
    let log = kube.log(0);
    assert_eq!(log.matches("there is no node k1").count(), 1, "{log}");
    assert_eq!(log.matches("it has no podCIDR yet").count(), 1, "{log}");
    Ok(())
}

#[test]
fn a_node_made_anew_with_another_subnet_moves_there() -> Result<()> {
    let programs = skip_unless!(Programs::find());
    let mut kube = Kube::start(&programs)?;
    kube.make_node(0, &["10.244.1.0/24"])?;
    kube.make_node(1, &["10.244.2.0/24"])?;
    kube.start_twilld(0)?;
    kube.start_twilld(1)?;
    kube.cluster.wait_in_sync(READY_DEADLINE)?;
    let near = kube.cluster.pod(0)?;
    let old = kube.cluster.pod(1)?;
    assert!(near.ping(&old, 2, REPLY)?.complete());
    let mac = kube.cluster.member(1).view().mac("flannel.1")?;

    kube.server.kubectl(&["delete", "node", "k2"], b"")?;
    kube.wait_for_route(0, "10.244.2.0/24", false)?;
    // With the Node its pods go: the cluster sees to that.
    old.delete()?;
    kube.make_node(1, &["10.244.9.0/24"])?;
    kube.wait_for_route(0, "10.244.9.0/24", true)?;
    kube.cluster
        .member(1)
        .wait_for("the new subnet", SOON, |_| {
            Ok(kube.cluster.member(1).subnet()?.to_string() == "10.244.9.1/24")
        })?;
    let new = kube.cluster.pod(1)?;
    assert_eq!(new.ip()?.to_string(), "10.244.9.2");
    assert!(near.ping(&new, 3, REPLY)?.complete());
    assert!(new.ping(&near, 3, REPLY)?.complete());
    assert_eq!(kube.cluster.member(1).view().mac("flannel.1")?, mac);
    // The bridge is the new subnet's alone.
    let addresses = kube
        .cluster
        .member(1)
        .node()
        .exec("ip", &["-4", "-o", "addr", "show", "dev", "cni0"])?
        .stdout_text();
    assert!(
        addresses.contains("10.244.9.1/24") && !addresses.contains("10.244.2.1"),
        "{addresses}"
    );
    wait::until_true("the new Node to know of its network", SOON, || {
        Ok(condition(&kube.object(1)?).0 == "False")
    })
}

#[test]
fn beside_flanneld_and_in_its_place_no_packet_is_lost() -> Result<()> {
    let programs = skip_unless!(Programs::find());
    let flanneld: PathBuf = skip_unless!(flanneld::installed());
    let mut kube = Kube::start(&programs)?;
    kube.make_node(0, &["10.244.1.0/24"])?;
    kube.make_node(1, &["10.244.2.0/24"])?;
    kube.start_flanneld(0, &flanneld)?;
    kube.start_twilld(1)?;
    kube.cluster.wait_in_sync(READY_DEADLINE)?;
    let (theirs, ours) = (kube.cluster.pod(0)?, kube.cluster.pod(1)?);
    for (from, to) in [(&theirs, &ours), (&ours, &theirs)] {
        assert!(from.ping(to, 3, REPLY)?.complete());
    }
    kube.seen_to_follow()?;

    let annotations =
        |kube: &Kube| -> Result<Value> { Ok(kube.object(0)?["metadata"]["annotations"].clone()) };
    let (before, env) = (annotations(&kube)?, kube.cluster.member(0).subnet_env()?);
    let mac = kube.cluster.member(0).view().mac("flannel.1")?;
    let mut streams = [
        Stream::start(theirs.netns(), ours.ip()?)?,
        Stream::start(ours.netns(), theirs.ip()?)?,
    ];
    for twilld_comes in [true, false] {
        kube.cluster.member_mut(0).stop_daemon(SOON)?;
        match twilld_comes {
            true => kube.start_twilld(0)?,
            false => kube.start_flanneld(0, &flanneld)?,
        }
        kube.seen_to_follow()?;
        for stream in &mut streams {
            stream.go_on(500)?;
            assert_eq!(
                stream.answers()?.lost,
                Vec::<usize>::new(),
                "twilld comes: {twilld_comes}"
            );
        }
        assert_eq!(annotations(&kube)?, before, "twilld comes: {twilld_comes}");
        assert_eq!(kube.cluster.member(0).subnet_env()?, env);
        assert_eq!(kube.cluster.member(0).view().mac("flannel.1")?, mac);
    }
    for stream in streams {
        let answers = stream.end()?;
        assert!(
            answers.lost.is_empty() && answers.last > 1000,
            "{answers:?}"
        );
    }
    Ok(())
}
