//! Configs of which every field is right and the whole is not, and configs that are torn or
//! enormous.

use serde_json::{Value, json};

use super::calls::{run_with, variables};
use super::scene::{self, NEW, State, call, refused, with_a_pod};

const EVERY_NAME: [&str; 8] = [
    "twill",
    "flannel",
    "bridge",
    "host-local",
    "portmap",
    "bandwidth",
    "tuning",
    "loopback",
];

/// What contradicts itself, by plugin, and the word that must be in the answer.
fn contradictions() -> Vec<(&'static str, Value, &'static str)> {
    let range = |more: Value| {
        let mut range = json!({"subnet": "10.9.0.0/24"});
        range
            .as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        json!({"ipam": {"type": "host-local", "ranges": [[range]]}})
    };
    let sets = |sets: Value| json!({"ipam": {"type": "host-local", "ranges": sets}});
    let port = |more: Value| {
        let mut port = json!({"hostPort": 80, "containerPort": 80, "protocol": "tcp"});
        port.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        json!({"portMappings": [port]})
    };
    let mut all = vec![
        (
            "bridge",
            json!({"hairpinMode": true, "promiscMode": true}),
            "hairpin",
        ),
        (
            "bridge",
            json!({"disableContainerInterface": true}),
            "DisableContainerInterface",
        ),
        (
            "bridge",
            json!({"vlanTrunk": [{"minID": 9, "maxID": 3}]}),
            "minID",
        ),
        ("bridge", json!({"vlanTrunk": [{"minID": 9}]}), "maxID"),
        (
            "bridge",
            json!({"vlan": 4000, "isGateway": true, "bridge": "a23456789012"}),
            "4000",
        ),
        ("flannel", json!({"delegate": {"name": "x"}}), "'name'"),
        ("flannel", json!({"delegate": {"ipam": {}}}), "'ipam'"),
        (
            "flannel",
            json!({"delegate": {"hairpinMode": true, "promiscMode": true}}),
            "hairpin",
        ),
        (
            "twill",
            json!({"mode": "routed", "bridge": "br0"}),
            "bridge",
        ),
        ("twill", json!({"mode": "routed", "vlan": 5}), "vlan"),
        (
            "twill",
            json!({"mode": "routed", "ipam": {"type": ""}}),
            "ipam",
        ),
        ("twill", json!({"ingressRate": 8000}), "burst"),
        (
            "twill",
            json!({"runtimeConfig": port(json!({"hostPort": 0}))}),
            "host port",
        ),
        (
            "portmap",
            json!({"markMasqBit": 1, "externalSetMarkChain": "X",
                "runtimeConfig": port(json!({}))}),
            "markMasqBit",
        ),
        (
            "portmap",
            json!({"backend": "nftables", "conditionsV4": ["-d", "192.0.2.1"],
                "runtimeConfig": port(json!({}))}),
            "conditionsV4",
        ),
        ("bandwidth", json!({"ingressBurst": 8000}), "rate"),
        ("bandwidth", json!({"egressRate": 8000}), "burst"),
    ];
    for kind in ["bridge", "host-local"] {
        all.extend([
            (kind, range(json!({"subnet": "10.9.0.0/31"})), "10.9.0.0/31"),
            (kind, range(json!({"subnet": "10.9.0.5/24"})), "host bits"),
            (kind, range(json!({"rangeStart": "10.8.0.1"})), "RangeStart"),
            (kind, range(json!({"rangeEnd": "10.8.0.1"})), "Range"),
            (kind, range(json!({"rangeEnd": "fd00::1"})), "Range"),
            (
                kind,
                range(json!({"rangeStart": "10.9.0.9", "rangeEnd": "10.9.0.5"})),
                "Range",
            ),
            (kind, sets(json!([])), "no IP ranges"),
            (kind, sets(json!([[]])), "empty range set"),
            (
                kind,
                sets(json!([[{"subnet": "10.9.0.0/24"}, {"subnet": "10.9.0.0/16"}]])),
                "overlap",
            ),
            (
                kind,
                sets(json!([[{"subnet": "10.9.0.0/24"}], [{"subnet": "10.9.0.0/16"}]])),
                "overlap",
            ),
            (
                kind,
                sets(json!([[{"subnet": "10.9.0.0/24"}, {"subnet": "fd00::/64"}]])),
                "famil",
            ),
            (
                kind,
                json!({"args": {"cni": {"ips": ["10.8.0.7"]}}}),
                "10.8.0.7",
            ),
            (
                kind,
                json!({"args": {"cni": {"ips": ["10.9.0.1"]}}}),
                "10.9.0.1",
            ),
        ]);
    }
    all
}

