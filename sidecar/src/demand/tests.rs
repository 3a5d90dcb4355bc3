use super::*;

use kernel::vxlan::Vxlan;

use crate::diff::tests::apply;
use crate::family::Family;
use crate::tables::{DeviceLink, Kind, Remote};

const ALL: Allowance = Allowance {
    answers: usize::MAX,
    refusals: usize::MAX,
};
const LONG: Duration = Duration::from_secs(300);

fn device() -> DeviceName {
    "flannel.1".into()
}

fn mac(n: u16) -> Mac {
    let [high, low] = n.to_be_bytes();
    Mac([2, 0, 0, 0, high, low])
}

fn base(n: u16) -> IpAddr {
    let [high, low] = n.to_be_bytes();
    [10, 128 + high, low, 0].into()
}

fn subnet(n: u16) -> IpNet {
    IpNet::new(base(n), 24).unwrap()
}

fn pod(n: u16, host: u8) -> Missing {
    let IpAddr::V4(base) = base(n) else {
        unreachable!("they are IPv4")
    };
    Missing::MacOf(IpAddr::V4((base.to_bits() + u32::from(host)).into()))
}

/// Everything there would be without `OnDemand`: these peers, and the whole network's route.
fn all(peers: impl IntoIterator<Item = u16>) -> Tables {
    let mut tables = Tables::default();
    let mut on_it = Device {
        link: DeviceLink {
            kind: Kind::Vxlan(Vxlan {
                vni: 1,
                underlay: Some(2),
                local: Some([192, 168, 50, 1].into()),
                group: None,
                port: 8472,
                learning: false,
                gbp: false,
                l2miss: true,
                l3miss: true,
            }),
            mac: Some(Mac([2, 0, 0, 0, 0xff, 0xff])),
            mtu: 1450,
            up: true,
            asks: Some(Family::V4),
        },
        addresses: BTreeSet::new(),
        neighbours: BTreeMap::new(),
        fdb: BTreeMap::new(),
    };
    let whole = RouteKey::to("10.128.0.0/9".parse().unwrap()).before();
    let out = |via, onlink| Hop {
        via,
        device: device(),
        onlink,
    };
    let unspecified = Family::V4.unspecified();
    tables.routes.insert(whole, out(unspecified, false));
    for n in peers {
        let [high, low] = n.to_be_bytes();
        let node = Remote::One([192, 168, high, low].into());
        on_it.fdb.insert(mac(n), node);
        on_it.neighbours.insert(base(n), mac(n));
        let key = RouteKey::to(subnet(n));
        tables.routes.insert(key, out(base(n), true));
    }
    tables.devices.insert(device(), on_it);
    tables
}

/// A node that has begun, and its kernel.
fn begun(all: &Tables) -> (Demand, Tables) {
    let mut demand = Demand::default();
    demand.begin(all, &Tables::default(), &Idle::new(), LONG);
    let kernel = demand.tables().clone();
    (demand, kernel)
}

fn asked(missing: impl IntoIterator<Item = Missing>) -> Asked {
    let missing = missing.into_iter();
    missing.map(|missing| (device(), missing)).collect()
}

fn idle(of: impl IntoIterator<Item = (u16, u64)>) -> Idle {
    let of = of.into_iter();
    let of = of.map(|(n, seconds)| (mac(n), Duration::from_secs(seconds)));
    [(device(), of.collect())].into()
}

#[test]
fn nobody_in_use_is_one_route() {
    let (demand, kernel) = begun(&all(0..2000));
    assert_eq!(demand.count(), 0);
    assert_eq!(kernel.routes.len(), 1);
    assert!(kernel.devices[&device()].fdb.is_empty());
}

#[test]
fn a_first_packet_goes_out_behind_the_entries_of_its_peer() {
    let all = all(0..2000);
    let (mut demand, mut kernel) = begun(&all);
    let answer = demand.answer(&all, &asked([pod(7, 9)]), ALL);
    let Missing::MacOf(ip) = pod(7, 9) else {
        panic!()
    };
    assert_eq!((answer.answers, answer.refusals), (1, 0));
    let [
        Op::PutFdb(_, fdb, _),
        Op::PutNeighbour(_, via, _),
        Op::PutRoute(key, _),
        Op::Resolve(_, out, to),
        Op::DeleteNeighbour(_, forgotten),
    ] = &answer.plan[..]
    else {
        panic!("{:?}", answer.plan);
    };
    assert_eq!(
        (*fdb, *via, *key),
        (mac(7), base(7), RouteKey::to(subnet(7)))
    );
    assert_eq!((*out, *to, *forgotten), (ip, mac(7), ip));
    apply(&answer.plan, &mut kernel);
    assert_eq!(&kernel, demand.tables());
    // Another pod of that peer, whose packet was on its way already, is let out too.
    let answer = demand.answer(&all, &asked([pod(7, 10)]), ALL);
    apply(&answer.plan, &mut kernel);
    assert_eq!((demand.count(), &kernel), (1, demand.tables()));
}

#[test]
fn a_peers_own_base_address_keeps_its_neighbour() {
    let all = all(0..9);
    let (mut demand, mut kernel) = begun(&all);
    let answer = demand.answer(&all, &asked([pod(7, 0)]), ALL);
    assert_eq!(answer.plan.len(), 3, "{:?}", answer.plan);
    apply(&answer.plan, &mut kernel);
    assert_eq!(kernel.devices[&device()].neighbours[&base(7)], mac(7));
}

