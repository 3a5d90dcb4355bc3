use std::collections::BTreeMap;

use super::*;
use kernel::vxlan::Vxlan;
use proptest::prelude::*;

fn name(n: u8) -> DeviceName {
    format!("flannel.{n}").into()
}

fn link(port: u16, mtu: u32, mac: u8, up: bool) -> DeviceLink {
    DeviceLink {
        kind: Kind::Vxlan(Vxlan {
            vni: 1,
            underlay: Some(2),
            local: Some([192, 168, 50, 1].into()),
            group: None,
            port,
            learning: false,
            gbp: false,
            l2miss: false,
            l3miss: false,
        }),
        mac: Some(Mac([2, 0, 0, 0, 0, mac])),
        mtu,
        up,
        asks: None,
    }
}

fn device(link: DeviceLink) -> Device {
    Device {
        link,
        addresses: BTreeSet::new(),
        neighbours: BTreeMap::new(),
        fdb: BTreeMap::new(),
    }
}

fn peer(tables: &mut Tables, n: u8) {
    let device = tables.devices.get_mut(&name(1)).unwrap();
    let (base, mac) = (IpAddr::from([10, 5, n, 0]), Mac([2, 0, 0, 0, 1, n]));
    device.neighbours.insert(base, mac);
    let remote = Remote::One([192, 168, 50, n].into());
    device.fdb.insert(mac, remote);
    let hop = Hop {
        via: base,
        device: name(1),
        onlink: true,
    };
    let subnet = IpNet::new(base, 24).unwrap();
    tables.routes.insert(RouteKey::to(subnet), hop);
}

fn with_peers(peers: &[u8]) -> Tables {
    let mut tables = Tables::default();
    let mut device = device(link(8472, 1450, 1, true));
    device.addresses.insert("10.5.20.0/32".parse().unwrap());
    tables.devices.insert(name(1), device);
    for n in peers {
        peer(&mut tables, *n);
    }
    tables
}

/// What the kernel does with a plan.
pub(crate) fn apply(plan: &Plan, tables: &mut Tables) {
    for op in plan {
        let Tables { devices, routes } = &mut *tables;
        match op.clone() {
            Op::DeleteDevice { device, .. } => {
                devices.remove(&device).expect("only what is there");
                routes.retain(|_, hop| hop.device != device);
            }
            Op::CreateDevice(name, link) => {
                let link = DeviceLink {
                    up: false,
                    asks: None,
                    ..link
                };
                assert!(devices.insert(name, device(link)).is_none(), "name taken");
            }
            Op::SetMtu(name, mtu) => devices.get_mut(&name).unwrap().link.mtu = mtu,
            Op::SetMac(name, mac) => devices.get_mut(&name).unwrap().link.mac = Some(mac),
            Op::SetUp(name) => devices.get_mut(&name).unwrap().link.up = true,
            Op::Ask(name, family) => devices.get_mut(&name).unwrap().link.asks = Some(family),
            Op::Resolve(..) => {}
            Op::AddAddress(name, net) => {
                devices.get_mut(&name).unwrap().addresses.insert(net);
            }
            Op::DeleteAddress(name, net) => {
                devices.get_mut(&name).unwrap().addresses.remove(&net);
            }
            Op::PutFdb(name, mac, ip) => {
                let fdb = &mut devices.get_mut(&name).unwrap().fdb;
                // A replace changes one destination of several.
                if fdb.get(&mac) != Some(&Remote::Odd) {
                    fdb.insert(mac, Remote::One(ip));
                }
            }
            Op::DeleteFdb(name, mac) => {
                devices.get_mut(&name).unwrap().fdb.remove(&mac);
            }
            Op::PutNeighbour(name, ip, mac) => {
                devices.get_mut(&name).unwrap().neighbours.insert(ip, mac);
            }
            Op::DeleteNeighbour(name, ip) => {
                devices.get_mut(&name).unwrap().neighbours.remove(&ip);
            }
            Op::PutRoute(key, hop) => {
                let up = devices.get(&hop.device).is_none_or(|device| device.link.up);
                assert!(up, "the kernel refuses routes out of a device that is down");
                routes.insert(key, hop);
            }
            Op::DeleteRoute(key, hop) => {
                if routes.get(&key) == Some(&hop) {
                    routes.remove(&key);
                }
            }
        }
    }
}

#[test]
fn nothing_is_written_when_nothing_differs() {
    assert_eq!(diff(&with_peers(&[30, 31]), &with_peers(&[30, 31])), []);
}

#[test]
fn a_new_node_is_made_in_the_order_that_works() {
    let want = with_peers(&[30]);
    let plan = diff(&want, &Tables::default());
    let order: Vec<&str> = plan.iter().map(kind).collect();
    assert_eq!(
        order,
        ["create", "address", "up", "fdb", "neighbour", "route"]
    );
}

#[test]
fn a_peer_that_goes_loses_its_route_first() {
    let plan = diff(&with_peers(&[31]), &with_peers(&[30, 31]));
    let order: Vec<&str> = plan.iter().map(kind).collect();
    assert_eq!(order, ["-route", "-neighbour", "-fdb"]);
}

#[test]
fn a_new_peer_is_made_before_the_old_one_is_broken() {
    let plan = diff(&with_peers(&[31]), &with_peers(&[30]));
    let order: Vec<&str> = plan.iter().map(kind).collect();
    let want = ["fdb", "neighbour", "route", "-route", "-neighbour", "-fdb"];
    assert_eq!(order, want);
}

