//! What the tests of every runtime look at: who answers at a port, at which rates a node sends, what
//! its pods left.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use cni_test_harness::node::Node;
use cni_test_harness::observe::View;
use cni_test_harness::wait::{self, Look};
use serde_json::Value;

/// How long what does not wait for a node may take.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// What a shell in the test image runs to answer at port 80.
pub(crate) const SERVE: &str =
    "mkdir -p /tmp/www && echo from the pod > /tmp/www/answer && exec httpd -f -p 80 -h /tmp/www";

/// Whether what runs [`SERVE`] answers at an address, asked from a node.
pub(crate) fn answers(from: &Node, to: SocketAddr) -> Result<bool> {
    const DEADLINE: Duration = Duration::from_secs(2);
    from.netns().run(|| {
        let Ok(mut stream) = TcpStream::connect_timeout(&to, DEADLINE) else {
            return Ok(false);
        };
        stream.set_read_timeout(Some(DEADLINE))?;
        // An answer cut off, as by a server that is about to be there, is none.
        let mut answer = String::new();
        let asked = stream.write_all(b"GET /answer HTTP/1.0\r\n\r\n");
        let read = asked.and_then(|()| stream.read_to_string(&mut answer));
        Ok(read.is_ok() && answer.ends_with("from the pod\n"))
    })
}

/// The rates of the token buckets on a node, in bytes per second, in order.
pub(crate) fn rates(node: &Node) -> Result<Vec<u64>> {
    let said = node.exec("tc", &["-j", "qdisc"])?;
    let all: Vec<Value> = serde_json::from_slice(&said.stdout)?;
    let buckets = all.iter().filter(|qdisc| qdisc["kind"] == "tbf");
    let mut rates: Vec<u64> = buckets
        .filter_map(|qdisc| qdisc["options"]["rate"].as_u64())
        .collect();
    rates.sort_unstable();
    Ok(rates)
}

/// Waits until pods have left nothing on a node: no end of a veth, no reservation, no line of the
/// ruleset with one of `names`, which are their IDs and addresses.
pub(crate) fn wait_until_nothing_is_left(
    view: View<'_>,
    reservations_dir: &Path,
    names: &[String],
) -> Result<()> {
    wait::until("nothing is left", SOON, || {
        let left = leftovers(view, reservations_dir, names)?;
        Ok(match left.is_empty() {
            true => Look::Done(()),
            false => Look::NotYet(format!("left: {left:?}")),
        })
    })
}

fn leftovers(view: View<'_>, reservations_dir: &Path, names: &[String]) -> Result<Vec<String>> {
    let mut found = view.link_names()?;
    found.retain(|name| name.starts_with("veth"));
    found.extend(reservations(reservations_dir));
    let rules = view.nft_text()?;
    let naming = |line: &&str| names.iter().any(|name| line.contains(name));
    found.extend(rules.lines().filter(naming).map(|line| line.trim().into()));
    Ok(found)
}

/// The addresses that are reserved in a network's folder.
fn reservations(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names
        .filter(|name| name.parse::<IpAddr>().is_ok())
        .collect()
}
