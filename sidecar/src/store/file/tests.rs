use super::*;
use crate::family::Family;
use crate::net_conf::SubnetRange;
use std::collections::BTreeSet;
use std::fs::File;
use tempfile::TempDir;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

struct Fixture {
    dir: TempDir,
    store: FileStore,
}

fn fixture() -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    let store = FileStore::new(dir.path(), DAY, Duration::from_secs(3600));
    Fixture { dir, store }
}

fn value(n: u8) -> String {
    format!(
        r#"{{"PublicIP":"192.168.50.{n}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:00:{n:02x}"}}}}"#
    )
}

fn claim(n: u8) -> Claim {
    let range = SubnetRange {
        network: "10.5.0.0/16".parse().unwrap(),
        subnet_len: 24,
        min: [10, 5, 1, 0].into(),
        max: [10, 5, 40, 0].into(),
    };
    Claim {
        ranges: [(Family::V4, range)].into_iter().collect(),
        lease: Lease::parse(value(n).as_bytes()).unwrap(),
        previous: None,
    }
}

impl Fixture {
    fn put(&self, name: &str, value: &str, expires: SystemTime) {
        let dir = self.dir.path().join("subnets");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(name), value).unwrap();
        let file = File::options().write(true).open(dir.join(name)).unwrap();
        file.set_modified(expires).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join("subnets").join(name)).unwrap()
    }

    fn mtime(&self, name: &str) -> SystemTime {
        let path = self.dir.path().join("subnets").join(name);
        fs::metadata(path).unwrap().modified().unwrap()
    }
}

fn run<F: Future>(future: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    tokio::task::LocalSet::new().block_on(&runtime, future)
}

fn in_future(seconds: u64) -> SystemTime {
    SystemTime::now() + Duration::from_secs(seconds)
}

fn past() -> SystemTime {
    SystemTime::now() - Duration::from_secs(1)
}

#[test]
fn a_lease_is_flannels_value_under_flannels_key_and_ends_at_its_mtime() {
    let f = fixture();
    let held = run(f.store.acquire(&claim(1))).unwrap();
    let name = held.subnets.to_string();
    assert_eq!(f.read(&name), value(1));
    let left = f.mtime(&name).duration_since(SystemTime::now()).unwrap();
    assert!(left > DAY - Duration::from_secs(60) && left <= DAY);
    assert_eq!(held.expires, Some(f.mtime(&name)));
}

#[test]
fn fifty_nodes_for_forty_subnets_share_none() {
    let f = fixture();
    let outcomes = run(async {
        let tasks: Vec<_> = (1..=50)
            .map(|n| {
                let store = f.store.clone();
                tokio::task::spawn_local(async move { store.acquire(&claim(n)).await })
            })
            .collect();
        let mut outcomes = Vec::new();
        for task in tasks {
            outcomes.push(task.await.unwrap());
        }
        outcomes
    });
    let held: BTreeSet<_> = outcomes.iter().flatten().map(|held| held.subnets).collect();
    assert_eq!(held.len(), 40);
    let told = outcomes.iter().filter_map(|outcome| outcome.as_ref().err());
    assert_eq!(
        told.filter(|e| matches!(e, StoreError::OutOfSubnets(_)))
            .count(),
        10
    );
    let files = fs::read_dir(f.dir.path().join("subnets")).unwrap().count();
    assert_eq!(files, 40, "no temporary file is left");
}

#[test]
fn our_own_lease_is_taken_again_with_our_new_value() {
    let f = fixture();
    let old = value(1).replace("02:00:00:00:00:01", "02:00:00:00:aa:bb");
    f.put("10.5.33.0-24", &old, in_future(60));
    let held = run(f.store.acquire(&claim(1))).unwrap();
    assert_eq!(held.subnets.to_string(), "10.5.33.0-24");
    assert_eq!(f.read("10.5.33.0-24"), value(1));
    assert!(f.mtime("10.5.33.0-24") > in_future(3600));
}

