use super::*;

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kernel::Mac;
use kernel::miss::Missing;
use kernel::route::Route;

use crate::backend::{Backend, Identity, vxlan};
use crate::demand::{Allowance, Asked, Demand, Idle};
use crate::desired::desired;
use crate::diff::{Op, diff, tests::apply};
use crate::family::{ByFamily, Family};
use crate::lease::Lease;
use crate::peers::Node;
use crate::tables::{DeviceName, Facts, Remote, tests::plain_link};
use crate::underlay::Underlay;

const HISTORIES: u64 = 100_000;
const OWN_MAC: Mac = Mac([2, 0, 0, 0, 0, 0xee]);
/// Good ones, ones that overlap, ours and one that overlaps it, one outside, one that is no key.
const NAMES: [&str; 9] = [
    "10.5.30.0-24",
    "10.5.31.0-24",
    "10.5.32.0-24",
    "10.5.33.0-24&fd00:5:0:33::-64",
    "10.5.30.0-23",
    "10.5.20.0-24",
    "10.5.20.128-25",
    "10.9.1.0-24",
    "nonsense",
];
/// On our link, behind a router, and one that is no node's.
const ADDRESSES: [&str; 4] = ["192.168.50.2", "192.168.50.3", "10.99.0.9", "127.0.0.1"];
/// The last one is ours.
const MACS: [&str; 4] = [
    "02:00:00:00:00:01",
    "02:00:00:00:00:02",
    "02:00:00:00:00:03",
    "02:00:00:00:00:ee",
];

/// Sebastiano Vigna's splitmix64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % sides as u64) as usize
    }

    fn one_in(&mut self, sides: usize) -> bool {
        self.roll(sides) == 0
    }

    fn record(&mut self) -> Record {
        let name = NAMES[self.roll(NAMES.len())];
        let kind = if self.one_in(10) { "other" } else { "vxlan" };
        let record = lease(name, ADDRESSES[self.roll(4)], MACS[self.roll(4)], kind);
        match self.one_in(10) {
            true => Record {
                content: Err("torn".to_owned()),
                ..record
            },
            false => record,
        }
    }
}

fn lease(name: &str, ip: &str, mac: &str, kind: &str) -> Record {
    let value = format!(
        r#"{{"PublicIP":"{ip}","BackendType":"{kind}","BackendData":{{"VNI":1,"VtepMAC":"{mac}"}}}}"#
    );
    let lease = Lease::parse(value.as_bytes()).unwrap();
    let subnets = name.parse().map_err(|reason| format!("{reason}"));
    Record {
        name: name.into(),
        content: subnets.map(|subnets| (subnets, lease)),
    }
}

/// A node, its kernel and the store.
struct World {
    backend: Backend,
    node: Node,
    identity: Identity,
    underlay: Underlay,
    facts: Facts,
    store: BTreeMap<Box<str>, Record>,
    wanted: Wanted,
    kernel: Tables,
    /// For how long nothing was sent to whom, if that is ever looked at.
    idle: Idle,
    /// A round is due: something failed, or somebody meddled.
    due: bool,
    steps: u64,
    answered: u64,
}

impl World {
    fn new(backend: Backend) -> Self {
        let ips = [(Family::V4, [192, 168, 50, 1].into())];
        let ips: ByFamily<_> = ips.into_iter().collect();
        let networks = [(Family::V4, "10.5.0.0/16".parse().unwrap())];
        let own = r#"{"PublicIP":"192.168.50.1","BackendType":"vxlan"}"#;
        let on_link = Route {
            ifindex: Some(2),
            ..Route::to("192.168.50.0/24".parse().unwrap())
        };
        Self {
            node: Node {
                subnets: "10.5.20.0-24".parse().unwrap(),
                lease: Lease::parse(own.as_bytes()).unwrap(),
                networks: networks.into_iter().collect(),
            },
            identity: Identity {
                macs: [(Family::V4, OWN_MAC)].into_iter().collect(),
                ..Identity::default()
            },
            underlay: Underlay {
                ifindex: 2,
                name: "eth0".into(),
                mtu: 1500,
                addresses: ips,
                public_ips: ips,
            },
            facts: Facts {
                links: vec![plain_link(2, "eth0")],
                routes: vec![on_link],
                ..Facts::default()
            },
            store: BTreeMap::new(),
            wanted: match backend.on_demand() {
                Some(_) => Wanted::on_demand(),
                None => Wanted::default(),
            },
            idle: Idle::new(),
            kernel: Tables::default(),
            due: true,
            steps: 0,
            answered: 0,
            backend,
        }
    }

    fn decide(&self, table: &LeaseTable) -> Decided {
        let (tables, skipped, peers) = desired(
            &self.backend,
            &self.identity,
            &self.node,
            &self.underlay,
            table,
            &self.facts,
        );
        Decided {
            tables,
            skipped,
            peers,
        }
    }

