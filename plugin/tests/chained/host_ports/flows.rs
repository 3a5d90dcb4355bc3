//! Host ports: flows that the kernel remembers.

use std::net::UdpSocket;
use std::time::Duration;

use super::{DEADLINE, SILENCE, config, serve_udp};
use crate::node::{call, inside, pod, tool, with_a_bridge};
use serde_json::json;

#[test]
fn udp_flows_meet_the_new_mapping_and_do_not_outlive_it() {
    with_a_bridge(
        "udp_flows_meet_the_new_mapping_and_do_not_outlive_it",
        &["pod", "other", "client"],
        || {
            let udp = json!([{"hostPort": 8053, "containerPort": 53, "protocol": "udp"}]);
            let first = config(&pod("pod", 2), udp.clone());
            let second = config(&pod("other", 3), udp);
            serve_udp("pod", 53);
            serve_udp("other", 53);
            let client = inside("client", || {
                let socket = UdpSocket::bind("192.0.2.9:4000").unwrap();
                socket.connect("192.0.2.1:8053").unwrap();
                socket
            });
            let ask = |wait: Duration| {
                client.set_read_timeout(Some(wait)).unwrap();
                let mut buffer = [0; 16];
                client.send(b"?").ok()?;
                let count = client.recv(&mut buffer).ok()?;
                Some(String::from_utf8_lossy(&buffer[..count]).into_owned())
            };
            // The same flow, going on all the time.
            assert_eq!(ask(SILENCE), None);
            call("portmap", "ADD", "abc", "pod", &first).ok();
            assert_eq!(ask(DEADLINE).as_deref(), Some("pod"));
            call("portmap", "ADD", "def", "other", &second).ok();
            assert_eq!(ask(DEADLINE).as_deref(), Some("other"));
            call("portmap", "DEL", "def", "other", &second).ok();
            assert_eq!(ask(SILENCE), None);
        },
    );
}

/// As the Go plugin's own run with the same entries, but for what it leaves behind at DEL.
#[test]
fn of_the_flows_that_were_there_only_those_of_the_port_are_forgotten() {
    with_a_bridge(
        "of_the_flows_that_were_there_only_those_of_the_port_are_forgotten",
        &["pod"],
        || {
            let udp = json!([{"hostPort": 8053, "containerPort": 53, "protocol": "udp"}]);
            let config = config(&pod("pod", 2), udp);
            let insert = |protocol: &str, port: u16, more: &str| {
                tool(&format!(
                    "conntrack -I -p {protocol} -s 192.0.2.9 -d 192.0.2.1 --sport 4000 --dport {port} -t 60 {more}"
                ));
            };
            let flows = || {
                let text = tool("conntrack -L -s 192.0.2.9");
                let mut flows: Vec<String> = text
                    .lines()
                    .map(|line| {
                        let port = line.split(' ').find_map(|word| word.strip_prefix("dport="));
                        format!("{} {}", line.split(' ').next().unwrap(), port.unwrap())
                    })
                    .collect();
                flows.sort();
                flows
            };
            insert("tcp", 8053, "--state ESTABLISHED");
            insert("udp", 8053, "");
            insert("udp", 8054, "");
            call("portmap", "ADD", "abc", "pod", &config).ok();
            assert_eq!(flows(), ["tcp 8053", "udp 8054"]);
            insert("udp", 8053, "");
            call("portmap", "DEL", "abc", "pod", &config).ok();
            assert_eq!(
                flows(),
                ["tcp 8053", "udp 8054"],
                "theirs keeps udp 8053 here"
            );
        },
    );
}
