//! Traffic control in a namespace of the test's own, looked at with `tc`.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use kernel::tc::{self, TokenBucket};
use kernel::{Socket, ifb, link};
use serde_json::Value;

mod namespace;

use namespace::{in_a_namespace, run};

fn json(command: &str) -> Value {
    serde_json::from_str(&run(command)).unwrap()
}

fn two_devices() -> (Socket, u32, u32) {
    let mut socket = Socket::open().unwrap();
    run("ip link add v0 type veth peer name v1");
    socket
        .apply_all(&ifb::create("bwp0", 1400, "twill-ifb:n/c/eth0"))
        .unwrap();
    let index = |socket: &mut Socket, name| link::by_name(socket, name).unwrap().unwrap().ifindex;
    let v0 = index(&mut socket, "v0");
    let ifb = index(&mut socket, "bwp0");
    (socket, v0, ifb)
}

#[test]
fn an_ifb_has_its_mtu_and_alias_and_no_queue() {
    in_a_namespace(|| {
        let (..) = two_devices();
        let shown = json("ip -d -j link show bwp0");
        assert_eq!(shown[0]["linkinfo"]["info_kind"], "ifb");
        assert_eq!(
            (&shown[0]["mtu"], &shown[0]["ifalias"]),
            (&1400.into(), &"twill-ifb:n/c/eth0".into())
        );
        assert!(shown[0]["txqlen"].is_null() || shown[0]["txqlen"] == 0);
        assert!(shown[0]["flags"].as_array().unwrap().contains(&"UP".into()));
    });
}

#[test]
fn a_token_bucket_is_what_tc_shows_and_what_is_read_back() {
    in_a_namespace(|| {
        let (mut socket, v0, _) = two_devices();
        assert_eq!(tc::token_bucket(&mut socket, v0).unwrap(), None);
        let bucket = TokenBucket::new(1_000_000, 100_000, 25);
        let set = tc::replace_token_bucket(v0, &bucket);
        socket.apply_all(&[set.clone(), set]).unwrap();
        let text = run("tc qdisc show dev v0");
        assert!(
            text.contains("qdisc tbf 1: root")
                && text.contains("rate 8Mbit burst 100000b lat 25ms"),
            "{text}"
        );
        assert_eq!(tc::token_bucket(&mut socket, v0).unwrap(), Some(bucket));
        let fast = TokenBucket::new(10_000_000_000, 1 << 20, 25);
        socket
            .apply_all(&[tc::replace_token_bucket(v0, &fast)])
            .unwrap();
        let text = run("tc qdisc show dev v0");
        assert!(text.contains("rate 80Gbit"), "{text}");
        assert_eq!(tc::token_bucket(&mut socket, v0).unwrap(), Some(fast));
        socket
            .apply_all(&[tc::delete_root(v0), tc::delete_root(v0)])
            .unwrap();
        assert_eq!(tc::token_bucket(&mut socket, v0).unwrap(), None);
    });
}

#[test]
fn what_comes_in_is_redirected() {
    in_a_namespace(|| {
        let (mut socket, v0, ifb) = two_devices();
        assert!(tc::redirects(&mut socket, v0).unwrap().is_empty());
        let set = [
            tc::delete_ingress(v0),
            tc::add_ingress(v0),
            tc::redirect_ingress(v0, ifb),
        ];
        socket.apply_all(&set).unwrap();
        socket.apply_all(&set).unwrap();
        let text = run("tc filter show dev v0 ingress");
        for part in [
            "filter parent ffff: protocol all pref 1 u32 chain 0",
            "*flowid 1:1",
            "match 00000000/00000000 at 0",
            "mirred (Egress Redirect to device bwp0) stolen",
        ] {
            assert!(text.contains(part), "{part}\n{text}");
        }
        assert_eq!(text.matches("mirred").count(), 1, "{text}");
        assert_eq!(tc::redirects(&mut socket, v0).unwrap(), vec![ifb]);
        socket
            .apply_all(&[tc::delete_ingress(v0), tc::delete_ingress(v0)])
            .unwrap();
        assert_eq!(run("tc filter show dev v0 ingress"), "");
    });
}