#[test]
fn an_expired_lease_is_free_and_a_torn_one_is_not() {
    let f = fixture();
    let mut claim = claim(1);
    claim.previous = "10.5.7.0-24".parse().ok();
    f.put("10.5.7.0-24", &value(9), past());
    assert_eq!(
        run(f.store.acquire(&claim)).unwrap().subnets,
        claim.previous.unwrap()
    );
    let f = fixture();
    f.put("10.5.7.0-24", "{torn", past());
    assert_ne!(
        run(f.store.acquire(&claim)).unwrap().subnets,
        claim.previous.unwrap()
    );
    assert_eq!(f.read("10.5.7.0-24"), "{torn");
}

#[test]
fn a_reservation_keeps_its_end() {
    let f = fixture();
    let far = in_future(10 * 365 * 24 * 3600);
    f.put("10.5.33.0-24", &value(1).replace("00:01", "aa:bb"), far);
    let far = f.mtime("10.5.33.0-24");
    let mut claim = claim(1);
    let held = run(f.store.acquire(&claim)).unwrap();
    assert_eq!((held.expires, f.mtime("10.5.33.0-24")), (None, far));
    assert_eq!(f.read("10.5.33.0-24"), value(1));
    claim.previous = Some(held.subnets);
    let renewal = run(f.store.renew(&claim)).unwrap();
    assert_eq!(renewal, Renewal::Renewed(held));
    assert_eq!(f.mtime("10.5.33.0-24"), far);
}

#[test]
fn a_renewal_extends_takes_back_or_reports_a_thief() {
    let f = fixture();
    let mut claim = claim(1);
    let held = run(f.store.acquire(&claim)).unwrap();
    claim.previous = Some(held.subnets);
    let name = held.subnets.to_string();
    f.put(&name, &value(1), in_future(60));
    assert!(matches!(
        run(f.store.renew(&claim)).unwrap(),
        Renewal::Renewed(_)
    ));
    assert!(f.mtime(&name) > in_future(3600));
    fs::remove_file(f.dir.path().join("subnets").join(&name)).unwrap();
    assert!(matches!(
        run(f.store.renew(&claim)).unwrap(),
        Renewal::TakenBack(_)
    ));
    assert_eq!(f.read(&name), value(1));
    f.put(&name, "{torn", past());
    assert!(matches!(
        run(f.store.renew(&claim)).unwrap(),
        Renewal::TakenBack(_)
    ));
    f.put(&name, &value(66), in_future(60));
    let Renewal::Lost { holder } = run(f.store.renew(&claim)).unwrap() else {
        panic!("a stolen lease was not noticed");
    };
    assert!(holder.contains("192.168.50.66"), "{holder}");
    assert_eq!(f.read(&name), value(66), "and not written over");
    f.put(&name, &value(66), past());
    assert!(matches!(
        run(f.store.renew(&claim)).unwrap(),
        Renewal::TakenBack(_)
    ));
}

#[test]
fn a_subnet_that_others_overlap_is_not_taken_back() {
    let f = fixture();
    let mut claim = claim(1);
    claim.previous = "10.5.7.0-24".parse().ok();
    f.put("10.5.7.128-25", &value(66), in_future(60));
    assert!(matches!(
        run(f.store.renew(&claim)).unwrap(),
        Renewal::Lost { .. }
    ));
}

#[test]
fn a_changed_value_is_published_under_the_old_key() {
    let f = fixture();
    let mut ours = claim(1);
    let held = run(f.store.acquire(&ours)).unwrap();
    ours.previous = Some(held.subnets);
    // The node has another address now, and still its VTEP.
    ours.lease.public_ips.set(Family::V4, [10, 99, 0, 1].into());
    assert!(matches!(
        run(f.store.renew(&ours)).unwrap(),
        Renewal::Renewed(_)
    ));
    assert!(f.read(&held.subnets.to_string()).contains("10.99.0.1"));
}

#[test]
fn a_lock_held_by_another_process_is_waited_for() {
    let f = fixture();
    run(async {
        let lock = lock::acquire(&f.dir.path().join("lock")).await.unwrap();
        let store = f.store.clone();
        let claim = claim(1);
        let task = tokio::task::spawn_local(async move { store.acquire(&claim).await });
        tokio::task::yield_now().await;
        assert!(!task.is_finished());
        drop(lock);
        task.await.unwrap().unwrap();
    });
}

