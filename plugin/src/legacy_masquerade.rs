//! Masquerading of one pod's traffic by the bridge plugin's iptables rules: a chain per container,
//! by a computable name, so that either program deletes what the other made.
//!
//! iptables' rules are nftables objects today, and are found and deleted as such. `iptables` itself
//! is run only where nothing else can do it: to make such rules, which a config must ask for or a
//! kernel without nftables needs; and where the kernel still has the older tables of iptables
//! (`xtables`), and their `nat` is in use.

use ipnet::IpNet;
use kernel::nft::{self, Family};
use nix::errno::Errno;

use crate::attachment::Attachment;
use crate::error::{Code, Error};
use crate::{sha512, xtables};

/// The longest name of a chain that iptables takes.
const CHAIN_BYTES: usize = 28;
/// The chain from which the Go chain jumps to one chain per container.
const ENTRY: &str = "POSTROUTING";
/// How the names of these chains begin.
const PREFIX: &str = "CNI-";

/// Masquerades what the pod sends out of its subnets. What an ADD that was killed left is replaced.
pub(crate) fn add(attachment: &Attachment, addresses: &[IpNet]) -> Result<(), Error> {
    delete(attachment)?;
    for (v6, program) in [(false, "iptables-restore"), (true, "ip6tables-restore")] {
        let of_family = addresses.iter().filter(|net| net.addr().is_ipv6() == v6);
        let of_family: Vec<IpNet> = of_family.copied().collect();
        if !of_family.is_empty() {
            let made = xtables::restore(program, &rules(attachment, &of_family, v6));
            made.map_err(|error| error.context("masquerade"))?;
        }
    }
    Ok(())
}

/// What `iptables-restore` is given.
fn rules(attachment: &Attachment, addresses: &[IpNet], v6: bool) -> String {
    let chain = chain(attachment);
    let comment = format!("-m comment --comment {:?}", comment(attachment));
    let multicast = if v6 { "ff00::/8" } else { "224.0.0.0/4" };
    let mut text = format!("*nat\n:{chain} - [0:0]\n");
    for net in addresses {
        let subnet = net.trunc();
        text += &format!("-A {chain} -d {subnet} {comment} -j ACCEPT\n");
    }
    text += &format!("-A {chain} ! -d {multicast} {comment} -j MASQUERADE\n");
    for net in addresses {
        let ip = net.addr();
        text += &format!("-A {ENTRY} -s {ip} {comment} -j {chain}\n");
    }
    text + "COMMIT\n"
}

/// Deletes the container's chain in both families.
pub(crate) fn delete(attachment: &Attachment) -> Result<(), Error> {
    let chain = chain(attachment);
    let mut errors = vec![];
    for family in [Family::Ipv4, Family::Ipv6] {
        let done = delete_over_netlink(family, &chain);
        errors.extend(
            done.map_err(|error| Error::new(Code::Kernel, error.to_string()))
                .err(),
        );
    }
    for programs in xtables::nat_in_use() {
        errors.extend(xtables::delete_chain(&programs, ENTRY, &chain).err());
    }
    Error::join(errors)
}

/// Deletes the chains of a network's containers that are not to be kept. Their names do not say
/// whose they are; the comments of their rules do, which only iptables' programs can read.
pub(crate) fn gc(network: &str, keep: &dyn Fn(&str) -> bool) -> Result<(), Error> {
    let mut errors = vec![];
    let mut listings: Vec<[&str; 2]> = xtables::nat_in_use().collect();
    for (family, programs) in [
        (Family::Ipv4, ["iptables-nft", "iptables"]),
        (Family::Ipv6, ["ip6tables-nft", "ip6tables"]),
    ] {
        match has_chains(family) {
            Ok(true) => listings.push(programs),
            Ok(false) => {}
            Err(error) => errors.push(Error::new(Code::Kernel, error.to_string())),
        }
    }
    for programs in listings {
        match xtables::rules(&programs, ENTRY) {
            Ok(rules) => {
                let stale = rules
                    .iter()
                    .filter_map(|rule| stale_owner(rule, network, keep));
                errors.extend(stale.filter_map(|owner| delete(&owner).err()));
            }
            Err(error) => errors.push(error),
        }
    }
    Error::join(errors)
}

