//! Bandwidth: limits that hold, and nothing left behind.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::node::{call, inside, pod, run_plugin, tool, try_tool, with_a_bridge};

/// 1 MB/s in bits, and what may pass at once.
const RATE: u64 = 8_000_000;
const BURST: u64 = 400_000;
/// Takes 950 ms at that rate, and a few when nothing limits it.
const BYTES: usize = 1_000_000;
const SLOW: Duration = Duration::from_millis(600);

fn config(previous: &Value, limits: Value) -> Value {
    json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "bandwidth", "prevResult": previous,
        "runtimeConfig": {"bandwidth": limits}})
}

fn both() -> Value {
    json!({"IngressRate": RATE, "IngressBurst": BURST, "EgressRate": RATE, "EgressBurst": BURST})
}

/// How long the bytes take between two namespaces, sent to an address of the second.
fn transfer(from: &str, to: &str, ip: &str) -> Duration {
    let listener = inside(to, || TcpListener::bind((ip, 0)).unwrap());
    let address = listener.local_addr().unwrap();
    let reader = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = vec![];
        stream.read_to_end(&mut bytes).unwrap();
        (bytes.len(), Instant::now())
    });
    let start = Instant::now();
    inside(from, || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(&vec![0; BYTES]).unwrap();
    });
    let (count, end) = reader.join().unwrap();
    assert_eq!(count, BYTES);
    end - start
}

fn devices() -> String {
    tool("ip -o link show")
}

#[test]
fn each_direction_is_as_fast_as_it_may_be() {
    with_a_bridge("each_direction_is_as_fast_as_it_may_be", &["pod"], || {
        let previous = pod("pod", 2);
        let receive = || transfer("", "pod", "10.1.2.2");
        let send = || transfer("pod", "", "10.1.2.1");
        for (limits, slow_in, slow_out) in [
            (both(), true, true),
            (
                json!({"ingressRate": RATE, "ingressBurst": BURST}),
                true,
                false,
            ),
            (
                json!({"egressRate": RATE, "egressBurst": BURST}),
                false,
                true,
            ),
            (json!({}), false, false),
        ] {
            let config = config(&previous, limits);
            call("bandwidth", "ADD", "abc", "pod", &config).ok();
            call("bandwidth", "CHECK", "abc", "pod", &config).ok();
            let times = (receive(), send());
            assert_eq!(
                (times.0 > SLOW, times.1 > SLOW),
                (slow_in, slow_out),
                "{times:?} {config}"
            );
            call("bandwidth", "DEL", "abc", "pod", &config).ok();
            let times = (receive(), send());
            assert!(
                times.0 < SLOW && times.1 < SLOW,
                "after DEL: {times:?} {config}"
            );
            assert!(!devices().contains("bwp"), "{}", devices());
        }
    });
}

#[test]
fn the_ifb_is_in_the_result_and_del_needs_only_names() {
    with_a_bridge(
        "the_ifb_is_in_the_result_and_del_needs_only_names",
        &["pod"],
        || {
            let config = config(&pod("pod", 2), both());
            let answer = call("bandwidth", "ADD", "abc", "pod", &config).ok().json();
            let ifb = &answer["interfaces"][3];
            assert_eq!(ifb["name"], "bwp64e75f641d11");
            assert!(
                devices().contains(ifb["mac"].as_str().unwrap()),
                "{}",
                devices()
            );
            assert!(tool("ip link show bwp64e75f641d11").contains("alias twifb:cbr0/abc/eth0"));
            let nothing = json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "bandwidth", "ingressRate": -1});
            call("bandwidth", "DEL", "abc", "", &nothing).ok();
            assert!(!devices().contains("bwp"), "{}", devices());
            call("bandwidth", "DEL", "abc", "gone", &nothing).ok();
            // One that the Go plugin made has no alias.
            tool("ip link add bwp64e75f641d11 type ifb");
            call("bandwidth", "DEL", "abc", "", &nothing).ok();
            assert!(!devices().contains("bwp"), "{}", devices());
        },
    );
}

