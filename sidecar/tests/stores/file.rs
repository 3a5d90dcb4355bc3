//! The file store keeps what every store promises.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use cni_test_harness::tools::Missing;
use tempfile::TempDir;
use twilld::store::file::FileStore;
use twilld::store::{LeaseEvent, Store};

use crate::conformance::following::Following;
use crate::conformance::{DAY, Fixture, Raw, claim, dual_stack_claim, holding, run, suite};

/// Touched into the far future: a reservation.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
const RESYNC: Duration = Duration::from_secs(1);

struct Folder {
    dir: TempDir,
    clocks: Cell<i64>,
}

impl Folder {
    fn subnets_dir(&self) -> PathBuf {
        self.dir.path().join("subnets")
    }

    fn write(&self, name: &str, value: &str, expires: SystemTime) {
        let temporary = self.dir.path().join(".new");
        fs::write(&temporary, value).unwrap();
        let file = File::options().write(true).open(&temporary).unwrap();
        file.set_modified(expires).unwrap();
        fs::rename(&temporary, self.subnets_dir().join(name)).unwrap();
    }
}

impl Fixture for Folder {
    type Store = FileStore;

    fn start() -> Result<Self, Missing> {
        let folder = Self {
            dir: tempfile::tempdir().unwrap(),
            clocks: Cell::new(0),
        };
        // Without it there is no store, as far as a follower knows: the first claim makes it.
        fs::create_dir(folder.subnets_dir()).unwrap();
        Ok(folder)
    }

    fn node(&self, ttl: Duration) -> FileStore {
        FileStore::new(self.dir.path(), ttl, RESYNC)
    }

    fn put(&self, entries: &[(String, String)]) {
        for (name, value) in entries {
            self.write(name, value, SystemTime::now() + DAY);
        }
    }

    fn reserve(&self, name: &str, value: &str) {
        self.write(name, value, SystemTime::now() + FOREVER);
    }

    fn delete(&self, names: &[String]) {
        for name in names {
            fs::remove_file(self.subnets_dir().join(name)).unwrap();
        }
    }

    fn entries(&self) -> BTreeMap<String, Raw> {
        let files = fs::read_dir(self.subnets_dir())
            .unwrap()
            .map(|file| file.unwrap());
        let raw = files.map(|file| {
            let raw = Raw {
                value: fs::read_to_string(file.path()).unwrap(),
                reserved: file.metadata().unwrap().modified().unwrap()
                    > SystemTime::now() + 3 * DAY,
            };
            (file.file_name().into_string().unwrap(), raw)
        });
        raw.collect()
    }

    fn write_config(&self, text: &str) {
        fs::write(self.dir.path().join("config"), text).unwrap();
    }

    /// As when a disk fails: the folder is there no more, and cannot be made.
    fn take_away(&mut self) {
        fs::rename(self.subnets_dir(), self.dir.path().join("aside")).unwrap();
        fs::write(self.subnets_dir(), "").unwrap();
    }

    fn bring_back(&mut self) {
        fs::remove_file(self.subnets_dir()).unwrap();
        fs::rename(self.dir.path().join("aside"), self.subnets_dir()).unwrap();
    }

    fn wipe(&mut self) {
        fs::remove_dir_all(self.subnets_dir()).unwrap();
        fs::create_dir(self.subnets_dir()).unwrap();
    }

    /// The store compares the clock with the times of its files and with nothing else: they move
    /// the other way.
    fn set_clocks(&self, seconds: i64) {
        let forward = seconds - self.clocks.replace(seconds);
        let by = Duration::from_secs(forward.unsigned_abs());
        for file in fs::read_dir(self.subnets_dir()).unwrap() {
            let file = File::options()
                .write(true)
                .open(file.unwrap().path())
                .unwrap();
            let ends = file.metadata().unwrap().modified().unwrap();
            file.set_modified(if forward > 0 { ends - by } else { ends + by })
                .unwrap();
        }
    }
}

suite!(Folder);

#[test]
fn peers_see_no_moment_without_a_lease_while_its_key_changes() {
    run(async {
        let folder = Folder::start().unwrap();
        let node = folder.node(DAY);
        let before = node.acquire(&claim(100)).await.unwrap().subnets;
        let mut following = Following::start(folder.node(DAY));
        following
            .until("the first", |table| table.get(&before).is_some())
            .await;
        let dual_stack = holding(dual_stack_claim(100), before);
        let after = node.acquire(&dual_stack).await.unwrap().subnets;
        assert!(before != after && before.is_within(&after), "{after}");
        following
            .until("the end of the first", |table| table.get(&before).is_none())
            .await;
        let [
            LeaseEvent::Snapshot(_),
            LeaseEvent::Put(new),
            LeaseEvent::Removed(old),
        ] = &following.log[..]
        else {
            panic!("{:?}", following.log);
        };
        assert_eq!(*new.name, *after.to_string());
        assert_eq!(**old, before.to_string());
    });
}
