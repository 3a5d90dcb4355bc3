//! What a person sees of the cluster: leases, tables, pings, and how to go on.

use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{DIR, ping_all, short};
use crate::cluster::{Cluster, Member};
use crate::observe::{Family, Ping};
use crate::pod::Pod;
use crate::progress::Progress;

/// Shows everything; an error says which pings failed.
pub(super) fn everything(cluster: &Cluster, pods: &[Pod], progress: &Progress) -> Result<()> {
    progress.heading(&format!(
        "Leases ({})",
        cluster.store_dir().join("subnets").display()
    ));
    table(&leases(cluster)?)
        .iter()
        .for_each(|line| progress.line(line));
    for member in cluster.members() {
        progress.heading(short(member.node().name()));
        for line in tables_of(member)? {
            progress.line(&line);
        }
    }
    progress.heading("Pings from pod (row) to pod (column), ms");
    let pings = ping_all(pods)?;
    table(&matrix(pods, &pings)?)
        .iter()
        .for_each(|line| progress.line(line));
    let verdict = verdict(pods, &pings);
    match &verdict {
        Ok(line) => progress.line(&format!("\n{line}")),
        Err(error) => progress.line(&format!("\n{error}")),
    }
    verdict.map(drop)
}

/// The leases in the store, with the node whose public IP each names.
fn leases(cluster: &Cluster) -> Result<Vec<Vec<String>>> {
    let dir = cluster.store_dir().join("subnets");
    let mut rows = Vec::new();
    let entries = std::fs::read_dir(&dir).with_context(|| format!("read {}", dir.display()))?;
    for entry in entries {
        rows.push(lease(cluster, &entry?.path())?);
    }
    rows.sort();
    rows.insert(
        0,
        ["node", "public IP", "subnet", "VTEP MAC", "expires in"]
            .map(String::from)
            .into(),
    );
    Ok(rows)
}

fn lease(cluster: &Cluster, path: &Path) -> Result<Vec<String>> {
    let text = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let lease: Value =
        serde_json::from_slice(&text).with_context(|| format!("parse {}", path.display()))?;
    let public_ip = lease["PublicIP"].as_str().unwrap_or("-").to_owned();
    let holder = cluster
        .members()
        .iter()
        .find(|m| m.place().v4.addr().to_string() == public_ip);
    let node = holder
        .map_or("-", |member| short(member.node().name()))
        .to_owned();
    let subnet = path
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .replace('-', "/");
    let mac = lease["BackendData"]["VtepMAC"]
        .as_str()
        .unwrap_or("-")
        .to_owned();
    // The file's time is the instant at which the lease expires.
    let expires = path.metadata()?.modified()?;
    let left = expires
        .duration_since(SystemTime::now())
        .map_or("expired".to_owned(), hours);
    Ok(vec![node, public_ip, subnet, mac, left])
}

fn hours(left: Duration) -> String {
    let minutes = (left.as_secs() + 30) / 60;
    format!("{} h {:02} min", minutes / 60, minutes % 60)
}

/// What twilld and twill made on one node, as `ip` and `bridge` print it.
fn tables_of(member: &Member) -> Result<Vec<String>> {
    let env = member.subnet_env()?;
    let subnet = env.get("FLANNEL_SUBNET").context("no FLANNEL_SUBNET")?;
    let mut lines = vec![format!("underlay {}, pods {subnet}", member.place().v4)];
    let mut show = |program: &str, args: &[&str]| -> Result<()> {
        lines.push(format!("  $ {program} {}", args.join(" ")));
        let output = member.node().exec(program, args)?;
        lines.extend(
            output
                .stdout_text()
                .lines()
                .map(|line| format!("    {}", line.trim_end())),
        );
        Ok(())
    };
    show("ip", &["route"])?;
    for device in overlay_devices(member)? {
        show("ip", &["neigh", "show", "dev", &device])?;
        show("bridge", &["fdb", "show", "dev", &device])?;
    }
    Ok(lines)
}

/// The devices through which the other nodes' pods are reached.
fn overlay_devices(member: &Member) -> Result<Vec<String>> {
    let names = member.view().link_names()?;
    Ok(names
        .into_iter()
        .filter(|name| name.starts_with("flannel"))
        .collect())
}

fn label(pod: &Pod) -> String {
    short(pod.netns().name()).to_owned()
}

