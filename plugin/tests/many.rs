//! Many at once, and one after the other in the same place: addresses are nobody else's while they
//! are held, none is lost, and one that is used again is reached at once.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod calls;
mod namespaces;

use std::collections::BTreeSet;

use calls::{inside, ok, reserved, tool, try_tool, write_subnet_env};
use serde_json::{Value, json};

const PODS: usize = 200;

fn on_a_node(test: &str, sandboxes: &[&str], f: impl FnOnce() + Send) {
    if namespaces::available(test) {
        namespaces::in_a_node_of_its_own(sandboxes, f);
    }
}

/// Runs `f` for each of the numbers, all at once.
fn at_once<T: Send>(numbers: impl Iterator<Item = usize>, f: impl Fn(usize) -> T + Sync) -> Vec<T> {
    std::thread::scope(|scope| {
        let f = &f;
        // A thread that is started here has this one's namespaces.
        let all: Vec<_> = numbers
            .map(|number| scope.spawn(move || f(number)))
            .collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    })
}

#[test]
fn two_hundred_reservations_at_once_are_distinct_and_none_stays() {
    let test = "two_hundred_reservations_at_once_are_distinct_and_none_stays";
    on_a_node(test, &[], || {
        let config = json!({"cniVersion": "1.1.0", "name": "many", "type": "host-local",
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.1.2.0/24"}]]}});
        let run = |verb: &str, pod: usize| {
            let id = format!("pod{pod}");
            ok("host-local", verb, &[("CNI_CONTAINERID", &id)], &config)
        };
        let address = |result: Value| result["ips"][0]["address"].as_str().unwrap().to_owned();
        let first: BTreeSet<String> = at_once(0..PODS, |pod| address(run("ADD", pod)))
            .into_iter()
            .collect();
        assert_eq!(first.len(), PODS);
        // Half of them go while as many come: there is room for both, and 53 more.
        at_once(0..PODS, |at| match at % 2 {
            0 => drop(run("DEL", at)),
            _ => drop(run("ADD", PODS + at)),
        });
        let kept = (0..PODS)
            .filter(|at| at % 2 == 1)
            .flat_map(|at| [at, PODS + at]);
        let held = reserved("many");
        assert_eq!(held.len(), PODS, "{held:?}");
        at_once(kept, |pod| {
            run("CHECK", pod);
            run("DEL", pod);
            run("DEL", pod);
        });
        assert_eq!(reserved("many"), Vec::<String>::new());
    });
}

/// The address that the neighbours of the pod before still know with that one's MAC.
#[test]
fn an_address_that_is_used_again_is_reached_at_once_from_the_node_and_from_pods() {
    let test = "an_address_that_is_used_again_is_reached_at_once_from_the_node_and_from_pods";
    for mode in ["bridge", "routed"] {
        on_a_node(test, &["pod", "pod2", "pod3"], || {
            write_subnet_env();
            tool("ip link set lo up");
            let config = |mac: &str| {
                json!({"cniVersion": "1.1.0", "name": "cbr0", "type": "twill", "mode": mode,
                    "runtimeConfig": {"ips": ["10.244.1.77"], "mac": mac}})
            };
            let other =
                json!({"cniVersion": "1.1.0", "name": "cbr0", "type": "twill", "mode": mode});
            let pod3 = [("CNI_CONTAINERID", "ghi"), ("CNI_NETNS", "/run/netns/pod3")];
            ok("twill", "ADD", &pod3, &other);
            let reach = |from: &str| {
                // One packet, and less time than a neighbour that is not there takes to fail.
                let ping = || try_tool("ping -c 1 -W 1 10.244.1.77");
                let (answered, said, _) = inside(from, ping);
                assert!(answered, "{mode}, from {from:?}: {said}");
            };
            ok("twill", "ADD", &[], &config("02:00:00:00:00:01"));
            reach("");
            reach("pod3");
            ok("twill", "DEL", &[], &config("02:00:00:00:00:01"));
            let pod2 = [("CNI_CONTAINERID", "def"), ("CNI_NETNS", "/run/netns/pod2")];
            ok("twill", "ADD", &pod2, &config("02:00:00:00:00:02"));
            reach("pod3");
            reach("");
        });
    }
}