    fn snapshot(&self) -> LeaseEvent {
        LeaseEvent::Snapshot(self.store.values().cloned().collect())
    }

    /// Something happens in the store; what it sends then.
    fn happens(&mut self, dice: &mut Dice) -> LeaseEvent {
        let record = dice.record();
        if dice.one_in(3) {
            self.store.remove(&record.name);
            return LeaseEvent::Removed(record.name);
        }
        self.store.insert(record.name.clone(), record.clone());
        LeaseEvent::Put(record)
    }

    fn step(&mut self) -> Step {
        let mut wanted = std::mem::take(&mut self.wanted);
        let step = wanted.step(|table| self.decide(table));
        self.wanted = wanted;
        step
    }

    fn everything(&mut self) -> Plan {
        let mut wanted = std::mem::take(&mut self.wanted);
        wanted.decide_all(|table| self.decide(table));
        self.wanted = wanted;
        diff(self.wanted.tables().unwrap(), &self.kernel)
    }

    /// What the loop does when it wakes. Of `fails` changes of entries one does.
    fn turn(&mut self, dice: &mut Dice, fails: Option<usize>) {
        let plan = match std::mem::take(&mut self.due) {
            true => self.everything(),
            false => match self.step() {
                Step::Nothing => return,
                Step::Plan(plan) => {
                    self.steps += 1;
                    plan
                }
                Step::Everything => {
                    self.due = true;
                    return;
                }
            },
        };
        for op in plan {
            let entry = matches!(
                op,
                Op::PutFdb(..)
                    | Op::PutNeighbour(..)
                    | Op::PutRoute(..)
                    | Op::DeleteFdb(..)
                    | Op::DeleteNeighbour(..)
                    | Op::DeleteRoute(..)
            );
            match fails {
                Some(fails) if entry && dice.one_in(fails) => self.due = true,
                _ => apply(&vec![op], &mut self.kernel),
            }
        }
    }

    /// Packets are sent to peers and to nobody, and those not in use are given up.
    fn traffic(&mut self, dice: &mut Dice) {
        let device: DeviceName = "flannel.1".into();
        let mut asked = Asked::new();
        for _ in 0..dice.roll(4) {
            let missing = match dice.one_in(4) {
                true => Missing::NodeOf(MACS[dice.roll(4)].parse().unwrap()),
                false => Missing::MacOf([10, 5, 30 + dice.roll(5) as u8, 9].into()),
            };
            asked.insert((device.clone(), missing));
        }
        let allowed = Allowance {
            answers: dice.roll(3),
            refusals: dice.roll(3),
        };
        let answer = |demand: &mut Demand, all: &Tables| demand.answer(all, &asked, allowed);
        let plan = self.wanted.change_demand(answer).plan;
        self.answered += u64::from(!plan.is_empty());
        apply(&plan, &mut self.kernel);
        if dice.one_in(3) {
            let of = |mac: &&str| (mac.parse().unwrap(), Duration::from_secs(1));
            let idle = MACS[..dice.roll(4)].iter().map(of).collect();
            self.idle = [(device, idle)].into();
            let (idle, least) = (&self.idle, Duration::from_secs(1));
            let plan = self
                .wanted
                .change_demand(|demand, all| demand.age(all, idle, least));
            apply(&plan, &mut self.kernel);
        }
    }

    /// Somebody changes our tables, which is noticed.
    fn meddle(&mut self, dice: &mut Dice) {
        self.due = true;
        self.kernel.routes.pop_first();
        for device in self.kernel.devices.values_mut() {
            match dice.roll(3) {
                0 => drop(device.neighbours.pop_last()),
                1 => drop(device.fdb.insert(Mac([2, 0, 0, 0, 0, 1]), Remote::Odd)),
                _ => drop(device.fdb.pop_first()),
            }
        }
    }
}

fn name_of(event: &LeaseEvent) -> Option<&str> {
    match event {
        LeaseEvent::Snapshot(_) => None,
        LeaseEvent::Put(record) => Some(&record.name),
        LeaseEvent::Removed(name) => Some(name),
    }
}

