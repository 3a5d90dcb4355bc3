//! Host ports under the name `portmap`, with traffic, on a node made by hand. The tables are
//! looked at with `nft`, flows with `conntrack`.

mod flows;
mod owners;
mod reach;
mod upkeep;

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use crate::node::{inside, tool};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(5);
/// How long an answer that must not come is waited for.
const SILENCE: Duration = Duration::from_millis(300);

fn tcp(host: u16, container: u16) -> Value {
    json!([{"hostPort": host, "containerPort": container, "protocol": "tcp"}])
}

fn config(previous: &Value, mappings: Value) -> Value {
    json!({"cniVersion": "1.0.0", "name": "cbr0", "type": "portmap", "prevResult": previous,
        "runtimeConfig": {"portMappings": mappings}})
}

fn with(mut config: Value, key: &str, value: Value) -> Value {
    config[key] = value;
    config
}

/// A server in a pod that answers each connection with its name and the client's address. It ends
/// with the test's process.
fn serve_tcp(pod: &str, port: u16) {
    let name = pod.to_owned();
    let listener = inside(pod, || TcpListener::bind(("::", port)).unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let peer = stream.peer_addr().map(|peer| peer.ip().to_canonical());
            let peer = peer.map(|ip| ip.to_string()).unwrap_or_default();
            let _ = stream.write_all(format!("{name} {peer}").as_bytes());
        }
    });
}

fn serve_udp(pod: &str, port: u16) {
    let name = pod.to_owned();
    let socket = inside(pod, || UdpSocket::bind(("0.0.0.0", port)).unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 16];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(name.as_bytes(), peer);
        }
    });
}

/// Who answers a connection from somewhere to somewhere: "name client's-address". None if nobody.
fn ask(from: &str, to: &str) -> Option<String> {
    let to: SocketAddr = to.parse().unwrap();
    inside(from, || {
        let stream = TcpStream::connect_timeout(&to, DEADLINE);
        let mut stream = match stream {
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => return None,
            stream => stream.unwrap_or_else(|error| panic!("connect to {to}: {error}")),
        };
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        Some(answer)
    })
}

fn names(pod: &str, client: &str) -> Option<String> {
    Some(format!("{pod} {client}"))
}

fn nft() -> String {
    tool("nft -n list ruleset")
}
