//! The one loop: whatever happens only wakes it; then it looks at everything that is there, computes
//! everything that should be, and changes the difference. That is a round.
//!
//! Between rounds a lease that has nothing to do with others is a step: its few entries are changed
//! without a look at the rest ([`crate::standing`]). What others change in the kernel makes a round
//! only where it contradicts what should be there ([`crate::concern`]).
//!
//! Nothing is touched before the store has given a complete snapshot. What fails is kept, told
//! once, and tried again with the next round.

mod demand;
mod round;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use kernel::monitor::Monitor;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info, warn};

use crate::apply::{self, Kernel};
use crate::backend::Identity;
use crate::budget::Budget;
use crate::carrier::Carrier;
use crate::concern::{Concern, Interest};
use crate::desired::desired;
use crate::diff::{Op, Plan, diff, without_departures};
use crate::due::Due;
use crate::family::{ByFamily, Family};
use crate::keeper::Wish as KeeperWish;
use crate::lease::Lease;
use crate::lease_table::LeaseTable;
use crate::masquerade::{Masquerade, Rules};
use crate::net_conf::NetConf;
use crate::offload::Offload;
use crate::peers::{self, Node};
use crate::standing::Decided;
use crate::store::LeaseEvent;
use crate::subnet_env::SubnetEnv;
use crate::subnet_file::SubnetFile;
use crate::subnets::Subnets;
use crate::tables::{DeviceName, Facts, Tables, observe};
use crate::trouble::Troubles;
use crate::underlay::{self, Underlay, Wish};
use crate::wanted::{Step, Wanted};

/// How often everything is looked at though nothing seems to have happened.
const RESYNC: Duration = Duration::from_secs(30);
/// … but no more than this part of the time is spent on it, for the kernel tells of every change to a
/// device, address, route, neighbour, forwarding entry and rule, and says when it could not: what is
/// left for the look are settings, and WireGuard's peers.
const RESYNC_SHARE: u32 = 5_000;
/// … and this is seldom enough.
const RESYNC_LONGEST: Duration = Duration::from_secs(10 * 60);
/// The first wait after a failure; it doubles up to [`RESYNC`].
const RETRY: Duration = Duration::from_millis(500);
/// How long to wait before a subscription that ended is opened again.
const RESUBSCRIBE: Duration = Duration::from_secs(1);
/// How long to wait for more when the kernel has something to tell.
const TOGETHER: Duration = Duration::from_millis(10);
/// How often the number of peers is told while it changes all the time.
const TELL: Duration = Duration::from_secs(1);

/// What does not change while the daemon runs.
#[derive(Debug)]
pub(crate) struct Settings {
    /// The cluster's configuration.
    pub(crate) net_conf: NetConf,
    /// What is ours of what we publish.
    pub(crate) identity: Identity,
    /// The families that we publish an address of; those that we hold a subnet of are among them.
    pub(crate) published: Vec<Family>,
    /// The subnets that we hold.
    pub(crate) subnets: Subnets,
    /// What the operator asked of the underlay.
    pub(crate) wish: Wish,
    /// Where the CNI plugin reads all of it.
    pub(crate) subnet_file: SubnetFile,
    /// Where to keep what must survive a reboot.
    pub(crate) state_dir: PathBuf,
    /// How to masquerade, if at all.
    pub(crate) masquerade: Option<Masquerade>,
    /// Whether to accept forwarded traffic.
    pub(crate) forward: bool,
    /// Until then nothing of a peer is taken away that is not in the store.
    pub(crate) keep_until: Option<Instant>,
}

/// The loop's state.
#[derive(Debug)]
pub(crate) struct Reconciler {
    settings: Settings,
    kernel: Kernel,
    underlay: Underlay,
    lease: Lease,
    wanted: Wanted,
    keeper: mpsc::Sender<KeeperWish>,
    /// What the last round saw, without what is ours.
    facts: Facts,
    /// Our devices by number, as the last round saw them.
    devices: BTreeMap<u32, DeviceName>,
    /// We have no underlay now.
    adrift: bool,
    due: Due,
    /// What the store said about our own lease when the keeper was last asked to look.
    own_entry: Option<Lease>,
    carrier: Carrier,
    offload: Offload,
    skipped: Troubles,
    failures: Troubles,
    /// Chains of others that drop what we accept.
    drops: Troubles,
    in_sync: Option<(usize, usize)>,
    tell_not_before: Instant,
    retry: Duration,
    /// How many questions of the kernel may be answered, and how many refused.
    answers: Budget,
    refusals: Budget,
    rooms: Budget,
    crowded: Troubles,
}

