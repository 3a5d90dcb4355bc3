//! What happens to etcd in a cluster's life, against the real one: members die, history is
//! compacted, tokens and certificates matter, a store is lost and made anew.

use std::error::Error;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use cni_test_harness::etcd::{ClientCertificates, Etcd, Setup, installed};
use cni_test_harness::skip_unless;
use twilld::store::etcd::{Credentials, EtcdStore, TlsFiles};
use twilld::store::{LeaseEvent, Renewal, Store};

use super::{PREFIX, key, keyed, options, store};
use crate::conformance::following::Following;
use crate::conformance::{DAY, claim, entry, holding, lease, run, subnets, value};

fn snapshots(following: &Following) -> usize {
    let is_snapshot = |event: &&LeaseEvent| matches!(event, LeaseEvent::Snapshot(_));
    following.log.iter().filter(is_snapshot).count()
}

/// Nine leases, and who has seen them.
async fn nine_followed(etcd: &Etcd) -> Following {
    etcd.put_all(&keyed(&(1..=9).map(entry).collect::<Vec<_>>()), Some(3600))
        .unwrap();
    let mut following = Following::start(store(etcd, DAY));
    following
        .until("nine", |table| table.leases().count() == 9)
        .await;
    following
}

#[test]
fn the_death_of_any_member_is_survived() {
    skip_unless!(installed());
    let mut etcd = Setup::default().members(3).start().unwrap();
    run(async {
        etcd.put_all(&keyed(&(1..=9).map(entry).collect::<Vec<_>>()), Some(3600))
            .unwrap();
        let node = store(&etcd, DAY);
        let held = node.acquire(&claim(100)).await.unwrap();
        let claim = holding(claim(100), held.subnets);
        let mut following = Following::start(node.clone());
        following
            .until("ten leases", |table| table.leases().count() == 10)
            .await;
        // The one that everybody talks to first, then the one that leads.
        // Subnets that our own cannot be one of.
        for n in [50, 51] {
            let victim = if n == 50 { 0 } else { etcd.leader().unwrap() };
            etcd.kill(victim);
            let renewal = node.renew(&claim).await.unwrap();
            assert!(matches!(renewal, Renewal::Renewed(_)), "{renewal:?}");
            etcd.put_all(&keyed(&[entry(n)]), Some(3600)).unwrap();
            let new = subnets(&entry(n).0);
            following
                .until("a new one", |table| table.get(&new).is_some())
                .await;
            etcd.start_all().unwrap();
        }
        assert_eq!(
            (following.removals(), following.table.leases().count()),
            (0, 12)
        );
    });
}

#[test]
fn a_member_that_hangs_is_left_for_another() {
    skip_unless!(installed());
    let etcd = Setup::default().members(3).start().unwrap();
    run(async {
        let node = store(&etcd, DAY);
        let held = node.acquire(&claim(100)).await.unwrap();
        etcd.pause(0).unwrap();
        let renewal = node.renew(&holding(claim(100), held.subnets)).await;
        etcd.resume(0).unwrap();
        assert!(matches!(renewal.unwrap(), Renewal::Renewed(_)));
    });
}

#[test]
fn tls_works_with_an_authority_alone_and_with_a_certificate_of_ours() {
    skip_unless!(installed());
    for wanted in [ClientCertificates::NotWanted, ClientCertificates::Wanted] {
        let etcd = Setup::default().tls(wanted).start().unwrap();
        let authority = etcd.authority().unwrap();
        let ours = authority.issue("twilld", &[]).unwrap();
        let identity = match wanted {
            ClientCertificates::Wanted => Some((ours.cert_path, ours.key_path)),
            ClientCertificates::NotWanted => None,
        };
        let tls = |ca_path, identity| TlsFiles { ca_path, identity };
        let with = |tls| {
            let mut options = options(&etcd, DAY);
            options.tls = tls;
            EtcdStore::new(options)
        };
        run(async {
            let node = with(tls(Some(authority.ca_path()), identity.clone()));
            let held = node.acquire(&claim(100)).await.unwrap();
            let mut following = Following::start(node);
            following
                .until("it", |table| table.get(&held.subnets).is_some())
                .await;
            // Somebody else's authority vouches for nothing.
            let elsewhere = tempfile::tempdir().unwrap();
            let other = cni_test_harness::certificates::Authority::new(elsewhere.path()).unwrap();
            let node = with(tls(Some(other.ca_path()), identity));
            let error = node.config().await.unwrap_err();
            let words = format!("{error:#}: {}", error.source().unwrap());
            assert!(words.contains("certificate"), "{words}");
            if wanted == ClientCertificates::Wanted {
                let node = with(tls(Some(authority.ca_path()), None));
                let error = node.config().await.unwrap_err();
                let words = error.source().unwrap().to_string();
                assert!(words.contains("give --etcd-certfile"), "{words}");
            }
        });
    }
}

