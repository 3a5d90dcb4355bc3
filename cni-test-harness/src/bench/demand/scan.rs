//! A scan of the network from the node itself, as fast as one thread sends, and what becomes of the
//! daemon and of its other work meanwhile.

use std::net::{Ipv4Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};

use super::super::idle::cpu_ms;
use super::super::numbers::Series;
use super::super::peers::DEVICE;
use super::{DEADLINE, NETWORK, ms};
use crate::cluster::Member;
use crate::wait;

/// Every address of 10.0.0.0/12: some thousands of subnets with a peer, the others without.
const FIRST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 0);
const ADDRESSES: u32 = 1 << 20;
/// How often it is looked how many peers are in use.
const LOOK: Duration = Duration::from_millis(250);

/// What was seen.
#[derive(Debug, Default)]
pub(super) struct Scan {
    pub(super) packets: u64,
    pub(super) seconds: f64,
    /// Of the daemon.
    pub(super) cpu_ms: f64,
    /// The most peers in use at a time.
    pub(super) most: usize,
    /// Until the whole network's route, which somebody deleted, was back, in ms.
    pub(super) repaired: Series,
}

pub(super) fn run(member: &Member, long: Duration) -> Result<Scan> {
    let pid = member.daemon().context("it runs")?.pid();
    let (over, packets) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let scanner = scope.spawn(|| {
            member.node().netns().run(|| {
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                for n in (0..ADDRESSES).cycle() {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    let to = Ipv4Addr::from_bits(FIRST.to_bits() + n);
                    // Some are refused, and while too many wait nothing is taken.
                    let _ = socket.send_to(b"x", (to, 9));
                    packets.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            })
        });
        let watched = watch(member, pid, long, &packets);
        over.store(true, Ordering::Relaxed);
        let joined = scanner.join();
        joined.map_err(|_| anyhow!("the scanning thread panicked"))??;
        watched
    })
}

fn watch(member: &Member, pid: u32, long: Duration, packets: &AtomicU64) -> Result<Scan> {
    let mut scan = Scan::default();
    let sent = packets.load(Ordering::Relaxed);
    let (began, before) = (Instant::now(), cpu_ms(pid)?);
    while began.elapsed() < long {
        wait::pause_for(LOOK);
        scan.most = scan.most.max(member.view().fdb(DEVICE)?.len());
        scan.repaired.push(repair(member)?);
    }
    scan.seconds = began.elapsed().as_secs_f64();
    scan.cpu_ms = cpu_ms(pid)? - before;
    scan.packets = packets.load(Ordering::Relaxed) - sent;
    ensure!(scan.packets > 0, "nothing was sent");
    Ok(scan)
}

/// Deletes the whole network's route; the ms until it is seen again.
fn repair(member: &Member) -> Result<f64> {
    let node = member.node();
    node.exec("ip", &["route", "delete", NETWORK, "dev", DEVICE])?;
    let began = Instant::now();
    loop {
        let shown = node.exec("ip", &["route", "show", "exact", NETWORK])?;
        let took = began.elapsed();
        if shown.stdout_text().contains(DEVICE) {
            return Ok(ms(took));
        }
        ensure!(took < DEADLINE, "the whole network's route is gone");
    }
}