#[test]
fn check_notices_every_loss_and_add_makes_it_good() {
    with_a_bridge(
        "check_notices_every_loss_and_add_makes_it_good",
        &["pod"],
        || {
            let config = config(&pod("pod", 2), both());
            for loss in [
                "tc qdisc del dev veth00000002 root",
                "tc qdisc replace dev veth00000002 root handle 1: tbf rate 1mbit burst 50000 latency 25ms",
                "tc qdisc del dev veth00000002 ingress",
                "tc qdisc del dev bwp64e75f641d11 root",
                "ip link del bwp64e75f641d11",
            ] {
                call("bandwidth", "ADD", "abc", "pod", &config).ok();
                call("bandwidth", "CHECK", "abc", "pod", &config).ok();
                tool(loss);
                let answer = call("bandwidth", "CHECK", "abc", "pod", &config);
                assert_eq!(answer.json()["code"], 103, "{loss}: {answer:?}");
            }
        },
    );
}

#[test]
fn two_attachments_of_a_container_have_an_ifb_each() {
    with_a_bridge(
        "two_attachments_of_a_container_have_an_ifb_each",
        &["pod"],
        || {
            let previous = pod("pod", 2);
            tool("ip link add veth00000009 type veth peer name net1 netns pod");
            let of = |ifname: &str, verb: &str| {
                let mut previous = previous.clone();
                if ifname == "net1" {
                    previous["interfaces"][1]["name"] = json!("veth00000009");
                    previous["interfaces"][2]["name"] = json!("net1");
                }
                let env = [
                    ("CNI_COMMAND", verb),
                    ("CNI_CONTAINERID", "abc"),
                    ("CNI_NETNS", "/run/netns/pod"),
                    ("CNI_IFNAME", ifname),
                ];
                run_plugin("bandwidth", &env, &config(&previous, both()).to_string()).ok();
            };
            of("eth0", "ADD");
            of("net1", "ADD");
            assert_eq!(devices().matches(": bwp").count(), 2, "{}", devices());
            of("eth0", "CHECK");
            of("eth0", "DEL");
            assert_eq!(devices().matches(": bwp").count(), 1, "{}", devices());
            of("net1", "CHECK");
            of("net1", "DEL");
            assert_eq!(devices().matches(": bwp").count(), 0, "{}", devices());
        },
    );
}

#[test]
fn gc_takes_the_ifbs_of_no_valid_attachment() {
    with_a_bridge("gc_takes_the_ifbs_of_no_valid_attachment", &["pod"], || {
        let config = config(&pod("pod", 2), both());
        call("bandwidth", "ADD", "abc", "pod", &config).ok();
        let gc = |network: &str, valid: Value| {
            let config = json!({"cniVersion": "1.1.0", "name": network, "type": "bandwidth",
                "cni.dev/attachments": valid});
            call("bandwidth", "GC", "", "", &config).ok();
            devices().contains("bwp")
        };
        assert!(gc("other", Value::Null));
        assert!(gc(
            "cbr0",
            json!([{"containerID": "abc", "ifname": "eth0"}])
        ));
        assert!(!gc(
            "cbr0",
            json!([{"containerID": "abc", "ifname": "net1"}])
        ));
    });
}

#[test]
fn what_fails_changes_nothing() {
    with_a_bridge("what_fails_changes_nothing", &["pod"], || {
        let previous = pod("pod", 2);
        let before = tool("tc qdisc show");
        let mut unlisted = previous.clone();
        unlisted["interfaces"][1]["name"] = json!("veth11111111");
        let error = call("bandwidth", "ADD", "abc", "pod", &config(&unlisted, both())).error();
        assert!(error.contains("veth00000002"), "{error}");
        // Somebody else's devices have both names that the ifb may have.
        call("bandwidth", "ADD", "abc", "pod", &config(&previous, both())).ok();
        let first = "bwp64e75f641d11";
        tool(&format!("ip link del {first}"));
        tool(&format!("ip link add {first} type bridge"));
        let answer = call("bandwidth", "ADD", "abc", "pod", &config(&previous, both())).ok();
        let second = answer.json()["interfaces"][3]["name"]
            .as_str()
            .unwrap()
            .to_owned();
        assert_ne!(second, first);
        tool(&format!("ip link del {second}"));
        tool(&format!("ip link add {second} type bridge"));
        let answer = call("bandwidth", "ADD", "abc", "pod", &config(&previous, both()));
        assert_eq!(answer.json()["code"], 101, "{answer:?}");
        call("bandwidth", "DEL", "abc", "pod", &config(&previous, both())).ok();
        assert!(
            try_tool(&format!("ip link show {first}")).0,
            "somebody else's stays"
        );
        let limited = |text: &str| text.matches("tbf").count();
        assert_eq!(limited(&tool("tc qdisc show")), limited(&before));
    });
}