#[test]
fn a_user_stays_known_when_tokens_go_stale() {
    skip_unless!(installed());
    let mut etcd = Etcd::start().unwrap();
    let password = "pass-w0rd:/?";
    etcd.enable_users("flannel", password).unwrap();
    let plain = options(&etcd, DAY);
    let with = |password: &str| {
        let mut options = plain.clone();
        options.credentials = Credentials::new("flannel", password).unwrap();
        EtcdStore::new(options)
    };
    run(async {
        let node = with(password);
        let held = node.acquire(&claim(100)).await.unwrap();
        let claim = holding(claim(100), held.subnets);
        let mut following = Following::start(node.clone());
        following
            .until("it", |table| table.get(&held.subnets).is_some())
            .await;
        // Any change of users makes older tokens stale.
        etcd.ctl(&["user", "add", "somebody:else"]).unwrap();
        assert!(matches!(
            node.renew(&claim).await.unwrap(),
            Renewal::Renewed(_)
        ));
        let refused = with("wrong").config().await.unwrap_err().to_string();
        assert!(refused.contains("authentication failed"), "{refused}");
        assert!(!refused.contains("wrong"), "{refused}");
        let nobody = store(&etcd, DAY).config().await.unwrap_err().to_string();
        assert!(nobody.contains("--etcd-username"), "{nobody}");
        assert!(!format!("{node:?}").contains(password));
    });
    // A member that starts again knows none of its tokens.
    run(async {
        let node = with(password);
        let held = node.acquire(&claim(100)).await.unwrap();
        let mut following = Following::start(node.clone());
        following
            .until("it", |table| table.get(&held.subnets).is_some())
            .await;
        etcd.kill_all();
        etcd.start_all().unwrap();
        let renewal = node
            .renew(&holding(claim(100), held.subnets))
            .await
            .unwrap();
        assert!(matches!(renewal, Renewal::Renewed(_)));
        etcd.put_all(&keyed(&[entry(7)]), None).unwrap();
        following
            .until("a new one", |table| {
                table.get(&subnets("10.5.7.0-24")).is_some()
            })
            .await;
        assert_eq!(following.removals(), 0);
    });
}

#[test]
fn a_token_that_has_ended_is_renewed() {
    skip_unless!(installed());
    let setup = Setup::default().flags(&["--auth-token-ttl=1"]);
    let mut etcd = setup.start().unwrap();
    etcd.enable_users("flannel", "pass-w0rd").unwrap();
    let mut options = options(&etcd, DAY);
    options.credentials = Credentials::new("flannel", "pass-w0rd").unwrap();
    run(async {
        let node = EtcdStore::new(options);
        let held = node.acquire(&claim(100)).await.unwrap();
        let claim = holding(claim(100), held.subnets);
        let mut following = Following::start(node.clone());
        following
            .until("it", |table| table.get(&held.subnets).is_some())
            .await;
        for n in [7, 8] {
            // A token that is not used ends a second after its last use.
            following.for_a_while(Duration::from_secs(3)).await;
            let renewal = node.renew(&claim).await.unwrap();
            assert!(matches!(renewal, Renewal::Renewed(_)), "{renewal:?}");
            etcd.put_all(&keyed(&[entry(n)]), None).unwrap();
            let new = subnets(&entry(n).0);
            following
                .until("a new one", |table| table.get(&new).is_some())
                .await;
        }
        assert_eq!((snapshots(&following), following.removals()), (1, 0));
    });
}

