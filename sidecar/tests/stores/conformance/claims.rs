//! Promises about this node's own lease.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::sleep;
use twilld::family::Family;
use twilld::store::{Renewal, Store, StoreError};

use super::following::Following;
use super::{DAY, Fixture, claim, dual_stack_claim, entry, holding, lease, subnets, value};

pub(crate) async fn a_free_subnet_is_taken_and_published_in_flannels_form(f: impl Fixture) {
    f.put(&[entry(1), entry(2)]);
    let held = f.node(DAY).acquire(&claim(100)).await.unwrap();
    let name = held.subnets.to_string();
    let third: u8 = name["10.5.".len()..]
        .split('.')
        .next()
        .unwrap()
        .parse()
        .unwrap();
    assert!((3..=40).contains(&third), "{name}");
    let entries = f.entries();
    assert_eq!(entries.len(), 3);
    assert_eq!(entries[&name].value, value(100));
    assert!(!entries[&name].reserved);
    let lives = held.expires.unwrap().duration_since(f.now()).unwrap();
    assert!(lives.abs_diff(DAY) < Duration::from_secs(60), "{lives:?}");
}

pub(crate) async fn the_same_node_gets_the_same_subnet_again(f: impl Fixture) {
    let first = f.node(DAY).acquire(&claim(100)).await.unwrap();
    let mut again = claim(100);
    again.lease.backend_data.set(
        Family::V4,
        r#"{"VNI":1,"VtepMAC":"02:aa:aa:aa:aa:aa"}"#.into(),
    );
    let second = f.node(DAY).acquire(&again).await.unwrap();
    assert_eq!(second.subnets, first.subnets);
    assert_eq!((first.found, second.found), (false, true));
    let entries = f.entries();
    assert_eq!(entries.len(), 1);
    assert_eq!(
        entries[&first.subnets.to_string()].value,
        again.lease.render()
    );
}

pub(crate) async fn what_does_not_fit_the_configuration_is_released(f: impl Fixture) {
    f.put(&[("10.5.99.0-24".to_owned(), value(100)), entry(1)]);
    let held = f.node(DAY).acquire(&claim(100)).await.unwrap();
    let names: Vec<String> = f.entries().into_keys().collect();
    let mut want = vec!["10.5.1.0-24".to_owned(), held.subnets.to_string()];
    want.sort();
    assert_eq!(names, want);
}

pub(crate) async fn the_subnet_held_before_is_taken_when_it_is_free(f: impl Fixture) {
    f.put(&[entry(8)]);
    let free = holding(claim(100), subnets("10.5.7.0-24"));
    let held = f.node(DAY).acquire(&free).await.unwrap();
    assert_eq!(held.subnets, subnets("10.5.7.0-24"));
    let taken = holding(claim(101), subnets("10.5.8.0-24"));
    let held = f.node(DAY).acquire(&taken).await.unwrap();
    assert_ne!(held.subnets, subnets("10.5.8.0-24"));
    assert_eq!(f.entries()["10.5.8.0-24"].value, value(8));
}

