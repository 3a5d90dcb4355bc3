//! The etcd store keeps what every store promises, against the real etcd.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use cni_test_harness::etcd::{Etcd, installed};
use cni_test_harness::tools::Missing;
use twilld::store::etcd::EtcdStore;

use super::{PREFIX, clock, key, keyed, set_clocks, store};
use crate::conformance::{DAY, Fixture, Raw, suite};

struct OneMember(Etcd);

impl Fixture for OneMember {
    type Store = EtcdStore;

    fn start() -> Result<Self, Missing> {
        installed()?;
        Ok(Self(Etcd::start().unwrap()))
    }

    fn node(&self, ttl: Duration) -> EtcdStore {
        store(&self.0, ttl)
    }

    fn put(&self, entries: &[(String, String)]) {
        self.0
            .put_all(&keyed(entries), Some(DAY.as_secs()))
            .unwrap();
    }

    fn reserve(&self, name: &str, value: &str) {
        self.0.put(&key(name), value, None).unwrap();
    }

    fn delete(&self, names: &[String]) {
        let keys: Vec<String> = names.iter().map(|name| key(name)).collect();
        self.0.delete_all(&keys).unwrap();
    }

    fn entries(&self) -> BTreeMap<String, Raw> {
        let entries = self.0.entries(&key("")).unwrap();
        let raw = entries.into_iter().map(|entry| {
            let name = entry.key[key("").len()..].to_owned();
            let reserved = entry.granted_ttl.is_none();
            let value = entry.value;
            (name, Raw { value, reserved })
        });
        raw.collect()
    }

    fn write_config(&self, text: &str) {
        self.0.put(&format!("{PREFIX}/config"), text, None).unwrap();
    }

    fn take_away(&mut self) {
        self.0.kill_all();
    }

    fn bring_back(&mut self) {
        self.0.start_all().unwrap();
    }

    fn wipe(&mut self) {
        self.0.wipe().unwrap();
    }

    fn set_clocks(&self, seconds: i64) {
        set_clocks(seconds);
    }

    fn now(&self) -> SystemTime {
        clock()
    }
}

suite!(OneMember);
