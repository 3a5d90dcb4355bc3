//! What a namespace's network looks like to other people's tools: `ip -j`, `bridge -j`, `nft -j`
//! and ping.
//!
//! Our own decoders are what is tested, so nothing of them is used here. Every look is a fresh
//! dump; the accessors only pick fields out of it.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::netns::Netns;
use crate::process;

/// A namespace to look into.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    netns: &'a Netns,
}

/// An IP family, as `ip -4` and `ip -6` name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    fn flag(self) -> &'static str {
        match self {
            Self::V4 => "-4",
            Self::V6 => "-6",
        }
    }
}

/// A route; absent fields are empty.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// `default` or a CIDR, as `ip` prints it (a host route without its prefix length).
    pub dst: String,
    /// The gateway.
    pub via: String,
    /// The interface.
    pub dev: String,
    /// `boot`, `kernel`, `static`, or a number.
    pub protocol: String,
    /// The metric; 0 when none is printed.
    pub metric: u64,
    /// Such as `onlink`.
    pub flags: Vec<String>,
}

/// An entry of a neighbour table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbour {
    /// The neighbour's address.
    pub ip: String,
    /// Its MAC; empty when unresolved.
    pub mac: String,
    /// Such as `PERMANENT` or `STALE`.
    pub state: String,
}

/// An entry of a forwarding database that names a remote endpoint.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct FdbEntry {
    /// The MAC.
    pub mac: String,
    /// The remote underlay address; empty when there is none.
    pub dst: String,
    /// Such as `permanent`; empty for a learned one.
    pub state: String,
    /// Such as `self`.
    pub flags: Vec<String>,
}

/// What ping saw.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ping {
    /// Echo requests sent.
    pub sent: u32,
    /// Echo replies received.
    pub received: u32,
    /// The shortest round trip in milliseconds; none without a reply.
    pub min_ms: Option<f64>,
    /// The mean round trip in milliseconds; none without a reply.
    pub avg_ms: Option<f64>,
}

impl Ping {
    /// Whether every request was answered.
    pub fn complete(&self) -> bool {
        self.sent > 0 && self.sent == self.received
    }
}

impl<'a> View<'a> {
    /// A look into `netns`.
    pub fn of(netns: &'a Netns) -> Self {
        Self { netns }
    }

    fn json(&self, program: &str, args: &[&str]) -> Result<Vec<Value>> {
        let output = self.netns.exec(program, args)?;
        // An empty dump is no output at all for some commands of some versions.
        if output.stdout.iter().all(u8::is_ascii_whitespace) {
            return Ok(Vec::new());
        }
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("read the output of `{program} {}`", args.join(" ")))
    }

    /// `ip -j -d link`
    pub fn links(&self) -> Result<Vec<Value>> {
        self.json("ip", &["-j", "-d", "link"])
    }

    /// `ip -j -d addr`
    pub fn addresses(&self) -> Result<Vec<Value>> {
        self.json("ip", &["-j", "-d", "addr"])
    }

    /// `ip -j -d route show table main`
    pub fn route_dump(&self, family: Family) -> Result<Vec<Value>> {
        self.json(
            "ip",
            &["-j", "-d", family.flag(), "route", "show", "table", "main"],
        )
    }

    /// `ip -j -d neigh show dev DEV`, permanent and unused ones too.
    pub fn neighbour_dump(&self, dev: &str) -> Result<Vec<Value>> {
        self.json(
            "ip",
            &["-j", "-d", "neigh", "show", "nud", "all", "dev", dev],
        )
    }

    /// `bridge -j fdb show dev DEV`
    pub fn fdb_dump(&self, dev: &str) -> Result<Vec<Value>> {
        self.json("bridge", &["-j", "fdb", "show", "dev", dev])
    }

    /// `nft -j list ruleset`: the objects inside `nftables`.
    pub fn nft(&self) -> Result<Vec<Value>> {
        let output = self.netns.exec("nft", &["-j", "list", "ruleset"])?;
        let text = output.stdout;
        let mut all: Value = serde_json::from_slice(&text).context("read `nft -j list ruleset`")?;
        match all["nftables"].take() {
            Value::Array(objects) => Ok(objects),
            other => bail!("`nft -j list ruleset` has no list `nftables`: {other}"),
        }
    }

    /// `nft list ruleset`, as text.
    pub fn nft_text(&self) -> Result<String> {
        Ok(self.netns.exec("nft", &["list", "ruleset"])?.stdout_text())
    }

    /// One link by name.
    pub fn link(&self, ifname: &str) -> Result<Option<Value>> {
        Ok(self
            .links()?
            .into_iter()
            .find(|link| link["ifname"] == ifname))
    }

    /// The names of all links but the loopback, in the order of their numbers.
    pub fn link_names(&self) -> Result<Vec<String>> {
        let names = self
            .links()?
            .iter()
            .map(|link| text(link, "ifname"))
            .collect::<Vec<_>>();
        Ok(names.into_iter().filter(|name| name != "lo").collect())
    }

    /// A link's MAC address.
    pub fn mac(&self, ifname: &str) -> Result<String> {
        Ok(text(&self.existing(ifname)?, "address"))
    }

    /// A link's MTU in bytes.
    pub fn mtu(&self, ifname: &str) -> Result<u64> {
        self.existing(ifname)?["mtu"]
            .as_u64()
            .context("a link without mtu")
    }

    fn existing(&self, ifname: &str) -> Result<Value> {
        let found = self.link(ifname)?;
        found.with_context(|| format!("no link {ifname} in namespace {}", self.netns.name()))
    }

    /// The addresses of a link with their prefix lengths, link-local ones left out; empty when
    /// there is no such link.
    pub fn addresses_of(&self, ifname: &str) -> Result<Vec<String>> {
        let all = self.addresses()?;
        let link = all.iter().find(|link| link["ifname"] == ifname);
        let infos = link
            .and_then(|link| link["addr_info"].as_array())
            .into_iter()
            .flatten();
        Ok(infos
            .filter(|info| info["scope"] != "link")
            .map(|info| format!("{}/{}", text(info, "local"), info["prefixlen"]))
            .collect())
    }

    /// The main table's routes, sorted; IPv6 link-local and multicast ones left out.
    pub fn routes(&self, family: Family) -> Result<Vec<Route>> {
        let mut routes: Vec<Route> = self.route_dump(family)?.iter().map(route).collect();
        routes.retain(|route| !route.dst.starts_with("fe80:") && !route.dst.starts_with("ff00:"));
        routes.sort();
        Ok(routes)
    }

    /// The neighbours on a device, sorted; multicast and loopback ones left out.
    pub fn neighbours(&self, dev: &str) -> Result<Vec<Neighbour>> {
        let mut all: Vec<Neighbour> = self.neighbour_dump(dev)?.iter().map(neighbour).collect();
        all.retain(|entry| entry.state != "NOARP");
        all.sort();
        Ok(all)
    }

    /// The forwarding entries of a device, sorted.
    pub fn fdb(&self, dev: &str) -> Result<Vec<FdbEntry>> {
        let mut all: Vec<FdbEntry> = self.fdb_dump(dev)?.iter().map(fdb_entry).collect();
        all.sort();
        Ok(all)
    }

    /// `ping -c COUNT DST` from inside, 10 ms apart, each reply waited for at most `wait`. No reply
    /// is no error.
    pub fn ping(&self, dst: IpAddr, count: u32, wait: Duration) -> Result<Ping> {
        let (count_arg, wait_arg) = (count.to_string(), format!("{:.1}", wait.as_secs_f64()));
        let dst_arg = dst.to_string();
        let args = [
            "-n", "-i", "0.01", "-c", &count_arg, "-W", &wait_arg, &dst_arg,
        ];
        let deadline = wait * (count + 1) + Duration::from_secs(5);
        let output = process::run(self.netns.command("ping")?.args(args), b"", deadline)?;
        let said = output.stdout_text();
        parse_ping(&said).with_context(|| {
            format!(
                "ping {dst}: exit {}: {said}{}",
                output.code(),
                output.stderr_text()
            )
        })
    }
}

fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_default().to_owned()
}

fn list(value: &Value, key: &str) -> Vec<String> {
    let items = value[key].as_array().into_iter().flatten();
    items.filter_map(Value::as_str).map(str::to_owned).collect()
}

fn route(value: &Value) -> Route {
    Route {
        dst: text(value, "dst"),
        via: text(value, "gateway"),
        dev: text(value, "dev"),
        protocol: text(value, "protocol"),
        metric: value["metric"].as_u64().unwrap_or_default(),
        flags: list(value, "flags"),
    }
}

fn neighbour(value: &Value) -> Neighbour {
    let state = list(value, "state").join(",");
    Neighbour {
        ip: text(value, "dst"),
        mac: text(value, "lladdr"),
        state,
    }
}

fn fdb_entry(value: &Value) -> FdbEntry {
    FdbEntry {
        mac: text(value, "mac"),
        dst: text(value, "dst"),
        state: text(value, "state"),
        flags: list(value, "flags"),
    }
}

/// Reads the two lines of summary at the end of ping's output.
fn parse_ping(said: &str) -> Option<Ping> {
    let counts = said
        .lines()
        .find(|line| line.contains("packets transmitted"))?;
    let numbers: Vec<u32> = counts
        .split(", ")
        .filter_map(|part| part.split(' ').next()?.parse().ok())
        .collect();
    let (sent, received) = (*numbers.first()?, *numbers.get(1)?);
    // rtt min/avg/max/mdev = 0.047/0.047/0.047/0.000 ms
    let times = said
        .lines()
        .find(|line| line.starts_with("rtt "))
        .and_then(|line| {
            let values = line.split(" = ").nth(1)?.split(' ').next()?;
            let mut values = values.split('/').map(|value| value.parse::<f64>().ok());
            Some((values.next()??, values.next()??))
        });
    let (min_ms, avg_ms) = times.unzip();
    Some(Ping {
        sent,
        received,
        min_ms,
        avg_ms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pings_summary_is_read_with_and_without_replies() {
        let answered = "--- 10.1.1.1 ping statistics ---\n\
            3 packets transmitted, 3 received, 0% packet loss, time 20ms\n\
            rtt min/avg/max/mdev = 0.047/0.052/0.061/0.006 ms\n";
        let ping = parse_ping(answered).unwrap();
        assert_eq!(
            (ping.complete(), ping.min_ms, ping.avg_ms),
            (true, Some(0.047), Some(0.052))
        );
        let lost = "2 packets transmitted, 0 received, +2 errors, 100% packet loss, time 11ms\n";
        let ping = parse_ping(lost).unwrap();
        assert_eq!((ping.sent, ping.received, ping.min_ms), (2, 0, None));
    }
}
