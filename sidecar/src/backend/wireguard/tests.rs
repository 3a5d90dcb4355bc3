use super::*;
use serde_json::json;

fn options(json: serde_json::Value) -> Options {
    Options::parse(&json).unwrap()
}

fn key(n: u8) -> Key {
    PrivateKey::new([n; 32]).public()
}

fn lease(n: u8, v4: &str, v6: &str) -> Lease {
    let public = BASE64.encode(key(n));
    let value = format!(
        r#"{{"PublicIP":"{v4}","PublicIPv6":"{v6}","BackendType":"wireguard","BackendData":{{"PublicKey":"{public}","Port":51820}},"BackendV6Data":{{"PublicKey":"{public}","Port":51821}}}}"#
    );
    Lease::parse(value.as_bytes()).unwrap()
}

fn node() -> Node {
    Node {
        subnets: "10.5.20.0-24&fd00:5:0:20::-64".parse().unwrap(),
        lease: lease(1, "192.168.50.1", "fd00:50::1"),
        networks: [
            (Family::V4, "10.5.0.0/16".parse().unwrap()),
            (Family::V6, "fd00:5::/48".parse().unwrap()),
        ]
        .into_iter()
        .collect(),
    }
}

fn wants(mode: &str, peer: &Lease) -> BTreeMap<String, (String, Vec<String>)> {
    let subnets: Subnets = "10.5.30.0-24&fd00:5:0:30::-64".parse().unwrap();
    let options = options(json!({ "Mode": mode }));
    let (wanted, skipped) = wanted(&options, &node(), &key(1), &[(&subnets, peer)]);
    assert!(skipped.is_empty(), "{skipped:?}");
    let shown = wanted.into_iter().map(|(device, peers)| {
        let peer = &peers[&key(2)];
        let allowed = peer.allowed.iter().map(|net| net.to_string()).collect();
        (
            device.to_string(),
            (peer.endpoint.unwrap().to_string(), allowed),
        )
    });
    shown.collect()
}

#[test]
fn the_known_answer_of_a_key_pair() {
    // RFC 7748 §6.1.
    let private = "dwdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LCo=";
    let public = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=";
    let key = PrivateKey::parse(&format!("{private}\n")).unwrap();
    assert_eq!(BASE64.encode(key.public()), public);
    assert_eq!(PrivateKey::parse(&key.render()), Ok(key));
    let shown = format!("{:?}", PrivateKey::new([7; 32]));
    assert_eq!(shown, "PrivateKey(…)");
}

#[test]
fn each_family_has_its_device_or_both_share_one() {
    let peer = lease(2, "192.168.50.30", "fd00:50::30");
    let v4 = || vec!["10.5.30.0/24".to_owned()];
    let v6 = || vec!["fd00:5:0:30::/64".to_owned()];
    let both = || [v4(), v6()].concat();
    let separate = wants("separate", &peer);
    assert_eq!(separate["flannel-wg"], ("192.168.50.30:51820".into(), v4()));
    assert_eq!(
        separate["flannel-wg-v6"],
        ("[fd00:50::30]:51821".into(), v6())
    );
    for (mode, endpoint) in [
        ("auto", "192.168.50.30:51820"),
        ("ipv4", "192.168.50.30:51820"),
        // One device listens on one port, whatever flannel publishes.
        ("ipv6", "[fd00:50::30]:51820"),
    ] {
        let one = wants(mode, &peer);
        assert_eq!(one.len(), 1, "{mode}");
        assert_eq!(one["flannel-wg"], (endpoint.into(), both()), "{mode}");
    }
}

#[test]
fn auto_prefers_addresses_that_are_public() {
    for (v4, v6, own_v6, want) in [
        ("192.168.50.30", "fd00::30", "fd00::1", Family::V4),
        ("192.168.50.30", "2001:db8::30", "2001:db8::1", Family::V6),
        ("192.168.50.30", "2001:db8::30", "fd00::1", Family::V4),
        ("203.0.113.9", "2001:db8::30", "2001:db8::1", Family::V4),
    ] {
        let own = lease(1, "192.168.50.1", own_v6).public_ips;
        assert_eq!(auto(&lease(2, v4, v6).public_ips, &own), want, "{v4} {v6}");
    }
}