#[test]
fn a_mac_without_a_node_gets_its_peers_entries() {
    let all = all(0..9);
    let (mut demand, mut kernel) = begun(&all);
    let stranger = Missing::NodeOf(Mac([2, 9, 9, 9, 9, 9]));
    let answer = demand.answer(&all, &asked([Missing::NodeOf(mac(3)), stranger]), ALL);
    assert_eq!((answer.answers, answer.plan.len()), (1, 3));
    apply(&answer.plan, &mut kernel);
    assert_eq!(&kernel, demand.tables());
}

#[test]
fn an_address_that_no_peer_has_is_refused_and_others_are_none_of_ours() {
    let all = all(0..9);
    let (mut demand, _) = begun(&all);
    let others = Missing::MacOf("192.168.7.7".parse().unwrap());
    let answer = demand.answer(&all, &asked([pod(700, 9), others]), ALL);
    let [Op::DeleteNeighbour(_, ip)] = &answer.plan[..] else {
        panic!("{:?}", answer.plan);
    };
    assert_eq!(pod(700, 9), Missing::MacOf(*ip));
    assert_eq!((answer.refusals, demand.count()), (1, 0));
}

#[test]
fn a_scan_is_answered_as_far_as_is_allowed_and_fills_no_more_than_the_room() {
    let all = all(0..5000);
    let (mut demand, mut kernel) = begun(&all);
    let few = Allowance {
        answers: 100,
        refusals: 10,
    };
    let scan = asked((0..6000).map(|n| pod(n, 1)));
    let answer = demand.answer(&all, &scan, few);
    assert_eq!((answer.answers, answer.refusals), (100, 10));
    assert!(answer.plan.len() <= 100 * 5 + 10 && !answer.crowded);
    apply(&answer.plan, &mut kernel);
    let answer = demand.answer(&all, &scan, ALL);
    apply(&answer.plan, &mut kernel);
    assert!(answer.crowded && demand.is_full());
    assert_eq!((demand.count(), &kernel), (MOST, demand.tables()));
    assert_eq!(kernel.routes.len(), MOST + 1);
}

#[test]
fn those_that_were_not_used_the_longest_make_room_and_those_of_now_do_not() {
    let all = all(0..5000);
    let (mut demand, mut kernel) = begun(&all);
    let most = MOST as u16;
    let answer = demand.answer(&all, &asked((0..most).map(|n| pod(n, 1))), ALL);
    apply(&answer.plan, &mut kernel);
    let busy = idle((0..most).map(|n| (n, 0)));
    assert!(demand.make_room(&all, &busy).is_empty());
    let idle = idle((0..most).map(|n| (n, if n < 10 { 0 } else { n.into() })));
    let plan = demand.make_room(&all, &idle);
    apply(&plan, &mut kernel);
    assert_eq!(&kernel, demand.tables());
    let is_there = |n| kernel.routes.contains_key(&RouteKey::to(subnet(n)));
    assert!((0..10).all(is_there), "in use");
    assert!(is_there(most - ROOM as u16 - 1) && !is_there(most - 1));
}

#[test]
fn who_was_sent_nothing_loses_everything_and_route_first() {
    let all = all(0..9);
    let (mut demand, mut kernel) = begun(&all);
    let answer = demand.answer(&all, &asked([pod(1, 1), pod(2, 1)]), ALL);
    apply(&answer.plan, &mut kernel);
    let plan = demand.age(&all, &idle([(1, 299), (2, 300)]), LONG);
    assert!(
        matches!(&plan[..], [Op::DeleteRoute(key, _), Op::DeleteNeighbour(..), Op::DeleteFdb(..)]
            if key.destination == subnet(2)),
        "{plan:?}"
    );
    apply(&plan, &mut kernel);
    assert_eq!((&kernel, demand.count()), (demand.tables(), 1));
    assert!(demand.age(&all, &idle([(1, 299)]), LONG).is_empty());
}

#[test]
fn a_restart_takes_over_who_is_in_use_and_writes_nothing() {
    let all = all(0..2000);
    let (mut first, mut kernel) = begun(&all);
    let answer = first.answer(&all, &asked([pod(1, 1), pod(2, 1), pod(3, 1)]), ALL);
    apply(&answer.plan, &mut kernel);
    let mut second = Demand::default();
    let found = idle([(1, 0), (2, 299), (3, 4)]);
    second.begin(&all, &kernel, &found, LONG);
    assert_eq!(diff(second.tables(), &kernel), []);
    // A lease that is gone meanwhile is gone, and one that moved is put right.
    let mut now = all.clone();
    now.routes.remove(&RouteKey::to(subnet(1)));
    let moved = Mac([2, 9, 9, 9, 9, 9]);
    let device = now.devices.get_mut(&device()).unwrap();
    device.neighbours.insert(base(2), moved);
    device
        .fdb
        .insert(moved, Remote::One([192, 168, 9, 9].into()));
    let mut third = Demand::default();
    third.begin(&now, &kernel, &found, LONG);
    apply(&diff(third.tables(), &kernel), &mut kernel);
    assert_eq!((&kernel, third.count()), (third.tables(), 2));
    assert_eq!(kernel.devices[&self::device()].neighbours[&base(2)], moved);
}

#[test]
fn what_was_not_used_for_long_before_the_start_is_not_in_use() {
    let all = all(0..2000);
    // As a node without `OnDemand` leaves them.
    let found = idle((0..2000).map(|n| (n, if n < 5 { 1 } else { 3000 })));
    let mut demand = Demand::default();
    demand.begin(&all, &all, &found, LONG);
    assert_eq!(demand.count(), 5);
}