/// Without word of progress a watch in which nothing happens stays where it began, and what comes
/// behind is compacted away one day.
#[test]
fn a_quiet_watch_moves_on_and_is_resumed_behind_a_compaction() {
    skip_unless!(installed());
    let setup = Setup::default().flags(&["--experimental-watch-progress-notify-interval=1s"]);
    let mut etcd = setup.start().unwrap();
    run(async {
        let mut following = nine_followed(&etcd).await;
        // Others use this etcd, too.
        for n in 0..20 {
            etcd.put("/elsewhere", &n.to_string(), None).unwrap();
        }
        following.for_a_while(Duration::from_secs(4)).await;
        etcd.compact().unwrap();
        etcd.kill_all();
        etcd.start_all().unwrap();
        etcd.delete_all(&[key("10.5.1.0-24")]).unwrap();
        following
            .until("a deletion", |table| {
                table.get(&subnets("10.5.1.0-24")).is_none()
            })
            .await;
        assert_eq!((snapshots(&following), following.removals()), (1, 1));
    });
}

#[test]
fn a_compacted_history_is_listed_again() {
    skip_unless!(installed());
    let mut etcd = Etcd::start().unwrap();
    run(async {
        let mut following = nine_followed(&etcd).await;
        // All of this happens while nothing else of this thread runs.
        etcd.kill_all();
        etcd.start_all().unwrap();
        etcd.delete_all(&[key("10.5.1.0-24")]).unwrap();
        etcd.put_all(&[(key("10.5.2.0-24"), value(22))], None)
            .unwrap();
        etcd.compact().unwrap();
        following
            .until("a deletion", |table| {
                table.get(&subnets("10.5.1.0-24")).is_none()
            })
            .await;
        assert_eq!(
            following.table.get(&subnets("10.5.2.0-24")),
            Some(&lease(22))
        );
        assert_eq!((snapshots(&following), following.removals()), (2, 1));
    });
}

#[test]
fn a_watch_that_breaks_is_resumed_without_a_list() {
    skip_unless!(installed());
    let mut etcd = Etcd::start().unwrap();
    run(async {
        let mut following = nine_followed(&etcd).await;
        etcd.kill_all();
        etcd.start_all().unwrap();
        etcd.delete_all(&[key("10.5.1.0-24")]).unwrap();
        following
            .until("a deletion", |table| {
                table.get(&subnets("10.5.1.0-24")).is_none()
            })
            .await;
        assert_eq!(snapshots(&following), 1);
    });
}

#[test]
fn a_store_made_anew_is_recognised_although_it_is_further_than_the_old_one() {
    skip_unless!(installed());
    let mut etcd = Etcd::start().unwrap();
    run(async {
        etcd.put_all(&keyed(&(1..=3).map(entry).collect::<Vec<_>>()), None)
            .unwrap();
        let mut following = Following::start(store(&etcd, DAY));
        following
            .until("three", |table| table.leases().count() == 3)
            .await;
        etcd.wipe().unwrap();
        for n in 11..=30 {
            etcd.put_all(&keyed(&[entry(n)]), None).unwrap();
        }
        following
            .until("the new ones", |table| table.leases().count() == 20)
            .await;
        assert_eq!(snapshots(&following), 2);
    });
}

#[test]
fn a_hand_that_deletes_everything_takes_no_peer_away() {
    skip_unless!(installed());
    let etcd = Etcd::start().unwrap();
    run(async {
        etcd.put_all(&keyed(&(1..=9).map(entry).collect::<Vec<_>>()), None)
            .unwrap();
        let node = store(&etcd, DAY);
        let held = node.acquire(&claim(100)).await.unwrap();
        let mut following = Following::start_as(node, held.subnets);
        following
            .until("ten", |table| table.leases().count() == 10)
            .await;
        etcd.ctl(&["del", "--prefix", PREFIX]).unwrap();
        following
            .until("our own loss", |table| table.get(&held.subnets).is_none())
            .await;
        following.for_a_while(Duration::from_secs(3)).await;
        assert_eq!(following.table.leases().count(), 9);
    });
}

