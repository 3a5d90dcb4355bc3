//! Promises for bad days.

use std::time::Duration;

use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};
use twilld::store::{Renewal, Store};

use super::following::{DEADLINE, Following};
use super::{DAY, Fixture, claim, entry, holding, lease, subnets};

pub(crate) async fn while_the_store_is_gone_nothing_changes_and_afterwards_nothing_flaps(
    mut f: impl Fixture,
) {
    f.put(&(1..=9).map(entry).collect::<Vec<_>>());
    let mut following = Following::start(f.node(DAY));
    following
        .until("nine leases", |table| table.leases().count() == 9)
        .await;
    f.take_away();
    let came = following.for_a_while(Duration::from_secs(3)).await;
    assert_eq!((came, following.table.leases().count()), (0, 9));
    f.bring_back();
    // It is followed again, and knew all the time what it knows now.
    f.put(&[entry(10)]);
    following
        .until("the tenth", |table| {
            table.get(&subnets("10.5.10.0-24")).is_some()
        })
        .await;
    following.for_a_while(Duration::from_secs(1)).await;
    assert_eq!(
        (following.removals(), following.table.leases().count()),
        (0, 10)
    );
}

pub(crate) async fn without_the_store_claims_fail_and_work_again_afterwards(mut f: impl Fixture) {
    let node = f.node(DAY);
    let held = node.acquire(&claim(100)).await.unwrap();
    let claim = holding(claim(100), held.subnets);
    f.take_away();
    let error = node.renew(&claim).await.unwrap_err().to_string();
    assert!(!error.is_empty());
    assert!(node.acquire(&claim).await.is_err());
    f.bring_back();
    assert!(matches!(
        node.renew(&claim).await.unwrap(),
        Renewal::Renewed(_)
    ));
}

pub(crate) async fn a_store_that_comes_back_empty_takes_no_peer_away(mut f: impl Fixture) {
    let node = f.node(DAY);
    f.put(&(1..=9).map(entry).collect::<Vec<_>>());
    let held = node.acquire(&claim(100)).await.unwrap();
    let own = held.subnets;
    let mut following = Following::start_as(node.clone(), own);
    following
        .until("ten leases", |table| table.leases().count() == 10)
        .await;
    f.wipe();
    following
        .until("the loss of our own lease", |table| {
            table.get(&own).is_none()
        })
        .await;
    following.for_a_while(Duration::from_secs(2)).await;
    assert_eq!(following.table.leases().count(), 9);
    // Ours comes back first, the others one by one.
    let renewal = node.renew(&holding(claim(100), own)).await.unwrap();
    assert!(matches!(renewal, Renewal::TakenBack(back) if back.subnets == own));
    following
        .until("our own lease", |table| table.get(&own).is_some())
        .await;
    for n in 1..=9 {
        f.put(&[entry(n)]);
        following.for_a_while(Duration::from_millis(100)).await;
    }
    following.for_a_while(Duration::from_secs(2)).await;
    assert_eq!(
        (following.removals(), following.table.leases().count()),
        (1, 10)
    );
    // One that goes now is gone.
    f.delete(&[entry(3).0]);
    following
        .until("a deletion", |table| {
            table.get(&subnets("10.5.3.0-24")).is_none()
        })
        .await;
    assert_eq!(following.removals(), 2);
}

pub(crate) async fn clocks_that_jump_end_no_lease(f: impl Fixture) {
    f.put(&(1..=9).map(entry).collect::<Vec<_>>());
    let node = f.node(DAY);
    let held = node.acquire(&claim(100)).await.unwrap();
    let claim = holding(claim(100), held.subnets);
    let mut following = Following::start(node.clone());
    following
        .until("ten leases", |table| table.leases().count() == 10)
        .await;
    for hour in [1, 0, -1, 0] {
        let seconds = hour * 60 * 60;
        f.set_clocks(seconds);
        following.for_a_while(Duration::from_millis(1500)).await;
        let Renewal::Renewed(held) = node.renew(&claim).await.unwrap() else {
            panic!("not renewed with the clock {hour} h off");
        };
        // The end is told by the clock that the node will look at.
        let lives = held.expires.unwrap().duration_since(f.now()).unwrap();
        assert!(
            lives.abs_diff(DAY) < Duration::from_secs(60),
            "{hour} h: {lives:?}"
        );
        following.for_a_while(Duration::from_millis(300)).await;
    }
    assert_eq!(
        (following.removals(), following.table.leases().count()),
        (0, 10)
    );
    assert_eq!(following.table.get(&held.subnets), Some(&lease(100)));
    // A new node is not misled either.
    f.set_clocks(60 * 60);
    let other = f.node(DAY).acquire(&super::claim(101)).await.unwrap();
    assert!(following.table.get(&other.subnets).is_none());
}

pub(crate) async fn a_changed_configuration_is_noticed_also_after_the_store_was_gone(
    mut f: impl Fixture,
) {
    let texts = ["10.5.0.0/16", "10.4.0.0/15", "10.4.0.0/14"]
        .map(|network| format!("{{\"Network\":\"{network}\"}}\n"));
    let is = |known: &Option<Vec<u8>>, text: &str| known.as_deref() == Some(text.as_bytes());
    f.write_config(&texts[0]);
    let node = f.node(DAY);
    let known = node.config().await.unwrap();
    assert!(is(&known, &texts[0]), "{known:?}");
    let follow = |known: Option<Vec<u8>>| {
        let node = node.clone();
        spawn_local(async move { node.config_changed(known).await })
    };
    let mut following = follow(known);
    // The same once more is no change.
    f.write_config(&texts[0]);
    assert!(
        timeout(Duration::from_secs(3), &mut following)
            .await
            .is_err()
    );
    f.write_config(&texts[1]);
    let known = timeout(DEADLINE, following).await.unwrap().unwrap();
    assert!(is(&known, &texts[1]), "{known:?}");
    let mut following = follow(known);
    sleep(Duration::from_secs(1)).await;
    f.take_away();
    assert!(
        timeout(Duration::from_secs(3), &mut following)
            .await
            .is_err()
    );
    f.bring_back();
    f.write_config(&texts[2]);
    let known = timeout(DEADLINE, following).await.unwrap().unwrap();
    assert!(is(&known, &texts[2]), "{known:?}");
}
