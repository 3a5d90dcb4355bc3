//! What the Go plugin `portmap` made for a container, taken away when it is there.
//!
//! Its rules are found over netlink whichever backend made them: iptables' are nftables objects
//! today. Only where the kernel still has the older tables of iptables (`xtables`), and they are in
//! use, is `iptables` run: nothing else can change them.

use kernel::nft::{self, Family, ForeignRule};

use crate::attachment::Attachment;
use crate::error::{Code, Error};
use crate::sha512;

/// The table of the nftables backend.
const NFT_TABLE: &str = "cni_hostport";
/// The chain from which the iptables backend jumps to one chain per container.
const ENTRY: &str = "CNI-HOSTPORT-DNAT";
/// The longest name of a chain that iptables takes.
const CHAIN_BYTES: usize = 28;

/// Deletes the container's rules and chains of both backends.
pub(crate) fn delete(attachment: &Attachment) -> Result<(), Error> {
    let refused = |error: kernel::Error| Error::new(Code::Kernel, error.to_string());
    let mut socket = nft::Socket::open().map_err(refused)?;
    let mut errors = vec![];
    for family in [Family::Ipv4, Family::Ipv6] {
        match socket.tables(family) {
            Err(error) if crate::legacy_masquerade::is_without_nftables(&error) => continue,
            Err(error) => {
                errors.push(refused(error));
                continue;
            }
            // The usual case: another kind of node.
            Ok(tables) if tables.is_empty() => continue,
            Ok(_) => {}
        }
        errors.extend(
            by_comment(&mut socket, family, attachment)
                .map_err(refused)
                .err(),
        );
        errors.extend(
            by_chain(&mut socket, family, attachment)
                .map_err(refused)
                .err(),
        );
    }
    errors.extend(xtables(attachment).err());
    Error::join(errors)
}

/// The nftables backend marks each rule with the container ID, and that alone.
fn by_comment(
    socket: &mut nft::Socket,
    family: Family,
    attachment: &Attachment,
) -> kernel::Result<()> {
    let mut rules = socket.foreign_rules(family, NFT_TABLE, None)?;
    rules.retain(|rule| rule.comment == attachment.container_id);
    socket.delete_foreign(family, NFT_TABLE, &rules, &[])
}

/// The iptables backend has chains for the container: one is of versions before 0.8.
fn by_chain(
    socket: &mut nft::Socket,
    family: Family,
    attachment: &Attachment,
) -> kernel::Result<()> {
    for prefix in ["CNI-DN-", "CNI-SN-"] {
        let chain = chain(prefix, attachment);
        if !socket.has_chain(family, "nat", &chain)? {
            continue;
        }
        let leads_there = |rule: &ForeignRule| rule.target.as_deref() == Some(&*chain);
        let from = if prefix == "CNI-DN-" {
            Some(ENTRY)
        } else {
            None
        };
        let mut rules = socket.foreign_rules(family, "nat", from)?;
        rules.retain(leads_there);
        socket.delete_foreign(family, "nat", &rules, &[&chain])?;
    }
    Ok(())
}

fn chain(prefix: &str, attachment: &Attachment) -> String {
    let Attachment {
        network,
        container_id,
        ..
    } = attachment;
    let hash = sha512::hex(&[network, container_id]);
    format!("{prefix}{}", &hash[..CHAIN_BYTES - prefix.len()])
}

/// Where the older tables are in use, `iptables` deletes what is in them.
fn xtables(attachment: &Attachment) -> Result<(), Error> {
    let mut errors = vec![];
    for programs in crate::xtables::nat_in_use() {
        let chain = chain("CNI-DN-", attachment);
        errors.extend(crate::xtables::delete_chain(&programs, ENTRY, &chain).err());
    }
    Error::join(errors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_is_named_as_the_go_plugin_names_it() {
        let of = |id| Attachment::new("cbr0", id, "eth0").unwrap();
        assert_eq!(chain("CNI-DN-", &of("abc")), "CNI-DN-64e75f641d11615844d68");
        assert_eq!(chain("CNI-SN-", &of("abc")), "CNI-SN-64e75f641d11615844d68");
        assert_eq!(chain("CNI-DN-", &of("def")), "CNI-DN-56a6b8be880ae7b8cb301");
    }
}
