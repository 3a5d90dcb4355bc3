//! A cluster moves from one store to another and back.

use std::time::{Duration, SystemTime};

use cni_test_harness::etcd::{Etcd, installed};
use cni_test_harness::skip_unless;
use twilld::store::file::FileStore;
use twilld::store::migrate::{Life, Mode, Source, run};
use twilld::store::{Renewal, Store};

use super::conformance::{DAY, claim, entry, holding, value};
use super::etcd::{key, keyed, store};

const CONFIG: &[u8] = b"{\"Network\":\"10.5.0.0/16\",\"Backend\":{\"Type\":\"vxlan\"}}\n";

#[test]
fn a_cluster_moves_between_stores_with_its_leases_their_time_and_its_configuration() {
    skip_unless!(installed());
    let etcd = Etcd::start().unwrap();
    let (there, back) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let folder = |dir: &tempfile::TempDir| FileStore::new(dir.path(), DAY, DAY);
    super::conformance::run(async {
        let old = folder(&there);
        assert!(old.init_config(CONFIG).await.unwrap());
        let held = old.acquire(&claim(100)).await.unwrap();
        let short = FileStore::new(there.path(), Duration::from_secs(600), DAY);
        let ends_soon = short.acquire(&claim(101)).await.unwrap();
        std::fs::write(there.path().join("subnets").join("nonsense"), "{}").unwrap();

        let new = store(&etcd, DAY);
        let report = run(&old, &new, Mode::Copy).await.unwrap();
        assert!(report.config && report.copied == 2, "{report}");
        assert_eq!(report.refused.keys().collect::<Vec<_>>(), ["nonsense"]);
        let entries = etcd.entries(&key("")).unwrap();
        for (subnets, n, ttl) in [(held.subnets, 100, 86_400), (ends_soon.subnets, 101, 600)] {
            let found = entries
                .iter()
                .find(|entry| entry.key == key(&subnets.to_string()));
            let found = found.unwrap();
            assert_eq!(found.value, value(n));
            let granted = found.granted_ttl.unwrap();
            assert!(
                (ttl - 60..=ttl).contains(&granted),
                "{granted} s of {ttl} s"
            );
        }
        // The node goes on in the new store as if it had always been there.
        let renewal = new.renew(&holding(claim(100), held.subnets)).await.unwrap();
        assert!(matches!(renewal, Renewal::Renewed(_)));

        // A second time there is nothing to do, and nothing is written over.
        etcd.put_all(&keyed(&[(ends_soon.subnets.to_string(), value(66))]), None)
            .unwrap();
        let report = run(&old, &new, Mode::Copy).await.unwrap();
        assert_eq!((report.config, report.copied, report.same), (false, 0, 1));
        assert!(
            report.refused.contains_key(&ends_soon.subnets.to_string()),
            "{report}"
        );

        // And back, with the reservation that has been made meanwhile.
        etcd.put_all(&keyed(&[entry(77)]), None).unwrap();
        let report = run(&new, &folder(&back), Mode::Copy).await.unwrap();
        assert!(report.config && report.copied == 3, "{report}");
        assert_eq!(folder(&back).config().await.unwrap().unwrap(), CONFIG);
        let cargo = folder(&back).unload().await.unwrap();
        let reserved = cargo
            .parcels
            .iter()
            .filter(|parcel| parcel.life == Life::Reserved);
        let reserved: Vec<String> = reserved.map(|parcel| parcel.subnets.to_string()).collect();
        assert!(reserved.contains(&"10.5.77.0-24".to_owned()) && reserved.len() == 2);
        let file = back.path().join("subnets").join(held.subnets.to_string());
        let ends = std::fs::metadata(file).unwrap().modified().unwrap();
        let lives = ends.duration_since(SystemTime::now()).unwrap();
        assert!(lives.abs_diff(DAY) < Duration::from_secs(60), "{lives:?}");
    });
}
