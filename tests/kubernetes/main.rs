//! The leases in a real Kubernetes API server, without kubelets: nodes find each other through their
//! Node objects, with what the manifest in conf/ allows and no more; twilld beside the real flanneld
//! and in its place.

mod flanneld;
mod kube;
mod lives;

use anyhow::Result;
use cni_test_harness::kubernetes::Programs;
use cni_test_harness::{skip_unless, wait};

use self::kube::{Kube, REPLY, SOON, condition};

#[test]
fn nodes_of_one_api_server_reach_each_other_and_say_so() -> Result<()> {
    let programs = skip_unless!(Programs::find());
    let mut kube = Kube::with_two_nodes(&programs)?;
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
fn a_node_keeps_its_mac_though_nothing_but_its_annotations_has_it() -> Result<()> {
    let programs = skip_unless!(Programs::find());
    let mut kube = Kube::start(&programs)?;
    kube.make_node(0, &["10.244.1.0/24"])?;
    // flanneld looks for it under another name than it wrote, where there is a word behind the slash.
    let member = kube.cluster.member_mut(0);
    member.add_twilld_args(&["--kube-annotation-prefix=example.org/net".to_owned()]);
    let mut seen = Vec::new();
    for _ in 0..2 {
        kube.start_twilld(0)?;
        wait::until_true("the condition NetworkUnavailable to be False", SOON, || {
            Ok(condition(&kube.object(0)?).0 == "False")
        })?;
        let annotations = kube.object(0)?["metadata"]["annotations"].clone();
        let data = annotations["example.org/net-backend-data"].as_str();
        let mac = kube.cluster.member(0).view().mac("flannel.1")?;
        assert_eq!(data, Some(&*format!(r#"{{"VNI":1,"VtepMAC":"{mac}"}}"#)));
        seen.push(annotations);
        // The machine is another one, but for its name.
        kube.cluster.member_mut(0).kill_daemon();
        let member = kube.cluster.member(0);
        member.node().exec("ip", &["link", "del", "flannel.1"])?;
        std::fs::remove_dir_all(member.node().dir().join("state"))?;
        std::fs::remove_file(member.subnet_file()?)?;
    }
    assert_eq!(seen[0], seen[1]);
    let asked = kube.server.requests("twilld")?;
    let told = asked.iter().filter_map(|request| request.body.as_deref());
    assert_eq!(told.filter(|body| body.contains("backend-data")).count(), 1);
    Ok(())
}