#[test]
fn a_config_is_written_once() {
    let f = fixture();
    assert_eq!(run(f.store.config()).unwrap(), None);
    assert!(run(f.store.init_config(b"one")).unwrap());
    assert!(!run(f.store.init_config(b"two")).unwrap());
    assert_eq!(run(f.store.config()).unwrap().unwrap(), b"one");
}

/// Follows the store until `done`, and folds what it says.
async fn follow(
    events: &mut mpsc::Receiver<LeaseEvent>,
    table: &mut crate::lease_table::LeaseTable,
    done: impl Fn(&crate::lease_table::LeaseTable) -> bool,
) {
    let deadline = Duration::from_secs(5);
    while !done(table) {
        let event = tokio::time::timeout(deadline, events.recv()).await;
        table.fold(event.expect("no event within the deadline").unwrap());
    }
}

fn watching(f: &Fixture, resync: Duration) -> mpsc::Receiver<LeaseEvent> {
    let (sender, events) = mpsc::channel(16);
    let store = FileStore::new(f.dir.path(), DAY, resync);
    tokio::task::spawn_local(store.watch(sender));
    events
}

#[test]
fn every_change_is_seen_and_what_is_no_lease_is_named() {
    let f = fixture();
    f.put("10.5.30.0-24", &value(30), in_future(60));
    f.put("10.5.31.0-24", "{torn", in_future(60));
    f.put("README", "not a lease", in_future(60));
    f.put(".10.5.32.0-24.swp", "hidden", in_future(60));
    f.put("10.5.33.0-24", &value(33), past());
    run(async {
        let mut table = crate::lease_table::LeaseTable::default();
        let mut events = watching(&f, Duration::from_secs(3600));
        follow(&mut events, &mut table, |t| t.is_complete()).await;
        assert_eq!(table.leases().count(), 1);
        let skipped: Vec<_> = table.skipped().map(|(name, _)| name).collect();
        assert_eq!(skipped, ["10.5.31.0-24", "README"]);

        f.put("10.5.31.0-24", &value(31), in_future(60));
        follow(&mut events, &mut table, |t| t.leases().count() == 2).await;
        run_rename(&f, "10.5.34.0-24", &value(34));
        follow(&mut events, &mut table, |t| t.leases().count() == 3).await;
        fs::remove_file(f.dir.path().join("subnets/10.5.30.0-24")).unwrap();
        follow(&mut events, &mut table, |t| t.leases().count() == 2).await;
        // A renewal of a lease that had expired.
        f.put("10.5.33.0-24", &value(33), in_future(60));
        follow(&mut events, &mut table, |t| t.leases().count() == 3).await;
    });
}

/// What another machine does on a shared disk is no event here. So is, to the same effect, what is
/// written into a file that nobody closes: only its times tell.
#[test]
fn what_inotify_does_not_tell_is_found_by_the_full_read() {
    use std::os::unix::fs::FileExt;

    let f = fixture();
    f.put("10.5.30.0-24", &value(30), in_future(60));
    run(async {
        let mut table = crate::lease_table::LeaseTable::default();
        let mut events = watching(&f, Duration::from_millis(200));
        follow(&mut events, &mut table, |t| t.leases().count() == 1).await;
        let path = f.dir.path().join("subnets/10.5.30.0-24");
        let file = fs::File::options().write(true).open(path).unwrap();
        // Written now, it ends now.
        file.write_all_at(value(31).as_bytes(), 0).unwrap();
        follow(&mut events, &mut table, |t| t.leases().count() == 0).await;
        drop(file);
    });
}

fn run_rename(f: &Fixture, name: &str, value: &str) {
    f.put(".new", value, in_future(60));
    let dir = f.dir.path().join("subnets");
    fs::rename(dir.join(".new"), dir.join(name)).unwrap();
}

