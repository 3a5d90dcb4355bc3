//! What the Go plugin `portmap` made for a container, taken away when it is there.
//!
//! Its rules are found over netlink whichever backend made them: iptables' are nftables objects
//! today. Only where the kernel still has the older tables of iptables (`xtables`), and they are in
//! use, is `iptables` run: nothing else can change them.

use std::process::Command;

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
            Err(error) if super::is_without_nftables(&error) => continue,
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
        let done = delete_by_program(&programs, &chain("CNI-DN-", attachment));
        errors.extend(done.err());
    }
    Error::join(errors)
}

fn delete_by_program(programs: &[&str], chain: &str) -> Result<(), Error> {
    let Some(program) = programs.iter().find(|program| is_installed(program)) else {
        let msg = format!("delete chain {chain}: none of {programs:?} is installed");
        return Err(Error::new(Code::State, msg));
    };
    let run = |words: &[&str]| {
        // Never without a bound: another program may hold the lock for long.
        Command::new(program)
            .args(["-w", "5", "-t", "nat"])
            .args(words)
            .output()
            .map_err(|error| Error::new(Code::State, format!("run {program}: {error}")))
    };
    let entry = run(&["-S", ENTRY])?;
    for rule in String::from_utf8_lossy(&entry.stdout).lines() {
        let words = unquote(rule);
        let ours = words.windows(2).any(|w| w[0] == "-j" && w[1] == chain);
        if let (true, Some(("-A", rest))) = (ours, split(&words)) {
            let mut delete = vec!["-D"];
            delete.extend(rest);
            run(&delete)?;
        }
    }
    for option in ["-F", "-X"] {
        // A chain that is not there is deleted.
        run(&[option, chain])?;
    }
    Ok(())
}

fn split(words: &[String]) -> Option<(&str, Vec<&str>)> {
    let (first, rest) = words.split_first()?;
    Some((first, rest.iter().map(String::as_str).collect()))
}

/// A line of `iptables -S` in its words: quoted ones may have blanks and escaped quotes in them.
fn unquote(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (vec![], None::<String>, false);
    let mut letters = line.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => word.get_or_insert_default().extend(letters.next()),
            '"' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            ' ' if !quoted => words.extend(word.take()),
            letter => word.get_or_insert_default().push(letter),
        }
    }
    words.extend(word);
    words
}

fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
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

    #[test]
    fn a_listed_rule_is_read_in_its_words() {
        assert_eq!(
            unquote(r#"-A X --comment "dnat name: \"cbr0\" id: \"abc\"" -j Y"#),
            [
                "-A",
                "X",
                "--comment",
                r#"dnat name: "cbr0" id: "abc""#,
                "-j",
                "Y"
            ]
        );
        assert_eq!(unquote("  -N   X  "), ["-N", "X"]);
    }
}
