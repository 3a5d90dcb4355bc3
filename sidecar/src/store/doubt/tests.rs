use super::*;
use crate::lease::Lease;
use crate::lease_table::LeaseTable;
use proptest::prelude::*;

const OWN: u8 = 0;

fn name(n: u8) -> Box<str> {
    format!("10.5.{n}.0-24").into()
}

fn record(n: u8) -> Record {
    Record {
        name: name(n),
        content: Ok((name(n).parse().unwrap(), Lease::default())),
    }
}

fn snapshot(all: impl IntoIterator<Item = u8>) -> LeaseEvent {
    LeaseEvent::Snapshot(all.into_iter().map(record).collect())
}

fn removed(n: u8) -> LeaseEvent {
    LeaseEvent::Removed(name(n))
}

/// A doubt that has passed on our own lease and those of so many peers.
fn with_peers(peers: u8, now: Instant) -> Doubt {
    let mut doubt = Doubt::new(&name(OWN).parse().unwrap());
    assert_eq!(doubt.take(snapshot(0..=peers), now).len(), 1);
    doubt
}

fn later(now: Instant, wait: Duration) -> Instant {
    now + wait + Duration::from_millis(1)
}

#[test]
fn a_deleted_lease_is_gone_after_a_moment() {
    let now = Instant::now();
    let mut doubt = with_peers(5, now);
    assert_eq!(doubt.take(removed(3), now), []);
    assert_eq!(doubt.due(now), []);
    assert_eq!(doubt.next(), Some(now + SETTLE));
    assert_eq!(doubt.due(later(now, SETTLE)), [removed(3)]);
    assert_eq!(doubt.next(), None);
}

#[test]
fn the_only_peer_may_go() {
    let now = Instant::now();
    let mut doubt = with_peers(1, now);
    doubt.take(removed(1), now);
    assert_eq!(doubt.due(later(now, SETTLE)), [removed(1)]);
}

#[test]
fn what_goes_with_our_own_lease_stays_until_ours_has_been_back_for_a_while() {
    let now = Instant::now();
    let mut doubt = with_peers(5, now);
    doubt.take(removed(1), now);
    assert_eq!(doubt.take(removed(OWN), now), [removed(OWN)]);
    doubt.take(removed(2), now);
    let much_later = now + GRACE * 10;
    assert_eq!(doubt.due(much_later), []);
    doubt.take(LeaseEvent::Put(record(OWN)), much_later);
    doubt.take(LeaseEvent::Put(record(2)), much_later);
    assert_eq!(doubt.due(much_later + GRACE / 2), []);
    assert_eq!(doubt.due(later(much_later, GRACE)), [removed(1)]);
}

#[test]
fn an_empty_store_takes_nothing_away() {
    let now = Instant::now();
    let mut doubt = with_peers(5, now);
    assert_eq!(doubt.take(snapshot([]), now), [removed(OWN)]);
    assert_eq!((doubt.due(now + GRACE * 10), doubt.kept()), (vec![], 5));
    let back: Vec<u8> = (0..=5).collect();
    let out = doubt.take(snapshot(back.clone()), now);
    assert!(
        out.iter()
            .all(|event| matches!(event, LeaseEvent::Snapshot(_) | LeaseEvent::Put(_)))
    );
    assert_eq!((doubt.due(now + GRACE * 10), doubt.kept()), (vec![], 0));
}

#[test]
fn most_of_the_peers_do_not_go_at_once() {
    let now = Instant::now();
    let mut doubt = with_peers(5, now);
    for n in 1..=3 {
        doubt.take(removed(n), now);
    }
    assert_eq!(doubt.due(later(now, SETTLE)), []);
    assert_eq!(doubt.kept(), 3);
    assert_eq!(doubt.due(later(now, GRACE)).len(), 3);
}

#[test]
fn what_is_missing_in_a_later_snapshot_goes_late() {
    let now = Instant::now();
    let mut doubt = with_peers(5, now);
    let out = doubt.take(snapshot([0, 1, 2, 3, 4]), now);
    assert!(out.iter().all(|event| matches!(event, LeaseEvent::Put(_))));
    assert_eq!(doubt.due(later(now, SETTLE)), []);
    assert_eq!(doubt.due(later(now, GRACE)), [removed(5)]);
}

#[test]
fn a_subnet_that_has_a_new_holder_is_believed_at_once() {
    let now = Instant::now();
    let mut doubt = with_peers(5, now);
    doubt.take(removed(3), now);
    let mut new = record(3);
    new.name = "10.5.3.0-25".into();
    new.content = Ok((new.name.parse().unwrap(), Lease::default()));
    let out = doubt.take(LeaseEvent::Put(new.clone()), now);
    assert_eq!(out, [removed(3), LeaseEvent::Put(new)]);
}

fn event() -> impl Strategy<Value = LeaseEvent> {
    prop_oneof![
        5 => (0u8..8).prop_map(|n| LeaseEvent::Put(record(n))),
        4 => (0u8..8).prop_map(removed),
        1 => proptest::collection::btree_set(0u8..8, 0..8).prop_map(snapshot),
    ]
}

proptest! {
    #[test]
    fn in_the_end_the_receiver_knows_what_the_store_has(
        events in proptest::collection::vec((event(), 0u64..900), 0..40)
    ) {
        let mut now = Instant::now();
        let mut doubt = Doubt::new(&name(OWN).parse().unwrap());
        let (mut store, mut told) = (LeaseTable::default(), LeaseTable::default());
        let first = (snapshot(0..4), 0);
        let last = (LeaseEvent::Put(record(OWN)), 0);
        for (event, wait) in [first].into_iter().chain(events).chain([last]) {
            now += Duration::from_secs(wait);
            for event in doubt.due(now) {
                told.fold(event);
            }
            store.fold(event.clone());
            for event in doubt.take(event, now) {
                told.fold(event);
            }
            // Never less than the store has.
            for (subnets, _) in store.leases() {
                prop_assert!(told.get(subnets).is_some());
            }
        }
        for event in doubt.due(later(now, GRACE)) {
            told.fold(event);
        }
        prop_assert_eq!(told, store);
        prop_assert_eq!(doubt.next(), None);
    }
}

#[test]
fn a_node_that_starts_doubts_a_store_that_has_lost_its_lease_and_only_then() {
    let subnets = |text: &str| text.parse::<Subnets>().unwrap();
    let held = |found| Held {
        subnets: subnets("10.5.1.0-24"),
        expires: None,
        found,
    };
    let before = Some(subnets("10.5.1.0-24"));
    assert_eq!(at_start(&held(false), before), Some(GRACE));
    assert_eq!(at_start(&held(true), before), None);
    // A new node, and one that got another subnet: there is nothing that it could have lost.
    assert_eq!(at_start(&held(false), None), None);
    let other = Some(subnets("10.5.2.0-24"));
    assert_eq!(at_start(&held(false), other), None);
}