#[test]
fn a_changed_vtep_mac_replaces_the_neighbour_and_drops_the_old_entry() {
    let mut want = with_peers(&[30]);
    let device = want.devices.get_mut(&name(1)).unwrap();
    let new = Mac([2, 0, 0, 0, 9, 30]);
    let remote = device.fdb.remove(&Mac([2, 0, 0, 0, 1, 30])).unwrap();
    device.fdb.insert(new, remote);
    device.neighbours.insert([10, 5, 30, 0].into(), new);
    let order: Vec<&str> = diff(&want, &with_peers(&[30])).iter().map(kind).collect();
    assert_eq!(order, ["fdb", "neighbour", "-fdb"]);
}

#[test]
fn mtu_and_mac_are_set_but_anything_else_makes_the_device_anew_with_its_peers() {
    let want = with_peers(&[30]);
    let mut have = want.clone();
    let found = &mut have.devices.get_mut(&name(1)).unwrap().link;
    found.mtu = 1400;
    found.mac = Some(Mac([2; 6]));
    let order: Vec<&str> = diff(&want, &have).iter().map(kind).collect();
    assert_eq!(order, ["mtu", "mac"]);
    have.devices.get_mut(&name(1)).unwrap().link = link(4789, 1450, 1, true);
    let plan = diff(&want, &have);
    let Op::DeleteDevice { why, .. } = &plan[0] else {
        panic!("{plan:?}");
    };
    assert_eq!(why, "port is 4789, wanted 8472");
    assert_eq!(plan.len(), 1 + 6);
}

fn kind(op: &Op) -> &'static str {
    match op {
        Op::DeleteDevice { .. } => "-device",
        Op::CreateDevice(..) => "create",
        Op::SetMtu(..) => "mtu",
        Op::SetMac(..) => "mac",
        Op::SetUp(..) => "up",
        Op::Ask(..) => "ask",
        Op::Resolve(..) => "resolve",
        Op::AddAddress(..) => "address",
        Op::DeleteAddress(..) => "-address",
        Op::PutFdb(..) => "fdb",
        Op::DeleteFdb(..) => "-fdb",
        Op::PutNeighbour(..) => "neighbour",
        Op::DeleteNeighbour(..) => "-neighbour",
        Op::PutRoute(..) => "route",
        Op::DeleteRoute(..) => "-route",
    }
}

/// Small numbers, so that histories meet.
fn any_tables(wanted: bool) -> impl Strategy<Value = Tables> {
    let remote = (0u8..4).prop_map(move |n| match n {
        3 if !wanted => Remote::Odd,
        n => Remote::One([192, 168, 50, n].into()),
    });
    let device = (
        prop_oneof![3 => Just(8472u16), 1 => Just(4789)],
        1449u32..1451,
        0u8..2,
        any::<bool>(),
        proptest::collection::btree_set((0u8..3).prop_map(|n| format!("10.5.{n}.0/32")), 0..3),
        proptest::collection::btree_map(0u8..4, 0u8..3, 0..4),
        proptest::collection::btree_map(0u8..4, remote, 0..4),
    );
    let device = device.prop_map(
        move |(port, mtu, mac, up, addresses, neighbours, fdb)| Device {
            link: link(port, mtu, mac, up || wanted),
            addresses: addresses.iter().map(|net| net.parse().unwrap()).collect(),
            neighbours: neighbours
                .into_iter()
                .map(|(n, mac)| (IpAddr::from([10, 5, n, 0]), Mac([2, 0, 0, 0, 1, mac])))
                .collect(),
            fdb: fdb
                .into_iter()
                .map(|(mac, remote)| (Mac([2, 0, 0, 0, 1, mac]), remote))
                .collect(),
        },
    );
    let hop = (0u8..3, 0u8..3);
    let routes = proptest::collection::btree_map(0u8..4, hop, 0..5);
    // Of what is found a device may be missing; wanted are always both.
    let devices = proptest::collection::btree_map(1u8..3, device, if wanted { 2..3 } else { 0..3 });
    (devices, routes).prop_map(|(devices, routes)| {
        let devices: BTreeMap<_, _> = devices.into_iter().map(|(n, d)| (name(n), d)).collect();
        let routes = routes.into_iter().map(|(n, (via, dev))| {
            let device = if dev == 0 { "eth0".into() } else { name(dev) };
            let subnet = IpNet::new([10, 5, n, 0].into(), 24).unwrap();
            let (via, onlink) = ([10, 5, via, 0].into(), dev != 0);
            (
                RouteKey::to(subnet),
                Hop {
                    via,
                    device,
                    onlink,
                },
            )
        });
        let there = |hop: &Hop| &*hop.device == "eth0" || devices.contains_key(&hop.device);
        let routes = routes.filter(|(_, hop)| there(hop)).collect();
        Tables { devices, routes }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn a_plan_applied_leaves_nothing_to_plan(want in any_tables(true), mut have in any_tables(false)) {
        // A device that is down has lost its routes.
        for device in have.devices.iter().filter(|(_, d)| !d.link.up).map(|(n, _)| n.clone()).collect::<Vec<_>>() {
            have.routes.retain(|_, hop| hop.device != device);
        }
        let plan = diff(&want, &have);
        apply(&plan, &mut have);
        prop_assert_eq!(&have, &want);
        prop_assert_eq!(diff(&want, &have), []);
    }
}
