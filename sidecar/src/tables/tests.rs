use super::*;

/// A device that is up and no more.
pub(crate) fn plain_link(ifindex: u32, name: &str) -> Link {
    Link {
        ifindex,
        name: name.into(),
        mtu: 1500,
        up: true,
        running: true,
        txqlen: 1000,
        ..Link::default()
    }
}

fn key(destination: &str, metric: u32) -> RouteKey {
    RouteKey {
        destination: destination.parse().unwrap(),
        metric,
    }
}

#[test]
fn every_ipv4_peer_has_a_metric_of_its_own() {
    assert_eq!(
        RouteKey::to("10.5.3.0/24".parse().unwrap()),
        key("10.5.3.0/24", 0x0a_05_03)
    );
    let subnets = (0..20_000u32).map(|n| {
        let base = std::net::Ipv4Addr::from(0x0a00_0000 + (n << 8));
        RouteKey::to(IpNet::new_assert(base.into(), 24)).metric
    });
    assert_eq!(subnets.collect::<BTreeSet<_>>().len(), 20_000);
    let v6 = "fd00:5:0:3::/64";
    assert_eq!(RouteKey::to(v6.parse().unwrap()), key(v6, 1024));
}

#[test]
fn what_would_go_before_a_route_of_ours_is_found_and_nothing_else_of_others() {
    let peer: IpNet = "10.5.3.0/24".parse().unwrap();
    let hop = |via: [u8; 4], device: &str, onlink| Hop {
        via: via.into(),
        device: device.into(),
        onlink,
    };
    let want = Tables {
        routes: [(RouteKey::to(peer), hop([10, 5, 3, 0], "flannel.1", true))].into(),
        ..Tables::default()
    };
    let via = |destination: &str, metric| Route {
        gateway: Some([192, 168, 50, 254].into()),
        ifindex: Some(2),
        metric,
        ..Route::to(destination.parse().unwrap())
    };
    let facts = Facts {
        links: vec![plain_link(2, "eth0")],
        routes: vec![
            via("10.5.3.0/24", 0),
            via("10.5.3.0/24", 50),
            via("10.5.4.0/24", 0),
            Route {
                protocol: PROTOCOL_KERNEL,
                ..via("10.5.3.0/24", 0)
            },
        ],
        ..Facts::default()
    };
    let found = observe(&facts, &want, &["10.5.0.0/16".parse().unwrap()]);
    let wrong = hop([192, 168, 50, 254], "eth0", false);
    assert_eq!(found.routes, [(key("10.5.3.0/24", 0), wrong)].into());
}
