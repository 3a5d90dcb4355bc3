//! The real etcd as a store's tests use it.

mod faults;
mod golden;
mod promises;

use std::cell::Cell;
use std::time::{Duration, SystemTime};

use cni_test_harness::etcd::Etcd;
use twilld::store::etcd::{EtcdStore, Options, TlsFiles, parse_endpoints};

pub(crate) const PREFIX: &str = "/coreos.com/network";

thread_local! {
    /// By how many seconds the clock of the nodes of this test is set. A test is one thread.
    static CLOCKS: Cell<i64> = const { Cell::new(0) };
}

/// The clock of the nodes of this test.
pub(crate) fn clock() -> SystemTime {
    let seconds = CLOCKS.get();
    let by = Duration::from_secs(seconds.unsigned_abs());
    let now = SystemTime::now();
    if seconds > 0 { now + by } else { now - by }
}

pub(crate) fn set_clocks(seconds: i64) {
    CLOCKS.set(seconds);
}

pub(crate) fn options(etcd: &Etcd, ttl: Duration) -> Options {
    Options {
        endpoints: parse_endpoints(&etcd.endpoints()).unwrap(),
        prefix: PREFIX.to_owned(),
        tls: TlsFiles::default(),
        credentials: None,
        ttl,
    }
}

pub(crate) fn store(etcd: &Etcd, ttl: Duration) -> EtcdStore {
    EtcdStore::new(options(etcd, ttl)).with_clock(clock)
}

/// The whole key of a lease.
pub(crate) fn key(name: &str) -> String {
    format!("{PREFIX}/subnets/{name}")
}

/// The same for names and values.
pub(crate) fn keyed(entries: &[(String, String)]) -> Vec<(String, String)> {
    let keyed = |(name, value): &(String, String)| (key(name), value.clone());
    entries.iter().map(keyed).collect()
}