#[test]
fn an_expired_lease_is_removed_and_a_lost_folder_is_no_empty_one() {
    let f = fixture();
    f.put("10.5.30.0-24", &value(30), in_future(60));
    f.put(
        "10.5.31.0-24",
        &value(31),
        SystemTime::now() + Duration::from_millis(300),
    );
    run(async {
        let mut table = crate::lease_table::LeaseTable::default();
        let mut events = watching(&f, Duration::from_millis(50));
        follow(&mut events, &mut table, |t| t.leases().count() == 2).await;
        follow(&mut events, &mut table, |t| t.leases().count() == 1).await;
        let (here, away) = (f.dir.path().join("subnets"), f.dir.path().join("away"));
        fs::rename(&here, &away).unwrap();
        let silence = tokio::time::timeout(Duration::from_millis(300), events.recv()).await;
        assert!(silence.is_err(), "{silence:?}");
        fs::rename(&away, &here).unwrap();
        f.put("10.5.32.0-24", &value(32), in_future(60));
        follow(&mut events, &mut table, |t| t.leases().count() == 2).await;
    });
}

#[test]
fn a_folder_that_is_deleted_from_a_store_that_is_there_has_lost_its_leases() {
    let f = fixture();
    run(async {
        assert!(f.store.init_config(b"{}").await.unwrap());
        let held = f.store.acquire(&claim(1)).await.unwrap();
        f.put("10.5.99.0-24", &value(99), in_future(60));
        let mut table = crate::lease_table::LeaseTable::default();
        let mut events = watching(&f, Duration::from_secs(3600));
        follow(&mut events, &mut table, |t| t.leases().count() == 2).await;
        fs::remove_dir_all(f.dir.path().join("subnets")).unwrap();
        // Our own is told to be gone, so that it is put back; others follow there.
        follow(&mut events, &mut table, |t| t.leases().count() == 0).await;
        let mut claim = claim(1);
        claim.previous = Some(held.subnets);
        let renewal = f.store.renew(&claim).await.unwrap();
        assert!(matches!(renewal, Renewal::TakenBack(_)), "{renewal:?}");
        follow(&mut events, &mut table, |t| t.leases().count() == 1).await;
        f.put("10.5.99.0-24", &value(99), in_future(60));
        follow(&mut events, &mut table, |t| t.leases().count() == 2).await;
    });
}

#[test]
fn a_thousand_changes_at_once_are_all_seen() {
    let f = fixture();
    fs::create_dir_all(f.dir.path().join("subnets")).unwrap();
    run(async {
        let mut table = crate::lease_table::LeaseTable::default();
        let mut events = watching(&f, Duration::from_secs(3600));
        follow(&mut events, &mut table, |t| t.is_complete()).await;
        for n in 0..1000u32 {
            let name = format!("10.{}.{}.0-24", 5 + n / 250, n % 250);
            f.put(&name, &value((n % 250) as u8), in_future(60));
        }
        follow(&mut events, &mut table, |t| t.leases().count() == 1000).await;
        for n in 0..1000u32 {
            let name = format!("subnets/10.{}.{}.0-24", 5 + n / 250, n % 250);
            fs::remove_file(f.dir.path().join(name)).unwrap();
        }
        follow(&mut events, &mut table, |t| t.leases().count() == 0).await;
    });
}

#[test]
fn pipes_links_and_endless_files_neither_hang_nor_count() {
    let f = fixture();
    let dir = f.dir.path().join("subnets");
    fs::create_dir_all(&dir).unwrap();
    let mode = nix::sys::stat::Mode::from_bits_truncate(0o644);
    nix::unistd::mkfifo(&dir.join("10.5.30.0-24"), mode).unwrap();
    std::os::unix::fs::symlink("/dev/zero", dir.join("10.5.31.0-24")).unwrap();
    fs::create_dir(dir.join("10.5.32.0-24")).unwrap();
    f.put("10.5.33.0-24", &" ".repeat(1 << 20), in_future(60));
    let entries = entry::read_all(&dir).unwrap();
    assert_eq!(entries.len(), 4);
    for (name, entry) in entries {
        assert!(entry.content.is_err(), "{name}");
    }
}