#[test]
fn a_revoked_lease_is_seen_and_taken_back() {
    skip_unless!(installed());
    let etcd = Etcd::start().unwrap();
    run(async {
        let node = store(&etcd, DAY);
        let held = node.acquire(&claim(100)).await.unwrap();
        let name = held.subnets.to_string();
        let mut following = Following::start(node.clone());
        following
            .until("it", |table| table.get(&held.subnets).is_some())
            .await;
        let etcd_lease = etcd.lease_of(&key(&name)).unwrap().unwrap();
        etcd.ctl(&["lease", "revoke", &etcd_lease]).unwrap();
        following
            .until("its end", |table| table.get(&held.subnets).is_none())
            .await;
        let renewal = node
            .renew(&holding(claim(100), held.subnets))
            .await
            .unwrap();
        assert!(matches!(renewal, Renewal::TakenBack(_)));
        following
            .until("it again", |table| table.get(&held.subnets).is_some())
            .await;
    });
}

#[test]
fn renewals_leave_no_etcd_leases_behind() {
    skip_unless!(installed());
    let etcd = Etcd::start().unwrap();
    run(async {
        let node = store(&etcd, DAY);
        let mut held = node.acquire(&claim(100)).await.unwrap();
        for _ in 0..5 {
            node.renew(&holding(claim(100), held.subnets))
                .await
                .unwrap();
            held = store(&etcd, DAY).acquire(&claim(100)).await.unwrap();
        }
        let list = etcd.ctl(&["lease", "list"]).unwrap();
        assert!(list.contains("found 1 leases"), "{list}");
    });
}

/// One of etcd's own counters: how many requests of this method it has answered.
fn requests(etcd: &Etcd, method: &str) -> u64 {
    let address = etcd.endpoints().replace("http://", "");
    let mut stream = TcpStream::connect(&address).unwrap();
    write!(stream, "GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let of_method = |line: &&str| {
        line.starts_with("grpc_server_handled_total") && line.contains(&format!("\"{method}\""))
    };
    let counts = text
        .lines()
        .filter(of_method)
        .filter_map(|line| line.split(' ').next_back());
    counts
        .map(|count| count.parse::<f64>().unwrap() as u64)
        .sum()
}

#[test]
fn a_start_among_ten_thousand_leases_is_one_list_and_no_request_per_lease() {
    skip_unless!(installed());
    let etcd = Etcd::start().unwrap();
    let all: Vec<_> = (0..10_000)
        .map(|n| {
            (
                key(&format!("10.{}.{}.0-24", 10 + n / 256, n % 256)),
                value(n),
            )
        })
        .collect();
    etcd.put_all(&all, Some(3600)).unwrap();
    run(async {
        let before = requests(&etcd, "Range");
        let begin = Instant::now();
        let node = store(&etcd, DAY);
        let held = node.acquire(&claim(20_000)).await.unwrap();
        let acquired = begin.elapsed();
        let mut following = Following::start(node);
        following
            .until("all", |table| table.leases().count() == 10_001)
            .await;
        let total = begin.elapsed();
        eprintln!("10,000 leases: acquired after {acquired:?}, all known after {total:?}");
        assert!(following.table.get(&held.subnets).is_some());
        // Ten pages and the last, half empty one; none of them for the watch.
        assert!(requests(&etcd, "Range") - before <= 11);
        assert_eq!(requests(&etcd, "LeaseTimeToLive"), 0);
        // Far from a millisecond each, also in a debug build on a busy machine.
        assert!(total < Duration::from_secs(3), "{total:?}");
    });
}

#[test]
fn an_endpoint_that_is_not_there_is_passed_over() {
    skip_unless!(installed());
    let etcd = Etcd::start().unwrap();
    run(async {
        // Flannel's default list begins with a port that nobody has used for years.
        let list = format!("http://127.0.0.1:1,{}", etcd.endpoints());
        let mut options = options(&etcd, DAY);
        options.endpoints = twilld::store::etcd::parse_endpoints(&list).unwrap();
        let node = EtcdStore::new(options.clone());
        node.acquire(&claim(100)).await.unwrap();
        options.endpoints.truncate(1);
        let error = format!("{:#}", EtcdStore::new(options).config().await.unwrap_err());
        assert!(
            error.contains("127.0.0.1:1") && error.contains("refused"),
            "{error}"
        );
    });
}
