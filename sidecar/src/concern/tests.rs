use super::*;

use std::collections::BTreeSet;
use std::net::IpAddr;

use kernel::Mac;
use kernel::vxlan::Vxlan;

use crate::tables::{DeviceLink, Kind, RouteKey};

const OURS: u32 = 7;
const ETH0: u32 = 2;
const MAC: Mac = Mac([2, 0, 0, 0, 0, 30]);

fn base() -> IpAddr {
    [10, 5, 30, 0].into()
}

fn far() -> IpAddr {
    [192, 168, 50, 30].into()
}

/// One peer, 10.5.30.0/24.
fn want() -> Tables {
    let link = DeviceLink {
        kind: Kind::Vxlan(Vxlan {
            vni: 1,
            underlay: Some(ETH0),
            local: None,
            group: None,
            port: 8472,
            learning: false,
            gbp: false,
            l2miss: false,
            l3miss: false,
        }),
        mac: Some(Mac([2, 0, 0, 0, 0, 1])),
        mtu: 1450,
        up: true,
        asks: None,
    };
    let device = Device {
        link,
        addresses: BTreeSet::new(),
        neighbours: [(base(), MAC)].into(),
        fdb: [(MAC, Remote::One(far()))].into(),
    };
    let hop = Hop {
        via: base(),
        device: "flannel.1".into(),
        onlink: true,
    };
    Tables {
        devices: [("flannel.1".into(), device)].into(),
        routes: [(RouteKey::to("10.5.30.0/24".parse().unwrap()), hop)].into(),
    }
}

fn ours() -> Route {
    let destination = "10.5.30.0/24".parse().unwrap();
    Route {
        gateway: Some(base()),
        ifindex: Some(OURS),
        onlink: true,
        metric: RouteKey::to(destination).metric,
        ..Route::to(destination)
    }
}

fn elsewhere(destination: &str) -> Route {
    Route {
        gateway: Some([192, 168, 50, 254].into()),
        ifindex: Some(ETH0),
        ..Route::to(destination.parse().unwrap())
    }
}

#[derive(Default)]
struct Eyes {
    adrift: bool,
    follows_routes: bool,
    follows_chains: bool,
}

impl Eyes {
    fn see(&self, change: Change) -> Concern {
        let devices = [(OURS, "flannel.1".into())].into();
        let interest = Interest {
            want: &want(),
            devices: &devices,
            names: &["flannel.1".into()],
            underlay: (ETH0, "eth0"),
            adrift: self.adrift,
            follows_routes: self.follows_routes,
            follows_chains: self.follows_chains,
        };
        interest.in_change(&change)
    }
}

fn sees(change: Change) -> bool {
    Eyes::default().see(change).all
}

fn route(gone: bool, route: Route) -> Change {
    let route = Some(route);
    Change::Route { gone, route }
}

#[test]
fn a_route_concerns_us_when_it_contradicts_what_is_wanted() {
    assert!(!sees(route(false, ours())), "as it should be");
    assert!(sees(route(true, ours())), "deleted");
    let other_gateway = Route {
        gateway: Some([10, 5, 31, 0].into()),
        ..ours()
    };
    assert!(sees(route(false, other_gateway.clone())), "changed");
    assert!(!sees(route(true, other_gateway)), "a wrong one that goes");
    let added = Route {
        destination: "10.5.99.0/24".parse().unwrap(),
        ..ours()
    };
    assert!(sees(route(false, added.clone())), "added on our device");
    assert!(!sees(route(true, added)), "one that we do not want goes");
    assert!(sees(route(false, elsewhere("10.5.30.0/24"))), "before ours");
    let taken = Route {
        metric: ours().metric,
        ..elsewhere("10.5.30.0/24")
    };
    assert!(sees(route(false, taken)), "in the place of ours");
}

#[test]
fn other_peoples_routes_concern_us_only_where_we_decide_by_them() {
    let foreign = || route(false, elsewhere("10.99.0.0/16"));
    assert!(!sees(foreign()));
    assert!(!sees(Change::Route {
        gone: false,
        route: None
    }));
    let follows = Eyes {
        follows_routes: true,
        ..Eyes::default()
    };
    assert!(follows.see(foreign()).all);
    assert!(!follows.see(route(false, ours())).all, "ours is no fact");
    let adrift = Eyes {
        adrift: true,
        ..Eyes::default()
    };
    assert!(adrift.see(foreign()).all);
}

#[test]
fn neighbours_and_forwarding_entries_are_compared_too() {
    let neighbour = |gone, ip, mac, permanent| {
        let entry = Neighbour {
            ifindex: OURS,
            ip,
            mac,
            permanent,
        };
        sees(Change::Neighbour { gone, entry })
    };
    assert!(!neighbour(false, base(), Some(MAC), true));
    assert!(neighbour(true, base(), Some(MAC), true), "deleted");
    assert!(neighbour(false, base(), Some(Mac([2; 6])), true), "changed");
    assert!(neighbour(false, base(), Some(MAC), false), "made to age");
    let stranger = [10, 5, 30, 9].into();
    assert!(!neighbour(false, stranger, Some(MAC), false), "learned");
    assert!(neighbour(false, stranger, Some(MAC), true), "added");
    let fdb = |gone, mac, destination, permanent| {
        let entry = FdbEntry {
            ifindex: OURS,
            mac,
            destination: Some(destination),
            permanent,
        };
        sees(Change::Fdb { gone, entry })
    };
    let wrong = [192, 168, 50, 99].into();
    assert!(!fdb(false, MAC, far(), true));
    assert!(fdb(true, MAC, far(), true), "deleted");
    assert!(fdb(false, MAC, wrong, true), "changed or appended");
    assert!(!fdb(false, Mac([2; 6]), wrong, false), "learned");
    assert!(fdb(false, Mac([2; 6]), wrong, true), "added");
    assert!(!fdb(false, Mac([0; 6]), wrong, true), "the flood list");
}

#[test]
fn devices_and_addresses_concern_us_by_number_or_name() {
    let link = |ifindex, name: &str| {
        let name = name.to_owned();
        sees(Change::Link { ifindex, name })
    };
    assert!(link(OURS, "renamed") && link(ETH0, "eth0"));
    assert!(link(99, "flannel.1") && link(99, "eth0"), "made anew");
    assert!(!link(99, "veth12345"), "a pod's");
    assert!(sees(Change::Address(ETH0)) && sees(Change::Address(OURS)));
    assert!(!sees(Change::Address(99)));
    assert!(sees(Change::Lost));
}

#[test]
fn other_peoples_rules_are_no_reason_to_look_at_everything() {
    let change = |table: &str, chain| Change::Nftables {
        table: table.to_owned(),
        chain,
    };
    let rules = Concern {
        rules: true,
        ..Concern::NOTHING
    };
    let eyes = Eyes::default();
    assert_eq!(eyes.see(change(masquerade::TABLE, false)), rules);
    assert_eq!(eyes.see(change("kube-proxy", true)), Concern::NOTHING);
    let watchful = Eyes {
        follows_chains: true,
        ..Eyes::default()
    };
    assert_eq!(watchful.see(change("kube-proxy", false)), Concern::NOTHING);
    assert_eq!(watchful.see(change("docker", true)), rules);
}
