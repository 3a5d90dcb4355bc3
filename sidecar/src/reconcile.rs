//! The one loop: whatever happens only wakes it; then it looks at everything that is there, computes
//! everything that should be, and changes the difference.
//!
//! Nothing is touched before the store has given a complete snapshot. What fails is kept, told
//! once, and tried again with the next round.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use kernel::monitor::{Changes, Monitor};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, error, info, warn};

use crate::apply::{self, Kernel};
use crate::backend::Identity;
use crate::desired::desired;
use crate::diff::diff;
use crate::family::{ByFamily, Family};
use crate::health::Readiness;
use crate::keeper::Wish as KeeperWish;
use crate::lease::Lease;
use crate::lease_table::LeaseTable;
use crate::masquerade::{Masquerade, Rules};
use crate::net_conf::NetConf;
use crate::peers::Node;
use crate::store::LeaseEvent;
use crate::subnet_env::SubnetEnv;
use crate::tables::{DeviceName, Facts, observe};
use crate::trouble::Troubles;
use crate::underlay::{self, Underlay, Wish};
use crate::{atomic_file, subnets::Subnets};

/// How often everything is looked at though nothing seems to have happened.
const RESYNC: Duration = Duration::from_secs(30);
/// The first wait after a failure; it doubles up to [`RESYNC`].
const RETRY: Duration = Duration::from_millis(500);
/// How long to wait before a subscription that ended is opened again.
const RESUBSCRIBE: Duration = Duration::from_secs(1);

/// What does not change while the daemon runs.
#[derive(Debug)]
pub(crate) struct Settings {
    /// The cluster's configuration.
    pub(crate) net_conf: NetConf,
    /// What is ours of what we publish.
    pub(crate) identity: Identity,
    /// The subnets that we hold.
    pub(crate) subnets: Subnets,
    /// What the operator asked of the underlay.
    pub(crate) wish: Wish,
    /// Where `subnet.env` goes.
    pub(crate) subnet_file: PathBuf,
    /// How to masquerade, if at all.
    pub(crate) masquerade: Option<Masquerade>,
    /// Whether to accept forwarded traffic.
    pub(crate) forward: bool,
}

/// The loop's state.
#[derive(Debug)]
pub(crate) struct Reconciler {
    settings: Settings,
    kernel: Kernel,
    underlay: Underlay,
    lease: Lease,
    table: LeaseTable,
    keeper: mpsc::Sender<KeeperWish>,
    ready: Readiness,
    /// The devices whose changes concern us, and those that we know not to be ours.
    ours: BTreeSet<u32>,
    others: BTreeSet<u32>,
    /// What the store said about our own lease when the keeper was last asked to look.
    own_entry: Option<Lease>,
    skipped: Troubles,
    failures: Troubles,
    /// Chains of others that drop what we accept.
    drops: Troubles,
    in_sync: Option<(usize, usize)>,
    retry: Duration,
}

impl Reconciler {
    /// A loop around this start.
    pub(crate) fn new(
        settings: Settings,
        kernel: Kernel,
        underlay: Underlay,
        lease: Lease,
        keeper: mpsc::Sender<KeeperWish>,
        ready: Readiness,
    ) -> Self {
        Self {
            own_entry: Some(lease.clone()),
            settings,
            kernel,
            underlay,
            lease,
            table: LeaseTable::default(),
            keeper,
            ready,
            ours: BTreeSet::new(),
            others: BTreeSet::new(),
            skipped: Troubles::new("lease skipped"),
            failures: Troubles::new("cannot bring the kernel in line"),
            drops: Troubles::new("forwarded pod traffic may be dropped"),
            in_sync: None,
            retry: RETRY,
        }
    }

    /// Runs until the store's stream ends, which it does not by itself. Dropping the future between
    /// two rounds leaves the data path as it stands.
    pub(crate) async fn run(mut self, mut events: mpsc::Receiver<LeaseEvent>) {
        let mut monitor = None;
        let mut next_round = Instant::now() + RESYNC;
        let mut not_before = Instant::now();
        loop {
            if monitor.is_none() {
                monitor = self.subscribe();
                // What happened while we were deaf is found by looking.
                next_round = match monitor {
                    Some(_) => Instant::now(),
                    None => next_round.min(Instant::now() + RESUBSCRIBE),
                };
            }
            let due = tokio::select! {
                event = events.recv() => match event {
                    Some(event) => { self.fold(event); true }
                    None => return,
                },
                changes = changes(&mut monitor) => match changes {
                    Some(changes) => self.concerns(&changes),
                    None => { monitor = None; continue; }
                },
                () = sleep_until(next_round) => true,
            };
            // Take what comes together together; under a storm spend half the time on other things.
            while let Ok(event) = events.try_recv() {
                self.fold(event);
            }
            if !due {
                continue;
            }
            if !self.table.is_complete() {
                // The store's snapshot wakes us.
                next_round = Instant::now() + RESYNC;
                continue;
            }
            if Instant::now() < not_before {
                sleep_until(not_before).await;
                while let Ok(event) = events.try_recv() {
                    self.fold(event);
                }
            }
            let began = Instant::now();
            let fine = self.round();
            let ended = Instant::now();
            not_before = ended + (ended - began);
            next_round = ended + self.wait_after(fine);
        }
    }

