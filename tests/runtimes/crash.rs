//! A runtime that is killed and started again, with pods that stay.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cni_test_harness::cri::{Cri, Enclosure};
use cni_test_harness::pod::Pod;

/// More than the machine has cores, so that plugins overlap.
const PODS: usize = 4;

/// Does `what` for each pod, all at the same time, with a connection each.
fn at_once<T: Send>(
    runtime: &Enclosure,
    pods: &[String],
    what: impl Fn(&Cri, &str) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    std::thread::scope(|scope| {
        let what = &what;
        let threads: Vec<_> = pods
            .iter()
            .map(|pod| scope.spawn(move || what(&runtime.cri()?, pod)))
            .collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, Result<T>>| {
            thread.join().expect("a thread that does not panic")
        };
        threads.into_iter().map(join).collect()
    })
}

/// Pods of the runtime, all made at the same time, that reach `far` and are reached by it across a
/// crash of the runtime, and keep their addresses; by ID.
pub(crate) fn pods_live_through_it(
    runtime: &mut Enclosure,
    far: &Pod,
) -> Result<BTreeMap<String, Vec<IpAddr>>> {
    let names: Vec<String> = (1..=PODS).map(|number| format!("pod{number}")).collect();
    let make = |cri: &Cri, name: &str| {
        let spec = runtime.pod(name);
        let id = cri.run_pod(&spec)?;
        let container = cri.run_container(&id, &spec, "main", &[])?;
        Ok((id, container))
    };
    let made = at_once(runtime, &names, make)?;
    let statuses = |cri: &Cri| {
        let status = |(id, _): &(String, String)| {
            let status = cri.pod_status(id)?;
            ensure!(status.ready, "{id} is not ready");
            Ok((id.clone(), status.ips))
        };
        made.iter().map(status).collect::<Result<BTreeMap<_, _>>>()
    };
    let before = statuses(&runtime.cri()?)?;
    let different: BTreeSet<&IpAddr> = before.values().flatten().collect();
    ensure!(different.len() == PODS, "an address each: {before:?}");

    runtime.crash()?;

    let cri = runtime.cri()?;
    let after = statuses(&cri).with_context(|| runtime.log_tail())?;
    ensure!(
        after == before,
        "{before:?} before the crash, {after:?} after"
    );
    let target = far.ip()?.to_string();
    for (_, container) in &made {
        let ping = cri.exec(container, &["ping", "-c", "2", "-W", "2", &target])?;
        ensure!(ping.code == 0, "{container}: {ping:?}");
    }
    for ip in after.values().flatten() {
        let reached = far.view().ping(*ip, 2, Duration::from_secs(2))?;
        ensure!(reached.complete(), "{ip}: {reached:?}");
    }
    Ok(after)
}

/// Stops the pods twice and removes them, all at the same time.
pub(crate) fn remove(runtime: &Enclosure, pods: &BTreeMap<String, Vec<IpAddr>>) -> Result<()> {
    let ids: Vec<String> = pods.keys().cloned().collect();
    let end = |cri: &Cri, id: &str| {
        cri.stop_pod(id)?;
        cri.stop_pod(id)?;
        cri.remove_pod(id)
    };
    at_once(runtime, &ids, end).map(drop)
}

/// The pods' IDs and addresses, as they would stand in a ruleset.
pub(crate) fn names(pods: &BTreeMap<String, Vec<IpAddr>>) -> Vec<String> {
    let ips = pods.values().flatten().map(IpAddr::to_string);
    pods.keys().cloned().chain(ips).collect()
}