/// Plays one history; how many steps it took, and how often misses were answered.
fn play(seed: u64) -> (u64, u64) {
    let mut dice = Dice(seed);
    let mut world = World::new(match dice.roll(4) {
        0 => Backend::HostGw,
        n => Backend::Vxlan(vxlan::Options {
            direct_routing: n == 1,
            on_demand: (n == 2).then_some(Duration::from_secs(1)),
            ..vxlan::Options::default()
        }),
    });
    let on_demand = world.wanted.demand().is_some();
    for _ in 0..dice.roll(5) {
        world.happens(&mut dice);
    }
    let first = world.snapshot();
    world.wanted.fold(first);
    // What happened to one name may be overtaken by what happened to others.
    let mut held: Option<LeaseEvent> = None;
    for _ in 0..2 + dice.roll(8) {
        let event = world.happens(&mut dice);
        let overtaken = held.take();
        let same = overtaken.as_ref().and_then(name_of) == name_of(&event);
        let (sooner, later) = if same {
            (overtaken, None)
        } else {
            (None, overtaken)
        };
        sooner.map(|event| world.wanted.fold(event));
        if dice.one_in(5) {
            // Told twice.
            world.wanted.fold(event.clone());
        }
        match dice.one_in(6) && later.is_none() {
            true => held = Some(event),
            false => drop(world.wanted.fold(event)),
        }
        later.map(|event| world.wanted.fold(event));
        if dice.one_in(8) {
            held = None;
            let snapshot = world.snapshot();
            world.wanted.fold(snapshot);
        }
        if dice.one_in(10) {
            world.meddle(&mut dice);
        }
        if dice.one_in(2) {
            world.turn(&mut dice, Some(6));
        }
        // An answer needs what a round made.
        if on_demand && !world.due && world.kernel.devices.len() == 1 {
            world.traffic(&mut dice);
        }
    }
    held.map(|event| world.wanted.fold(event));
    // Quiet, and nothing fails any more: a round or a step, what a step could not see to, and rest.
    for _ in 0..3 {
        world.turn(&mut dice, None);
    }
    assert!(!world.due, "seed {seed}: it does not come to rest");
    let mut fresh = LeaseTable::default();
    fresh.fold(world.snapshot());
    let want = world.decide(&fresh);
    assert_eq!(world.wanted.table(), &fresh, "seed {seed}: leases");
    match world.wanted.demand() {
        None => assert_eq!(world.kernel, want.tables, "seed {seed}: tables"),
        Some(demand) => {
            let mut fresh = Demand::default();
            fresh.begin(&want.tables, &world.kernel, &Idle::new(), Duration::MAX);
            assert_eq!(fresh.tables(), &world.kernel, "seed {seed}: tables in use");
            assert_eq!(demand.count(), fresh.count(), "seed {seed}: in use");
        }
    }
    assert_eq!(world.wanted.decided(), Some(&want), "seed {seed}: decided");
    (world.steps, world.answered)
}

#[test]
fn any_history_that_ends_in_the_same_leases_ends_in_the_same_tables() {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let (steps, answered) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let (steps, answered) = (&steps, &answered);
            scope.spawn(move || {
                let seeds = (0..HISTORIES).filter(|seed| seed % threads == thread);
                for seed in seeds {
                    let (stepped, asked) = play(seed);
                    steps.fetch_add(stepped, Ordering::Relaxed);
                    answered.fetch_add(asked, Ordering::Relaxed);
                }
            });
        }
    });
    // Otherwise this says nothing about steps, and about peers in use.
    let (steps, answered) = (steps.into_inner(), answered.into_inner());
    assert!(answered > HISTORIES / 4, "{answered} answers");
    assert!(steps > HISTORIES / 4, "{steps} steps");
}

fn world_of(leases: &[Record]) -> World {
    let mut world = World::new(Backend::Vxlan(vxlan::Options::default()));
    for record in leases {
        world.store.insert(record.name.clone(), record.clone());
    }
    let snapshot = world.snapshot();
    world.wanted.fold(snapshot);
    world.turn(&mut Dice(0), None);
    world
}

/// A peer by the places of its name, address and MAC in the lists above.
fn peer(name: usize, ip: usize, mac: usize) -> Record {
    lease(NAMES[name], ADDRESSES[ip], MACS[mac], "vxlan")
}

#[test]
fn a_peer_that_comes_costs_its_own_three_entries() {
    let mut world = world_of(&[peer(0, 0, 0)]);
    let new = peer(1, 1, 1);
    assert!(world.wanted.fold(LeaseEvent::Put(new.clone())));
    let Step::Plan(plan) = world.step() else {
        panic!("a step");
    };
    assert_eq!(plan.len(), 3, "{plan:?}");
    assert!(!world.wanted.fold(LeaseEvent::Put(new)), "nothing new");
    assert_eq!(world.step(), Step::Nothing);
}

#[test]
fn what_others_have_a_part_in_is_decided_with_them() {
    for (other, why) in [
        (peer(4, 2, 2), "it overlaps"),
        (peer(2, 2, 0), "its MAC is another's"),
        (peer(2, 0, 0), "the same node has two subnets"),
    ] {
        let mut world = world_of(&[peer(0, 0, 0), peer(1, 1, 1)]);
        world.wanted.fold(LeaseEvent::Put(other));
        assert_eq!(world.step(), Step::Everything, "{why}");
    }
    // Of two leases with one MAC the second is left out until the first goes.
    let mut world = world_of(&[peer(0, 0, 0), peer(2, 2, 0)]);
    assert_eq!(world.wanted.decided().unwrap().peers, 1);
    world.wanted.fold(LeaseEvent::Removed(NAMES[0].into()));
    assert_eq!(world.step(), Step::Everything);
    assert_eq!(world.wanted.tables(), Some(&world.kernel), "until then");
}
