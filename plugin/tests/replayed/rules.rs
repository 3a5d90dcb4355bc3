//! The node's rules, in a form in which two listings can be compared: every chain with its rules in
//! their order, but the chains in an order of their own.

use std::process::Command;

use super::blot;

/// What `iptables-save` and `ip6tables-save` list.
pub(crate) fn of_iptables() -> String {
    listed(&["iptables-save"]) + &listed(&["ip6tables-save"])
}

/// What `nft` lists.
pub(crate) fn of_nft() -> String {
    listed(&["nft", "-s", "list", "ruleset"])
}

fn listed(command: &[&str]) -> String {
    let out = Command::new(command[0])
        .args(&command[1..])
        .output()
        .unwrap();
    assert!(out.status.success(), "{command:?}: {out:?}");
    String::from_utf8(out.stdout).unwrap()
}

/// The chains and the rules in a listing of either kind. Tables without chains, and the chains that
/// iptables' own tables always have, do nothing.
pub(crate) fn in_order(listing: &str) -> Vec<String> {
    let (mut found, mut table, mut chain) = (vec![], String::new(), String::new());
    for line in listing.lines().map(str::trim) {
        let words = || line.trim_end_matches('{').trim().to_owned();
        match line {
            "" | "}" | "COMMIT" => {}
            _ if line.starts_with('#') || line.starts_with("comment ") => {}
            _ if line.starts_with("table ") || line.starts_with('*') => table = words(),
            _ if line.starts_with("chain ") => {
                chain = words();
                found.push((table.clone(), chain.clone(), 0, String::new()));
            }
            _ if line.starts_with(':') && !line.contains(" - [") => {}
            _ => found.push((table.clone(), chain.clone(), found.len(), line.to_owned())),
        }
    }
    found.sort_by(|a, b| (&a.0, &a.1, a.2).cmp(&(&b.0, &b.1, b.2)));
    let texts = found
        .into_iter()
        .map(|(table, chain, _, line)| blot(format!("{table} {chain} {line}").trim()));
    texts.collect()
}