impl Reconciler {
    /// A loop around this start.
    pub(crate) fn new(
        settings: Settings,
        kernel: Kernel,
        underlay: Underlay,
        lease: Lease,
        keeper: mpsc::Sender<KeeperWish>,
    ) -> Self {
        let on_demand = settings.net_conf.backend.on_demand().is_some();
        Self {
            own_entry: Some(lease.clone()),
            carrier: Carrier::of(
                &settings.net_conf.backend,
                &settings.identity,
                &settings.state_dir,
            ),
            offload: Offload::default(),
            settings,
            kernel,
            underlay,
            lease,
            wanted: match on_demand {
                true => Wanted::on_demand(),
                false => Wanted::default(),
            },
            keeper,
            facts: Facts::default(),
            devices: BTreeMap::new(),
            adrift: false,
            due: Due::at(Instant::now()),
            skipped: Troubles::new("lease skipped").naming_all(),
            failures: Troubles::new("cannot bring the kernel in line"),
            drops: Troubles::new("forwarded pod traffic may be dropped"),
            in_sync: None,
            tell_not_before: Instant::now(),
            retry: RETRY,
            answers: Budget::new(demand::ANSWERS, Instant::now()),
            refusals: Budget::new(demand::REFUSALS, Instant::now()),
            rooms: Budget::new(demand::ROOMS, Instant::now()),
            crowded: Troubles::new("new peers must wait"),
        }
    }

    /// Runs until the store's stream ends, which it does not by itself. Dropping the future between
    /// two rounds leaves the data path as it stands.
    pub(crate) async fn run(mut self, mut events: mpsc::Receiver<LeaseEvent>) {
        let mut monitor = None;
        let mut misses = None;
        loop {
            if monitor.is_none() {
                monitor = self.subscribe();
                misses = self.hear_misses();
                // What happened while we were deaf is found by looking.
                let wait = monitor.as_ref().map_or(RESUBSCRIBE, |_| Duration::ZERO);
                self.due.round = self.due.round.min(Instant::now() + wait);
            }
            let wake = match self.wanted.table().is_complete() {
                true => self.due.next(),
                // The store's snapshot wakes us.
                false => Instant::now() + RESYNC,
            };
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.fold(event),
                    None => return,
                },
                heard = changed(&monitor) => if let Err(error) = heard {
                    warn!(%error, "the kernel's notifications ended");
                    monitor = None;
                    continue;
                },
                asked = demand::asked(&misses, self.due.misses) => self.hear_asked(asked, &mut misses),
                () = sleep_until(wake) => {}
            }
            // Take what comes together together.
            while let Ok(event) = events.try_recv() {
                self.fold(event);
            }
            self.listen(&mut monitor);
            if !self.wanted.table().is_complete() {
                continue;
            }
            if self.due.round_is_due(Instant::now()) {
                self.timed_round(&mut monitor);
                self.answer_when_due(&mut misses, &mut monitor);
            } else {
                self.step(&mut monitor);
                self.answer_when_due(&mut misses, &mut monitor);
                if self.due.rules_are_due(Instant::now()) {
                    self.look_at_rules();
                }
                if self.due.telling.is_some_and(|due| due <= Instant::now()) {
                    let peers = self.told_of_skipped();
                    self.tell_in_sync(peers);
                }
            }
        }
    }

    fn subscribe(&mut self) -> Option<Monitor> {
        match self.kernel.monitor() {
            Ok(monitor) => Some(monitor),
            Err(error) => {
                warn!(%error, "changes in the kernel are found by the timer only");
                None
            }
        }
    }

    /// Takes in what the kernel has to tell.
    fn listen(&mut self, monitor: &mut Option<Monitor>) {
        let names = self.device_names();
        let nothing = Tables::default();
        let want = self.wanted.tables().unwrap_or(&nothing);
        let interest = Interest {
            adrift: self.adrift,
            ..interest(&self.settings, &self.underlay, &self.devices, want, &names)
        };
        let concern = heard(monitor, &interest);
        self.due.concern(concern);
    }

    fn timed_round(&mut self, monitor: &mut Option<Monitor>) {
        let began = Instant::now();
        // Set before the round, which may find that another one is due.
        self.due.round = began + RESYNC_LONGEST;
        self.due.rules = None;
        let (fine, changes) = self.round(monitor);
        let ended = Instant::now();
        let took = ended - began;
        debug!(took_us = took.as_micros(), changes, fine, "round");
        self.due.not_before = ended + took;
        let wait = self.wait_after(fine, took);
        self.due.round = self.due.round.min(ended + wait);
    }

    /// Makes the changes of leases that have nothing to do with others.
    fn step(&mut self, monitor: &mut Option<Monitor>) {
        let node = self.node();
        let Self {
            wanted,
            settings,
            underlay,
            facts,
            ..
        } = self;
        let plan = match wanted.step(|table| decide(settings, &node, underlay, table, facts)) {
            Step::Nothing => return,
            Step::Everything => {
                self.due.round = Instant::now();
                return;
            }
            Step::Plan(plan) => plan,
        };
        debug!(changes = plan.len(), "step");
        let mut failures = self.make(&plan, monitor);
        failures.extend(self.tell_carrier(&node));
        self.look_at_offload();
        let peers = self.told_of_skipped();
        match failures.is_empty() {
            true if self.in_sync.is_some() => self.tell_in_sync(peers),
            true => {}
            false => {
                self.failures.add(failures);
                self.out_of_sync();
                self.due.round = self.due.round.min(Instant::now() + self.retry);
            }
        }
    }

    fn look_at_offload(&mut self) {
        if let Some(want) = self.wanted.tables() {
            self.offload.follow(want, &self.devices);
        }
    }

    /// Tells which leases are left out; how many peers there are.
    fn told_of_skipped(&mut self) -> usize {
        let Some(decided) = self.wanted.decided() else {
            return 0;
        };
        if self.skipped.differs(&decided.skipped) {
            self.skipped.update(decided.skipped.clone());
        }
        decided.peers
    }

    /// Makes the changes of a plan, and hears meanwhile what the kernel has to tell, so that a long
    /// plan does not drown it. What failed, by words.
    fn make(&mut self, plan: &Plan, monitor: &mut Option<Monitor>) -> BTreeMap<String, String> {
        let names = self.device_names();
        let mut concern = Concern::default();
        let Self {
            kernel,
            settings,
            underlay,
            devices,
            facts,
            wanted,
            ..
        } = self;
        let nothing = Tables::default();
        let want = wanted.tables().unwrap_or(&nothing);
        let interest = interest(settings, underlay, devices, want, &names);
        let failures = kernel.apply(plan, facts, || {
            concern = concern.and(heard(monitor, &interest));
        });
        self.due.concern(concern);
        let texts = failures.into_iter().map(|failure| failure.0.to_string());
        texts.map(|text| (text.clone(), text)).collect()
    }

    /// One line when it is true and for every other number; while those change all the time, the
    /// last one of each second.
    fn tell_in_sync(&mut self, peers: usize) {
        let state = (peers, self.skipped.count());
        let now = Instant::now();
        self.due.telling = None;
        if self.in_sync == Some(state) {
            return;
        }
        if now < self.tell_not_before {
            self.due.telling = Some(self.tell_not_before);
            return;
        }
        self.in_sync = Some(state);
        self.tell_not_before = now + TELL;
        info!(peers, skipped = state.1, "in sync");
    }

    fn out_of_sync(&mut self) {
        self.in_sync = None;
        self.due.telling = None;
    }

    fn wait_after(&mut self, fine: bool, took: Duration) -> Duration {
        match fine {
            true => {
                self.retry = RETRY;
                RESYNC.max((took * RESYNC_SHARE).min(RESYNC_LONGEST))
            }
            false => {
                let wait = self.retry;
                self.retry = (wait * 2).min(RESYNC);
                wait
            }
        }
    }

    fn fold(&mut self, event: LeaseEvent) {
        if !self.wanted.fold(event) || !self.wanted.table().is_complete() {
            return;
        }
        let entry = self.wanted.table().get(&self.settings.subnets);
        if entry == self.own_entry.as_ref() {
            return;
        }
        self.own_entry = entry.cloned();
        if entry != Some(&self.lease) {
            // Full: it is about to look anyway.
            let _ = self.keeper.try_send(KeeperWish::Check);
        }
    }
}

