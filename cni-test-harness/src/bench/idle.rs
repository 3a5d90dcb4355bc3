//! What twilld costs while nothing happens.

use std::time::Duration;

use anyhow::{Context, Result};
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;

use crate::cluster::{Cluster, Spec};
use crate::wait;

/// How long a daemon is left alone before it is looked at.
pub(super) const IDLE: Duration = Duration::from_secs(60);
/// What `top` shows as 0.0 %: half a thousandth of one processor.
pub(super) const NOTHING: f64 = 0.0005;

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

/// User and system time so far, threads that have ended included, by the process's own clock:
/// /proc/PID/stat counts in 10 ms.
pub(super) fn cpu_ms(pid: u32) -> Result<f64> {
    let pid = Pid::from_raw(i32::try_from(pid)?);
    let clock = clock_getcpuclockid(pid).context("find the clock of a process")?;
    let time: Duration = clock.now().context("read the clock of a process")?.into();
    Ok(time.as_secs_f64() * 1e3)
}