#[test]
fn what_contradicts_itself_is_refused_by_name_and_changes_nothing() {
    with_a_pod(
        "what_contradicts_itself_is_refused_by_name_and_changes_nothing",
        |previous| {
            let before = State::whole();
            for (kind, over, word) in contradictions() {
                let mut config = scene::config(kind, previous);
                config
                    .as_object_mut()
                    .unwrap()
                    .extend(over.as_object().unwrap().clone());
                let what = format!("{kind} {over}");
                let (code, text) = refused(&what, &call(kind, "ADD", &config)).unwrap();
                assert!([2, 6, 7, 11, 102].contains(&code), "{what}: {code} {text}");
                assert!(text.contains(word), "{what}: {text}");
                call(kind, "DEL", &config);
                before.quick().assert_same(&State::now(), &what);
            }
            before.assert_same(&State::whole(), "in the end");
        },
    );
}

#[test]
fn what_is_torn_deep_or_enormous_is_one_document_by_every_name() {
    with_a_pod(
        "what_is_torn_deep_or_enormous_is_one_document_by_every_name",
        |previous| {
            let before = State::whole();
            for kind in EVERY_NAME {
                let whole = scene::config(kind, previous).to_string();
                let nested = |open: &str, close: &str| {
                    let inside = [open.repeat(100_000), close.repeat(100_000)].concat();
                    format!(r#"{{"cniVersion":"1.1.0","name":"n","ipam":{inside}}}"#)
                };
                let mut texts = vec![
                    String::new(),
                    "\0".to_owned(),
                    "null".to_owned(),
                    "[]".to_owned(),
                    "5".to_owned(),
                    format!("{whole}{whole}"),
                    format!("\u{feff}{whole}"),
                    nested("[", "]"),
                    nested("{\"a\":", "}"),
                    format!(r#"{{"name":"n","mtu":{}}}"#, "9".repeat(1 << 20)),
                    format!(r#"{{"name":"{}"}}"#, "../".repeat(1 << 20)),
                    format!(r#"{{"name":"n","cniVersion":"{}"}}"#, "1".repeat(1 << 20)),
                ];
                let cuts = (1..whole.len()).step_by(whole.len() / 8 + 1);
                texts.extend(cuts.map(|at| whole[..at].to_owned()));
                for text in texts {
                    for verb in ["ADD", "CHECK", "DEL", "STATUS", "GC"] {
                        let answer = run_with(kind, &variables(verb, &NEW), &text);
                        let start: String = text.chars().take(60).collect();
                        let what = format!("{kind} {verb} {start}");
                        let (code, words) = refused(&what, &answer).unwrap();
                        assert!([1, 6, 7].contains(&code), "{what}: {code} {words}");
                        assert!(
                            answer.stdout.len() < 1 << 14,
                            "{what}: {}",
                            answer.stdout.len()
                        );
                    }
                }
            }
            before.assert_same(&State::whole(), "in the end");
        },
    );
}

#[test]
fn a_list_that_is_none_collects_nothing_by_any_name() {
    with_a_pod(
        "a_list_that_is_none_collects_nothing_by_any_name",
        |previous| {
            let before = State::whole();
            let lists = [
                json!(true),
                json!(5),
                json!("x"),
                json!({}),
                json!([5]),
                json!(["abc"]),
                json!([{"containerID": 5, "ifname": "eth0"}]),
                json!([{"containerID": "abc", "ifname": ["eth0"]}]),
                json!([{"containerID": "abc"}]),
                json!([{"ifname": "eth0"}]),
                json!([null]),
            ];
            for kind in EVERY_NAME {
                // Loopback and tuning keep nothing that a list could say anything about.
                for key in ["cni.dev/valid-attachments", "cni.dev/attachments"] {
                    for list in &lists {
                        let mut config = scene::config(kind, previous);
                        // The network of the pod that is there, for main plugins too.
                        config["name"] = json!("cbr0");
                        config[key] = list.clone();
                        let what = format!("{kind} GC {list}");
                        let (code, text) = refused(&what, &call(kind, "GC", &config)).unwrap();
                        assert!(
                            code == 6 && text.contains("attachments"),
                            "{what}: {code} {text}"
                        );
                    }
                }
            }
            before.assert_same(&State::whole(), "in the end");
        },
    );
}