    fn subscribe(&self) -> Option<Monitor> {
        match Monitor::open() {
            Ok(monitor) => Some(monitor),
            Err(error) => {
                warn!(%error, "changes in the kernel are found by the timer only");
                None
            }
        }
    }

    fn wait_after(&mut self, fine: bool) -> Duration {
        match fine {
            true => {
                self.retry = RETRY;
                RESYNC
            }
            false => {
                let wait = self.retry;
                self.retry = (wait * 2).min(RESYNC);
                wait
            }
        }
    }

    fn fold(&mut self, event: LeaseEvent) {
        self.table.fold(event);
        if !self.table.is_complete() {
            return;
        }
        let entry = self.table.get(&self.settings.subnets);
        if entry == self.own_entry.as_ref() {
            return;
        }
        self.own_entry = entry.cloned();
        if entry != Some(&self.lease) {
            // Full: it is about to look anyway.
            let _ = self.keeper.try_send(KeeperWish::Check);
        }
    }

    /// Whether changes can be about anything that is ours.
    fn concerns(&self, changes: &Changes) -> bool {
        let ours = |devices: &BTreeSet<u32>| devices.iter().any(|index| self.ours.contains(index));
        // A device that we have not seen may be ours, made by somebody else.
        let unseen = |devices: &BTreeSet<u32>| {
            let mut devices = devices.iter();
            devices.any(|index| !self.others.contains(index))
        };
        changes.lost
            || changes.nftables
            || !changes.routes.is_empty()
            || ours(&changes.addresses)
            || ours(&changes.neighbours)
            || unseen(&changes.links)
    }

    /// Looks, compares, changes. Whether everything is as it should be.
    fn round(&mut self) -> bool {
        let names = self.device_names();
        let mut faults: BTreeMap<String, String> = BTreeMap::new();
        let facts = match self.kernel.dump(&names) {
            Ok(facts) => facts,
            Err(error) => {
                faults.insert("dump".to_owned(), error.to_string());
                self.failures.update(faults);
                return false;
            }
        };
        if let Err(reason) = self.follow_underlay(&facts) {
            faults.insert("underlay".to_owned(), reason);
        }
        let node = self.node();
        let Settings {
            net_conf, identity, ..
        } = &self.settings;
        let (want, skipped, peers) = desired(
            &net_conf.backend,
            identity,
            &node,
            &self.underlay,
            &self.table,
            &facts,
        );
        self.skipped.update(skipped);
        let networks: Vec<_> = node.networks.iter().map(|(_, net)| *net).collect();
        let plan = diff(&want, &observe(&facts, want.devices.keys(), &networks));
        for failure in self.kernel.apply(&plan, &facts) {
            let text = failure.0.to_string();
            faults.insert(text.clone(), text);
        }
        for device in want.devices.keys() {
            if let Err(error) = apply::refuse_router_advertisements(device) {
                debug!(%device, %error, "refuse router advertisements");
            }
        }
        self.know(&facts, &names);
        match self.kernel.ensure_nftables(&self.rules(&node)) {
            Ok(true) => info!(table = crate::masquerade::TABLE, "nftables rules written"),
            Ok(false) => {}
            Err(error) => {
                faults.insert("nftables".to_owned(), error.to_string());
            }
        }
        self.look_for_drops();
        if faults.is_empty()
            && let Err(reason) = self.publish(&node)
        {
            faults.insert("subnet.env".to_owned(), reason);
        }
        let fine = faults.is_empty();
        self.failures.update(faults);
        let state = (peers, self.skipped.count());
        if fine && self.in_sync != Some(state) {
            info!(peers, skipped = state.1, "in sync");
        }
        self.in_sync = fine.then_some(state);
        fine
    }