/// Whose rule it is, if it is one of the network's that is not to be kept.
fn stale_owner(rule: &[String], network: &str, keep: &dyn Fn(&str) -> bool) -> Option<Attachment> {
    let target = xtables::option(rule, "-j")?;
    let words = xtables::option(rule, "--comment")?;
    let id = words
        .strip_prefix(&format!("name: \"{network}\" id: \""))?
        .strip_suffix('"')?;
    let owner = Attachment {
        network: network.to_owned(),
        container_id: id.to_owned(),
        ifname: String::new(),
    };
    (target == chain(&owner) && !keep(id)).then_some(owner)
}

/// Whether there are chains of containers, somebody's.
fn has_chains(family: Family) -> kernel::Result<bool> {
    let is_one = |target: &str| {
        let digits = target.strip_prefix(PREFIX);
        target.len() == CHAIN_BYTES
            && digits.is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    let found = nft::Socket::open()?.foreign_rules(family, "nat", Some(ENTRY));
    match found {
        Ok(rules) => Ok(rules
            .iter()
            .filter_map(|rule| rule.target.as_deref())
            .any(is_one)),
        Err(error) if is_without_nftables(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn delete_over_netlink(family: Family, chain: &str) -> kernel::Result<()> {
    let mut socket = nft::Socket::open()?;
    match socket.has_chain(family, "nat", chain) {
        Ok(true) => {}
        Ok(false) => return Ok(()),
        Err(error) if is_without_nftables(&error) => return Ok(()),
        Err(error) => return Err(error),
    }
    let mut rules = socket.foreign_rules(family, "nat", Some(ENTRY))?;
    rules.retain(|rule| rule.target.as_deref() == Some(chain));
    socket.delete_foreign(family, "nat", &rules, &[chain])
}

/// Whether an answer means that the kernel has no nftables.
pub(crate) fn is_without_nftables(error: &kernel::Error) -> bool {
    let signs = [Errno::EINVAL, Errno::EOPNOTSUPP, Errno::EPROTONOSUPPORT];
    error.errno().is_some_and(|errno| signs.contains(&errno))
}

fn chain(attachment: &Attachment) -> String {
    let hash = sha512::hex(&[&attachment.network, &attachment.container_id]);
    format!("{PREFIX}{}", &hash[..CHAIN_BYTES - PREFIX.len()])
}

fn comment(attachment: &Attachment) -> String {
    let Attachment {
        network,
        container_id,
        ..
    } = attachment;
    format!("name: \"{network}\" id: \"{container_id}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment(id: &str) -> Attachment {
        Attachment::new("cbr0", id, "eth0").unwrap()
    }

    #[test]
    fn the_chain_is_named_as_the_go_plugin_names_it() {
        assert_eq!(chain(&attachment("abc")), "CNI-64e75f641d11615844d681b7");
    }

    #[test]
    fn the_subnet_is_spared_and_so_is_multicast() {
        let text = rules(&attachment("abc"), &["10.1.2.7/24".parse().unwrap()], false);
        let comment = r#"-m comment --comment "name: \"cbr0\" id: \"abc\"""#;
        let chain = "CNI-64e75f641d11615844d681b7";
        assert_eq!(
            text,
            format!(
                "*nat\n:{chain} - [0:0]\n-A {chain} -d 10.1.2.0/24 {comment} -j ACCEPT\n\
                 -A {chain} ! -d 224.0.0.0/4 {comment} -j MASQUERADE\n\
                 -A POSTROUTING -s 10.1.2.7 {comment} -j {chain}\nCOMMIT\n"
            )
        );
    }

    #[test]
    fn a_rule_is_stale_whose_comment_and_chain_name_a_container_that_is_gone() {
        let rule = |comment: &str, chain: &str| {
            let words = ["-A", "POSTROUTING", "--comment", comment, "-j", chain];
            words.map(str::to_owned)
        };
        let stale = |network: &str, rule: &[String]| {
            stale_owner(rule, network, &|id| id == "kept").map(|owner| owner.container_id)
        };
        let (gone, kept) = (chain(&attachment("abc")), chain(&attachment("kept")));
        let words = |id: &str| format!("name: \"cbr0\" id: \"{id}\"");
        assert_eq!(
            stale("cbr0", &rule(&words("abc"), &gone)).as_deref(),
            Some("abc")
        );
        assert_eq!(stale("cbr0", &rule(&words("kept"), &kept)), None);
        assert_eq!(stale("other", &rule(&words("abc"), &gone)), None);
        assert_eq!(stale("cbr0", &rule(&words("abc"), "CNI-somebody")), None);
    }
}