/// What should be in the kernel if these were the leases.
fn decide(
    settings: &Settings,
    node: &Node,
    underlay: &Underlay,
    table: &LeaseTable,
    facts: &Facts,
) -> Decided {
    let Settings {
        net_conf, identity, ..
    } = settings;
    let backend = &net_conf.backend;
    let (tables, skipped, peers) = desired(backend, identity, node, underlay, table, facts);
    Decided {
        tables,
        skipped,
        peers,
    }
}

fn interest<'a>(
    settings: &Settings,
    underlay: &'a Underlay,
    devices: &'a BTreeMap<u32, DeviceName>,
    want: &'a Tables,
    names: &'a [DeviceName],
) -> Interest<'a> {
    Interest {
        want,
        devices,
        names,
        underlay: (underlay.ifindex, &underlay.name),
        adrift: false,
        follows_routes: settings.net_conf.backend.follows_routes(),
        follows_chains: settings.forward,
    }
}

async fn changed(monitor: &Option<Monitor>) -> kernel::Result<()> {
    match monitor {
        Some(monitor) => {
            monitor.changed().await?;
            sleep(TOGETHER).await;
            Ok(())
        }
        None => std::future::pending().await,
    }
}

/// What the kernel has to tell, without waiting for more. A subscription that fails is given up.
fn heard(monitor: &mut Option<Monitor>, interest: &Interest<'_>) -> Concern {
    let mut concern = Concern::default();
    let drained = monitor
        .as_mut()
        .map(|monitor| monitor.drain(|change| concern = concern.and(interest.in_change(&change))));
    if let Some(Err(error)) = drained {
        warn!(%error, "the kernel's notifications ended");
        *monitor = None;
    }
    concern
}
