//! DEL quiesces a pod's interface and leaves its deletion to the daemon. Nothing goes through it
//! from then on, nobody gets its address before it is gone, and without the daemon DEL deletes it.

use std::time::Duration;

use anyhow::{Context, Result};
use cni_test_harness::cluster::{Cluster, Member, READY_DEADLINE, Spec};
use cni_test_harness::netns::{self, Netns};
use cni_test_harness::runtime::Attachment;
use cni_test_harness::wait;

const SOON: Duration = Duration::from_secs(5);

/// The pods' interfaces on the node, and whether each carries anything.
fn interfaces(member: &Member) -> Result<Vec<(String, bool)>> {
    let links = member.view().links()?.into_iter();
    Ok(links
        .filter(|link| {
            link["ifalias"]
                .as_str()
                .is_some_and(|a| a.starts_with("twill:"))
        })
        .map(|link| {
            let up = link["flags"]
                .as_array()
                .is_some_and(|f| f.iter().any(|f| f == "UP"));
            let name = link["ifname"].as_str().unwrap_or_default().to_owned();
            (name, up || link["master"].is_string())
        })
        .collect())
}

/// The daemon is there, but gets round to nothing until SIGCONT.
fn signal_daemon(member: &Member, signal: &str) -> Result<()> {
    let pid = member.daemon().context("a daemon")?.pid().to_string();
    member.node().exec("kill", &[signal, &pid]).map(drop)
}

fn wait_until_gone(member: &Member) -> Result<()> {
    wait::until_true("the interfaces are gone", SOON, || {
        Ok(interfaces(member)?.is_empty())
    })
}

#[test]
fn a_pods_interface_is_gone_soon_after_del() -> Result<()> {
    let cluster = Cluster::start(&Spec::default())?;
    let member = cluster.member(0);
    let pods = [cluster.pod(0)?, cluster.pod(0)?, cluster.pod(0)?];
    let namespaces: Vec<_> = pods.iter().map(|pod| pod.netns().path()).collect();
    assert_eq!(interfaces(member)?.len(), 3);
    for pod in &pods {
        member.runtime().del(member.list(), pod.attachment())?;
    }
    assert!(interfaces(member)?.iter().all(|(_, carries)| !carries));
    // The namespaces are still there, so that it is not they who take the interfaces away.
    wait_until_gone(member)?;
    assert!(namespaces.iter().all(|path| path.exists()));
    Ok(())
}

#[test]
fn while_it_is_leaving_it_carries_nothing_and_keeps_its_address() -> Result<()> {
    let cluster = Cluster::start(&Spec::default())?;
    let member = cluster.member(0);
    let (old, witness) = (cluster.pod(0)?, cluster.pod(0)?);
    let ip = old.ip()?;
    assert!(witness.ping(&old, 1, SOON)?.complete());
    signal_daemon(member, "-STOP")?;
    member.runtime().del(member.list(), old.attachment())?;
    let leaving = interfaces(member)?;
    assert_eq!(
        leaving.len(),
        2,
        "the daemon has not come round: {leaving:?}"
    );
    assert_eq!(leaving.iter().filter(|(_, carries)| *carries).count(), 1);
    assert!(
        !witness
            .ping(&old, 1, Duration::from_millis(500))?
            .complete()
    );

    let name = netns::unique_name("heir");
    let heir = Netns::create(&name)?;
    let mut attachment = Attachment::eth0(&name, &heir.path());
    attachment.args = vec![("IP".into(), ip.to_string())];
    let added = member.runtime().add(member.list(), &attachment)?;
    assert_eq!(added.ips(), [ip]);
    let now = interfaces(member)?;
    assert!(
        now.len() == 2 && now.iter().all(|(_, carries)| *carries),
        "{now:?}"
    );
    assert!(witness.view().ping(ip, 1, SOON)?.complete());

    signal_daemon(member, "-CONT")?;
    member.runtime().del(member.list(), &attachment)?;
    Ok(())
}

#[test]
fn the_same_attachment_may_come_back_at_once() -> Result<()> {
    let cluster = Cluster::start(&Spec::default())?;
    let member = cluster.member(0);
    let (pod, witness) = (cluster.pod(0)?, cluster.pod(0)?);
    signal_daemon(member, "-STOP")?;
    for _ in 0..3 {
        member.runtime().del(member.list(), pod.attachment())?;
        let added = member.runtime().add(member.list(), pod.attachment())?;
        assert!(witness.view().ping(added.ips()[0], 1, SOON)?.complete());
    }
    signal_daemon(member, "-CONT")
}

#[test]
fn a_repeated_del_finds_what_is_still_leaving() -> Result<()> {
    let cluster = Cluster::start(&Spec::default())?;
    let member = cluster.member(0);
    let pod = cluster.pod(0)?;
    signal_daemon(member, "-STOP")?;
    for _ in 0..2 {
        member.runtime().del(member.list(), pod.attachment())?;
    }
    signal_daemon(member, "-CONT")?;
    wait_until_gone(member)
}

#[test]
fn without_a_daemon_del_deletes_it() -> Result<()> {
    let mut cluster = Cluster::start(&Spec::default())?;
    let pod = cluster.pod(0)?;
    let member = cluster.member_mut(0);
    member.kill_daemon();
    member.runtime().del(member.list(), pod.attachment())?;
    assert_eq!(interfaces(member)?, []);
    Ok(())
}

#[test]
fn what_a_killed_daemon_did_not_come_round_to_goes_with_the_next_start() -> Result<()> {
    let mut cluster = Cluster::start(&Spec::default())?;
    let pod = cluster.pod(0)?;
    let member = cluster.member_mut(0);
    signal_daemon(member, "-STOP")?;
    member.runtime().del(member.list(), pod.attachment())?;
    member.kill_daemon();
    assert_eq!(interfaces(member)?.len(), 1);
    member.start_daemon()?;
    member.wait_ready(READY_DEADLINE)?;
    wait_until_gone(member)
}