pub(crate) async fn of_fifty_nodes_forty_get_the_forty_subnets_and_ten_are_told_why(
    f: impl Fixture,
) {
    let nodes: Vec<_> = (100..150).map(|n| (f.node(DAY), claim(n))).collect();
    let race = nodes.iter().map(|(node, claim)| node.acquire(claim));
    let outcomes = join_all(race).await;
    let mut won = BTreeSet::new();
    let mut told = 0;
    for outcome in outcomes {
        match outcome {
            Ok(held) => assert!(won.insert(held.subnets), "{} twice", held.subnets),
            Err(StoreError::OutOfSubnets(why)) => {
                assert!(why.to_string().contains("10.5.1.0 to 10.5.40.0"), "{why}");
                told += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!((won.len(), told, f.entries().len()), (40, 10, 40));
}

pub(crate) async fn no_two_dual_stack_nodes_share_a_subnet_of_either_family(f: impl Fixture) {
    // Half of them know only IPv4: other keys, the same subnets.
    let claim_of = |n: u16| {
        if n.is_multiple_of(2) {
            dual_stack_claim(n)
        } else {
            claim(n)
        }
    };
    let nodes: Vec<_> = (100..130).map(|n| (f.node(DAY), claim_of(n))).collect();
    let outcomes = join_all(nodes.iter().map(|(node, claim)| node.acquire(claim))).await;
    let held: Vec<_> = outcomes
        .into_iter()
        .map(|outcome| outcome.unwrap().subnets)
        .collect();
    for (n, one) in held.iter().enumerate() {
        for other in &held[n + 1..] {
            assert!(!one.overlaps(other), "{one} and {other}");
        }
    }
    let names: BTreeSet<String> = f.entries().into_keys().collect();
    assert_eq!(names, held.iter().map(ToString::to_string).collect());
}

pub(crate) async fn a_renewal_extends_and_publishes_what_has_changed(f: impl Fixture) {
    let node = f.node(DAY);
    let first = node.acquire(&claim(100)).await.unwrap();
    let mut claim = holding(claim(100), first.subnets);
    sleep(Duration::from_millis(20)).await;
    let Renewal::Renewed(renewed) = node.renew(&claim).await.unwrap() else {
        panic!("not renewed");
    };
    assert_eq!(renewed.subnets, first.subnets);
    assert!(
        renewed.expires > first.expires,
        "{renewed:?} after {first:?}"
    );
    assert_eq!(f.entries()[&first.subnets.to_string()].value, value(100));
    // The node's address changes, its VTEP does not.
    claim
        .lease
        .public_ips
        .set(Family::V4, "192.168.77.7".parse().unwrap());
    assert!(matches!(
        node.renew(&claim).await.unwrap(),
        Renewal::Renewed(_)
    ));
    let entries = f.entries();
    assert_eq!(
        entries[&first.subnets.to_string()].value,
        claim.lease.render()
    );
    assert_eq!(entries.len(), 1);
}

pub(crate) async fn a_lease_that_somebody_took_is_lost_and_left_alone(f: impl Fixture) {
    let node = f.node(DAY);
    let held = node.acquire(&claim(100)).await.unwrap();
    let name = held.subnets.to_string();
    f.put(&[(name.clone(), value(66))]);
    let claim = holding(claim(100), held.subnets);
    for _ in 0..2 {
        let Renewal::Lost { holder } = node.renew(&claim).await.unwrap() else {
            panic!("not lost");
        };
        assert!(holder.contains("192.168.0.66"), "{holder}");
        assert_eq!(f.entries()[&name].value, value(66));
    }
    f.delete(&[name]);
    assert!(
        matches!(node.renew(&claim).await.unwrap(), Renewal::TakenBack(back) if back.subnets == held.subnets)
    );
}

pub(crate) async fn a_lease_that_is_gone_is_taken_back(f: impl Fixture) {
    let node = f.node(DAY);
    let held = node.acquire(&claim(100)).await.unwrap();
    let name = held.subnets.to_string();
    f.delete(std::slice::from_ref(&name));
    let claim = holding(claim(100), held.subnets);
    let Renewal::TakenBack(back) = node.renew(&claim).await.unwrap() else {
        panic!("not taken back");
    };
    assert_eq!(back.subnets, held.subnets);
    let entry = &f.entries()[&name];
    assert_eq!((&entry.value, entry.reserved), (&value(100), false));
}

pub(crate) async fn a_lease_that_is_gone_and_overlapped_is_lost(f: impl Fixture) {
    let node = f.node(DAY);
    let held = node.acquire(&claim(100)).await.unwrap();
    let name = held.subnets.to_string();
    let base = name.strip_suffix("-24").unwrap();
    f.delete(std::slice::from_ref(&name));
    f.put(&[(format!("{base}-25"), value(66))]);
    let renewal = node
        .renew(&holding(claim(100), held.subnets))
        .await
        .unwrap();
    assert!(matches!(renewal, Renewal::Lost { holder } if holder.contains("192.168.0.66")));
    assert_eq!(
        f.entries().into_keys().collect::<Vec<_>>(),
        [format!("{base}-25")]
    );
}

pub(crate) async fn a_lease_ends_when_it_is_not_renewed(f: impl Fixture) {
    let held = f
        .node(Duration::from_secs(2))
        .acquire(&claim(100))
        .await
        .unwrap();
    let mut following = Following::start(f.node(DAY));
    following
        .until("it is there", |table| table.get(&held.subnets).is_some())
        .await;
    following
        .until("it has ended", |table| table.get(&held.subnets).is_none())
        .await;
    // Its subnet is anybody's again.
    let other = holding(claim(101), held.subnets);
    assert_eq!(
        f.node(DAY).acquire(&other).await.unwrap().subnets,
        held.subnets
    );
}

pub(crate) async fn a_renewed_lease_goes_on(f: impl Fixture) {
    let node = f.node(Duration::from_secs(3));
    let held = node.acquire(&claim(100)).await.unwrap();
    let mut following = Following::start(f.node(DAY));
    following
        .until("it is there", |table| table.get(&held.subnets).is_some())
        .await;
    for _ in 0..10 {
        let renewal = node
            .renew(&holding(claim(100), held.subnets))
            .await
            .unwrap();
        assert!(matches!(renewal, Renewal::Renewed(_)), "{renewal:?}");
        following.for_a_while(Duration::from_millis(500)).await;
        assert_eq!(following.table.get(&held.subnets), Some(&lease(100)));
    }
    assert_eq!(following.removals(), 0);
}

pub(crate) async fn a_reservation_of_ours_stays_one(f: impl Fixture) {
    f.reserve("10.5.33.0-24", &value(100));
    let node = f.node(DAY);
    let mut claim = claim(100);
    let held = node.acquire(&claim).await.unwrap();
    assert_eq!(
        (held.subnets, held.expires),
        (subnets("10.5.33.0-24"), None)
    );
    // Publishing something new does not make a lease of it.
    claim = holding(claim, held.subnets);
    claim.lease.backend_data.set(
        Family::V4,
        r#"{"VNI":1,"VtepMAC":"02:aa:aa:aa:aa:aa"}"#.into(),
    );
    for _ in 0..2 {
        let Renewal::Renewed(held) = node.renew(&claim).await.unwrap() else {
            panic!("not renewed");
        };
        assert_eq!(held.expires, None);
    }
    let entry = &f.entries()["10.5.33.0-24"];
    assert_eq!(
        (&entry.value, entry.reserved),
        (&claim.lease.render(), true)
    );
    // Nor does a restart.
    assert_eq!(f.node(DAY).acquire(&claim).await.unwrap().expires, None);
    assert!(f.entries()["10.5.33.0-24"].reserved);
}

pub(crate) async fn a_reservation_of_another_is_respected(f: impl Fixture) {
    for n in 1..=40 {
        let (name, value) = entry(n);
        f.reserve(&name, &value);
    }
    let error = f.node(DAY).acquire(&claim(100)).await.unwrap_err();
    assert!(matches!(error, StoreError::OutOfSubnets(_)), "{error}");
    let entries = f.entries();
    assert!(entries.len() == 40 && entries.values().all(|entry| entry.reserved));
}

pub(crate) async fn a_configuration_is_read_as_written_and_made_only_where_none_is(
    f: impl Fixture,
) {
    let node = f.node(DAY);
    assert_eq!(node.config().await.unwrap(), None);
    assert!(!node.config_advice().is_empty() && !node.describe().is_empty());
    assert!(
        node.init_config(b"{\"Network\":\"10.5.0.0/16\"}\n")
            .await
            .unwrap()
    );
    assert!(!f.node(DAY).init_config(b"{}").await.unwrap());
    let written = node.config().await.unwrap().unwrap();
    assert_eq!(written, b"{\"Network\":\"10.5.0.0/16\"}\n");
    // An operator changes it under a running node.
    f.write_config("{\"Network\":\"10.9.0.0/16\"}");
    let written = node.config().await.unwrap().unwrap();
    assert_eq!(written, b"{\"Network\":\"10.9.0.0/16\"}");
}
