//! Promises about everybody's leases.

use std::collections::BTreeMap;
use std::time::Duration;

use twilld::lease::Lease;
use twilld::lease_table::LeaseTable;
use twilld::store::LeaseEvent;
use twilld::subnets::Subnets;

use super::following::Following;
use super::{DAY, Fixture, entry, lease, subnets, value};

fn matches(table: &LeaseTable, want: &BTreeMap<Subnets, Lease>) -> bool {
    table.leases().eq(want.iter())
}

pub(crate) async fn a_watch_begins_with_everything(f: impl Fixture) {
    let entries: Vec<_> = (1..=30).map(entry).collect();
    f.put(&entries[..20]);
    for (name, value) in &entries[20..] {
        f.reserve(name, value);
    }
    let mut following = Following::start(f.node(DAY));
    following.until("the first event", |_| true).await;
    assert!(matches!(&following.log[0], LeaseEvent::Snapshot(records) if records.len() == 30));
    assert_eq!(following.table.leases().count(), 30);
    // An empty store is complete as well.
    f.delete(
        &entries
            .into_iter()
            .map(|(name, _)| name)
            .collect::<Vec<_>>(),
    );
    let mut following = Following::start(f.node(DAY));
    following
        .until("an empty snapshot", |table| table.leases().count() == 0)
        .await;
}

pub(crate) async fn the_states_of_a_lease_are_seen_in_order(f: impl Fixture) {
    let name = || "10.5.9.0-24".to_owned();
    let mut following = Following::start(f.node(DAY));
    following.until("the snapshot", |_| true).await;
    for n in 1..=20 {
        f.put(&[(name(), value(n))]);
        if n % 7 == 0 {
            f.delete(&[name()]);
        }
        if n % 3 == 0 {
            following.for_a_while(Duration::from_millis(20)).await;
        }
    }
    let last = lease(20);
    following
        .until("the last state", |table| {
            table.get(&subnets("10.5.9.0-24")) == Some(&last)
        })
        .await;
    // A store may leave states out that are over already; it may not turn them round.
    let seen = following.log.iter().filter_map(|event| match event {
        LeaseEvent::Put(record) => Some(record.content.clone().unwrap().1),
        _ => None,
    });
    let order: Vec<u16> = seen
        .map(|seen| (1..=20).find(|n| lease(*n) == seen).unwrap())
        .collect();
    assert!(order.is_sorted() && order.last() == Some(&20), "{order:?}");
}

pub(crate) async fn of_a_thousand_changes_in_a_second_none_is_lost(f: impl Fixture) {
    f.put(&(0..500).map(entry).collect::<Vec<_>>());
    let mut following = Following::start(f.node(DAY));
    following
        .until("five hundred leases", |table| table.leases().count() == 500)
        .await;
    // 400 change, 100 go, 500 come.
    let changed = (0..400).map(|n| (entry(n).0, value(n + 2000)));
    f.put(&changed.clone().collect::<Vec<_>>());
    f.delete(&(400..500).map(|n| entry(n).0).collect::<Vec<_>>());
    let added = (500..1000).map(entry);
    f.put(&added.clone().collect::<Vec<_>>());
    let want: BTreeMap<Subnets, Lease> = changed
        .chain(added)
        .map(|(name, value)| (subnets(&name), Lease::parse(value.as_bytes()).unwrap()))
        .collect();
    following
        .until("all of them", |table| matches(table, &want))
        .await;
    following.for_a_while(Duration::from_millis(200)).await;
    assert!(matches(&following.table, &want));
}

pub(crate) async fn a_poisoned_lease_is_named_and_the_others_are_not_hurt(f: impl Fixture) {
    let entry_of = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    f.put(&[
        entry(1),
        entry_of("10.5.32.0-24", "{not json"),
        entry_of("nonsense", &value(40)),
        entry(2),
    ]);
    let mut following = Following::start(f.node(DAY));
    following.until("the snapshot", |_| true).await;
    let skipped = |table: &LeaseTable| {
        table
            .skipped()
            .map(|(name, _)| name.to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(skipped(&following.table), ["10.5.32.0-24", "nonsense"]);
    // And while it is watched: bad ones come, one that was good turns bad and good again.
    let megabyte = format!(
        r#"{{"PublicIP":"192.168.0.9","x":"{}"}}"#,
        "x".repeat(1_000_000)
    );
    f.put(&[
        entry_of("10.5.29.7-24", &value(29)),
        entry_of("10.5.1.0-24", r#"{"PublicIP":"bad"}"#),
    ]);
    f.put(&[entry_of("10.5.9.0-24", &megabyte)]);
    f.put(&[entry(3)]);
    following
        .until("the good one", |table| {
            table.get(&subnets("10.5.3.0-24")).is_some()
        })
        .await;
    following
        .until("the bad ones", |table| table.skipped().count() == 5)
        .await;
    let good: Vec<String> = following
        .table
        .leases()
        .map(|(subnets, _)| subnets.to_string())
        .collect();
    assert_eq!(good, ["10.5.2.0-24", "10.5.3.0-24"]);
    assert!(
        following
            .table
            .skipped()
            .all(|(_, reason)| !reason.is_empty() && reason.len() < 500)
    );
    f.put(&[entry(1)]);
    following
        .until("a recovery", |table| {
            table.get(&subnets("10.5.1.0-24")).is_some()
        })
        .await;
    // A whole list survives them too.
    let mut following = Following::start(f.node(DAY));
    following
        .until("the snapshot", |table| table.leases().count() == 3)
        .await;
}
