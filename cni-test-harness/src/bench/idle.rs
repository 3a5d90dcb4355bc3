//! What twilld costs while nothing happens.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::cluster::{Cluster, Spec};
use crate::wait;

/// How long the daemon is left alone before it is looked at.
const IDLE: Duration = Duration::from_secs(5);

/// A daemon with two peers, after [`IDLE`].
#[derive(Debug)]
pub(super) struct Idle {
    /// Resident memory now.
    pub(super) rss_kib: u64,
    /// Resident memory at its largest.
    pub(super) peak_kib: u64,
    /// User and system time while it was left alone, in ms.
    pub(super) cpu_ms: f64,
    /// How long that was, in seconds.
    pub(super) seconds: f64,
}

pub(super) fn measure() -> Result<Idle> {
    let cluster = Cluster::start(&Spec {
        nodes: 3,
        ..Spec::default()
    })?;
    let pid = cluster.member(0).daemon().context("twilld runs")?.pid();
    let before = cpu_ms(pid)?;
    wait::pause_for(IDLE);
    let (rss_kib, peak_kib) = (status_kib(pid, "VmRSS:")?, status_kib(pid, "VmHWM:")?);
    Ok(Idle {
        rss_kib,
        peak_kib,
        cpu_ms: cpu_ms(pid)? - before,
        seconds: IDLE.as_secs_f64(),
    })
}

/// A size in a process's status, in KiB.
pub(super) fn status_kib(pid: u32, key: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with(key));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    number
        .and_then(|number| number.parse().ok())
        .with_context(|| format!("no {key}"))
}

/// User and system time so far, by the scheduler's own clock: /proc/PID/stat counts in 10 ms.
pub(super) fn cpu_ms(pid: u32) -> Result<f64> {
    let mut total = 0.0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
        let ns = text.split(' ').next().and_then(|ns| ns.parse::<f64>().ok());
        total += ns.context("the first field of schedstat")? / 1e6;
    }
    Ok(total)
}