#[test]
fn a_bad_key_or_somebody_elses_leaves_one_peer_out() {
    let all: [Subnets; 3] =
        ["10.5.30.0-24", "10.5.31.0-24", "10.5.32.0-24"].map(|text| text.parse().unwrap());
    let torn = r#"{"PublicIP":"192.168.50.32","BackendType":"wireguard","BackendData":{"PublicKey":"AAAA"}}"#;
    let leases = [
        lease(1, "192.168.50.30", "fd00:50::30"),
        lease(2, "192.168.50.31", "fd00:50::31"),
        Lease::parse(torn.as_bytes()).unwrap(),
    ];
    let peers: Vec<_> = all.iter().zip(&leases).collect();
    let (wanted, skipped) = wanted(&options(json!({})), &node(), &key(1), &peers);
    let (mine, torn) = (&skipped["10.5.30.0-24"], &skipped["10.5.32.0-24"]);
    assert!(mine.contains("our own"), "{mine}");
    assert!(torn.contains("3 bytes"), "{torn}");
    assert_eq!(wanted["flannel-wg"].len(), 1);
}

fn peer(endpoint: &str, last_handshake: u64) -> Peer {
    Peer {
        endpoint: endpoint.parse().ok(),
        allowed: [("10.5.30.0/24").parse().unwrap()].into(),
        last_handshake,
        ..Peer::default()
    }
}

fn told(have: Peer, said: &str) -> Vec<Change> {
    let want = [(key(2), peer("192.168.50.30:51820", 0))].into();
    let found = Found {
        peers: [(key(2), have)].into(),
        ..Found::default()
    };
    let said = said.parse().map(|said| (key(2), said));
    changes(&want, &found, &said.into_iter().collect(), 10_000)
}

#[test]
fn a_peer_that_moved_keeps_its_endpoint_while_it_is_heard() {
    let lease_says = "192.168.50.30:51820";
    let (here, there) = (peer(lease_says, 0), "203.0.113.9:4000");
    assert_eq!(told(here.clone(), ""), []);
    // After a restart, nothing was said yet.
    for said in ["", lease_says] {
        assert_eq!(told(peer(there, 9_900), said), []);
        assert_eq!(
            told(peer(there, 9_000), said),
            [Change::Put(key(2), here.clone())]
        );
    }
    // The lease has a new word.
    let moved = told(peer(there, 9_900), "192.168.50.29:51820");
    assert_eq!(moved, [Change::Put(key(2), here)]);
}

#[test]
fn another_address_or_secret_is_put_right_without_touching_the_endpoint() {
    let mut have = peer("203.0.113.9:4000", 9_900);
    have.allowed.insert("10.5.99.0/24".parse().unwrap());
    have.preshared_key = Some([9; 32]);
    let want = peer("", 0);
    assert_eq!(told(have, ""), [Change::Put(key(2), want)]);
}

#[test]
fn whoever_is_not_wanted_goes_after_who_comes() {
    let want = [(key(2), peer("192.168.50.30:51820", 0))].into();
    let found = Found {
        peers: [(key(3), peer("192.168.50.30:51820", 9_990))].into(),
        ..Found::default()
    };
    let plan = changes(&want, &found, &BTreeMap::new(), 10_000);
    let put = Change::Put(key(2), peer("192.168.50.30:51820", 0));
    assert_eq!(plan, [put, Change::Remove(key(3))]);
}

#[test]
fn a_wrong_option_is_fatal_named_and_never_repeats_a_secret() {
    for (json, field) in [
        (json!({"ListenPort": 0}), "Backend.ListenPort"),
        (json!({"ListenPortV6": 65536}), "Backend.ListenPortV6"),
        (json!({"MTU": -1}), "Backend.MTU"),
        (json!({"PSK": "c2VjcmV0"}), "Backend.PSK"),
        (json!({"PSK": "secret!"}), "Backend.PSK"),
        (json!({"Mode": "both"}), "Backend.Mode"),
        (
            json!({"PersistentKeepaliveInterval": "25s"}),
            "Backend.PersistentKeepaliveInterval",
        ),
    ] {
        let error = Options::parse(&json).unwrap_err();
        assert!(error.fatal && error.field == field, "{error}");
        let said = error.to_string();
        assert!(!said.contains("secret") && !said.contains("c2Vj"), "{said}");
    }
}