    /// Our accepting forwarded traffic does not help where another table drops it, and that is
    /// for the operator to change: we say which one it is.
    fn look_for_drops(&mut self) {
        if !self.settings.forward {
            return;
        }
        match self.kernel.forward_drops() {
            Ok(chains) => {
                let advice = "its policy is drop: let it accept this network's addresses";
                let chains = chains.into_iter().map(|chain| (chain, advice.to_owned()));
                self.drops.update(chains.collect());
            }
            Err(error) => debug!(%error, "look for chains that drop forwarded traffic"),
        }
    }

    fn device_names(&self) -> Vec<DeviceName> {
        let NetConf { backend, ranges } = &self.settings.net_conf;
        backend.devices(ranges.families())
    }

    fn node(&self) -> Node {
        let ranges = self.settings.net_conf.ranges.iter();
        Node {
            subnets: self.settings.subnets,
            lease: self.lease.clone(),
            networks: ranges
                .map(|(family, range)| (family, range.network))
                .collect(),
        }
    }

    fn rules(&self, node: &Node) -> Rules {
        Rules {
            networks: node.networks,
            subnets: node.subnets,
            masquerade: self.settings.masquerade,
            forward: self.settings.forward,
        }
    }

    /// Keeps to the chosen device while it has its addresses, else chooses anew and tells peers.
    fn follow_underlay(&mut self, facts: &Facts) -> Result<(), String> {
        let now = match self.underlay.refreshed(facts) {
            Some(now) => now,
            None => self.choose_underlay(facts)?,
        };
        if now == self.underlay {
            return Ok(());
        }
        info!(
            interface = now.name, mtu = now.mtu, addresses = ?shown(&now.addresses),
            "the underlay has changed"
        );
        self.underlay = now;
        let backend = &self.settings.net_conf.backend;
        let lease = backend.lease(&self.underlay, &self.settings.identity);
        if lease != self.lease {
            self.lease = lease.clone();
            if self.keeper.try_send(KeeperWish::Publish(lease)).is_err() {
                return Err("the lease cannot be published yet".to_owned());
            }
        }
        Ok(())
    }

    fn choose_underlay(&mut self, facts: &Facts) -> Result<Underlay, String> {
        let wish = &self.settings.wish;
        let families: Vec<Family> = self.settings.net_conf.ranges.families().collect();
        let towards = match wish.can_reach {
            Some(ip) => self.kernel.towards(ip).map_err(|e| e.to_string())?,
            None => None,
        };
        underlay::select(facts, wish, &families, towards.as_ref()).map_err(|e| e.to_string())
    }

    /// Remembers which devices a notification must be about to concern us.
    fn know(&mut self, facts: &Facts, names: &[DeviceName]) {
        (self.ours, self.others) = facts
            .links
            .iter()
            .map(|link| link.ifindex)
            .partition(|index| {
                let link = facts.links.iter().find(|link| link.ifindex == *index);
                *index == self.underlay.ifindex
                    || link.is_some_and(|link| names.iter().any(|name| **name == *link.name))
            });
    }

    /// Writes `subnet.env` if it does not say so already: the node can carry traffic.
    fn publish(&self, node: &Node) -> Result<(), String> {
        let backend = &self.settings.net_conf.backend;
        let env = SubnetEnv {
            networks: node.networks,
            subnets: node.subnets,
            mtu: backend.pod_mtu(node.networks.families(), &self.underlay)?,
            ip_masq: self.settings.masquerade.is_some(),
        };
        let text = env.render();
        let path = &self.settings.subnet_file;
        if std::fs::read(path).is_ok_and(|present| present == text.as_bytes()) {
            self.become_ready();
            return Ok(());
        }
        atomic_file::write(path, text.as_bytes())
            .map_err(|error| format!("write {}: {error}", path.display()))?;
        info!(path = %path.display(), subnets = %node.subnets, mtu = env.mtu, "subnet file written");
        self.become_ready();
        Ok(())
    }

    fn become_ready(&self) {
        if self.ready.get() {
            return;
        }
        self.ready.set();
        if let Err(error) = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]) {
            error!(%error, "tell systemd that we are ready");
        }
    }
}

async fn changes(monitor: &mut Option<Monitor>) -> Option<Changes> {
    match monitor {
        Some(monitor) => monitor.changes().await,
        None => std::future::pending().await,
    }
}

fn shown(addresses: &ByFamily<std::net::IpAddr>) -> Vec<String> {
    addresses.iter().map(|(_, ip)| ip.to_string()).collect()
}