fn matrix(pods: &[Pod], pings: &[Vec<Ping>]) -> Result<Vec<Vec<String>>> {
    let mut heading = vec![String::new(), String::new()];
    heading.extend(pods.iter().map(label));
    let mut rows = vec![heading];
    for (pod, row) in pods.iter().zip(pings) {
        let mut cells = vec![label(pod), pod.ip()?.to_string()];
        let cell = |ping: &Ping| match (ping.complete(), ping.min_ms) {
            (true, Some(ms)) => format!("{ms:.3}"),
            _ => "LOST".to_owned(),
        };
        cells.extend(row.iter().map(cell));
        rows.push(cells);
    }
    Ok(rows)
}

fn verdict(pods: &[Pod], pings: &[Vec<Ping>]) -> Result<String> {
    let mut failed = Vec::new();
    for (from, row) in pods.iter().zip(pings) {
        let lost = pods.iter().zip(row).filter(|(_, ping)| !ping.complete());
        failed.extend(lost.map(|(to, _)| format!("{} → {}", label(from), label(to))));
    }
    let all = pods.len() * pods.len();
    let lost = failed.len();
    ensure!(
        lost == 0,
        "{lost} of {all} pings failed: {}",
        failed.join(", ")
    );
    Ok(format!(
        "All {all} pings answered: every pod reaches every pod."
    ))
}

/// Columns of equal width, two spaces apart.
pub(super) fn table(rows: &[Vec<String>]) -> Vec<String> {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or_default()
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        format!("  {}", cells.collect::<Vec<_>>().join("  "))
            .trim_end()
            .to_owned()
    };
    rows.iter().map(line).collect()
}

/// Commands that work while the demo stands, with what each shows.
pub(super) fn look_around(cluster: &Cluster, pods: &[Pod]) -> Result<Vec<String>> {
    let first = cluster.members().first().context("a demo has a node")?;
    let (node, here) = (
        first.node().name(),
        pods.first().context("a demo has a pod")?,
    );
    let there = pods.last().context("a demo has a pod")?;
    let mut commands = vec![
        (
            format!("ip netns exec {node} ip route"),
            "node 1's routes".to_owned(),
        ),
        (
            format!("ip netns exec {node} ip -d link"),
            "its links".to_owned(),
        ),
    ];
    for device in overlay_devices(first)? {
        commands.push((
            format!("ip netns exec {node} ip neigh show dev {device}"),
            "which MAC each other node's subnet is behind".to_owned(),
        ));
        commands.push((
            format!("ip netns exec {node} bridge fdb show dev {device}"),
            "which underlay address each MAC is behind".to_owned(),
        ));
    }
    if first
        .view()
        .routes(Family::V4)?
        .iter()
        .any(|route| route.dev == "cni0")
    {
        commands.push((
            format!("ip netns exec {node} bridge link"),
            "the pods' ports on the bridge".to_owned(),
        ));
    }
    commands.extend([
        (
            format!("ip netns exec {node} nft list ruleset"),
            "masquerading".to_owned(),
        ),
        (
            format!(
                "ip netns exec {} ping -c 3 {}",
                here.netns().name(),
                there.ip()?
            ),
            format!("{} pings {}", label(here), label(there)),
        ),
        (
            format!("ls -l {}", cluster.store_dir().join("subnets").display()),
            "the leases".to_owned(),
        ),
        (
            format!("cat {}", first.subnet_file()?.display()),
            "what twilld tells twill".to_owned(),
        ),
        (
            format!("tail {DIR}/node1/log/twilld.log"),
            "what twilld says".to_owned(),
        ),
        ("./dev demo --down".to_owned(), "take it down".to_owned()),
    ]);
    let width = commands
        .iter()
        .map(|(command, _)| command.len())
        .max()
        .unwrap_or_default();
    let line = |(command, what): &(String, String)| format!("  {command:<width$}  # {what}");
    Ok(commands.iter().map(line).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [
            vec!["a".to_owned(), "long".to_owned()],
            vec!["long".to_owned(), "b".to_owned()],
        ];
        assert_eq!(table(&rows), ["  a     long", "  long  b"]);
    }

    #[test]
    fn what_is_left_is_said_in_hours_and_minutes() {
        assert_eq!(hours(Duration::from_secs(86_399)), "24 h 00 min");
        assert_eq!(hours(Duration::from_secs(61)), "0 h 01 min");
    }
}
