//! A Node that is deleted and comes back while its machine goes on: with another subnet or its own,
//! and what pods get in between.

use anyhow::Result;
use cni_test_harness::kubernetes::Programs;
use cni_test_harness::runtime::PluginFailure;
use cni_test_harness::skip_unless;
use cni_test_harness::stream::Stream;
use cni_test_harness::wait::{self, Look};

use crate::kube::{Kube, REPLY, SOON, condition};

#[test]
fn a_node_made_anew_with_another_subnet_moves_there() -> Result<()> {
    let programs = skip_unless!(Programs::find());
    let kube = Kube::with_two_nodes(&programs)?;
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
            Ok(kube.env(1)?.contains("FLANNEL_SUBNET=10.244.9.1/24"))
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

/// A deleted Node's podCIDR is another node's as soon as the cluster likes.
#[test]
fn while_its_node_is_gone_a_machine_gives_out_no_address() -> Result<()> {
    let programs = skip_unless!(Programs::find());
    let mut kube = Kube::with_two_nodes(&programs)?;
    let env = kube.env(1)?;
    let far = kube.cluster.pod(0)?;
    let (pod, neighbour, ends) = (
        kube.cluster.pod(1)?,
        kube.cluster.pod(1)?,
        kube.cluster.pod(1)?,
    );
    let mut stream = Stream::start(pod.netns(), neighbour.ip()?)?;

    kube.server.kubectl(&["delete", "node", "k2"], b"")?;
    kube.wait_for_env(1, "")?;
    let (member, code) = (kube.cluster.member(1), |error: &anyhow::Error| {
        PluginFailure::of(error).and_then(|failure| failure.code)
    });
    let status = member
        .runtime()
        .status(member.list())
        .expect_err("no subnet");
    assert_eq!(code(&status), Some(50), "{status:#}");
    let refused = kube.cluster.pod(1).err().expect("no address for a pod");
    let chain: Vec<String> = refused.chain().map(ToString::to_string).collect();
    assert!(
        chain.iter().any(|text| text.contains("subnet.env")),
        "{chain:#?}"
    );
    // What ends meanwhile is cleared, and what runs goes on.
    ends.delete()?;
    stream.go_on(200)?;

    // Nor does a daemon that starts now believe what an earlier one has left.
    kube.cluster.member_mut(1).stop_daemon(SOON)?;
    std::fs::write(kube.cluster.member(1).subnet_file()?, &env)?;
    kube.cluster.member_mut(1).start_daemon()?;
    kube.wait_for_env(1, "")?;
    kube.wait_for_log(1, "there is no node k2 in the cluster yet")?;

    // Back with what it had: so is everything else.
    kube.make_node(1, &["10.244.2.0/24"])?;
    kube.wait_for_env(1, &env)?;
    let member = kube.cluster.member(1);
    member.runtime().status(member.list())?;
    kube.wait_for_route(0, "10.244.2.0/24", true)?;
    assert!(far.ping(&pod, 3, REPLY)?.complete());
    assert!(
        kube.cluster
            .pod(1)?
            .ip()?
            .to_string()
            .starts_with("10.244.2.")
    );
    let answers = stream.end()?;
    assert!(answers.lost.is_empty(), "{answers:?}");

    // Back with another: from the moment in which it was gone, no pod gets the old one's.
    pod.delete()?;
    neighbour.delete()?;
    kube.server.kubectl(&["delete", "node", "k2"], b"")?;
    kube.wait_for_env(1, "")?;
    kube.make_node(1, &["10.244.9.0/24"])?;
    let new = wait::until("a pod on the new subnet", SOON, || {
        Ok(match kube.cluster.pod(1) {
            Ok(pod) => Look::Done(pod),
            Err(error) => Look::NotYet(format!("{error:#}")),
        })
    })?;
    assert_eq!(new.ip()?.to_string(), "10.244.9.2");
    kube.wait_for_route(0, "10.244.9.0/24", true)?;
    assert!(far.ping(&new, 3, REPLY)?.complete());
    Ok(())
}
