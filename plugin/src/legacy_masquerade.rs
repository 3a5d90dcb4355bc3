//! The iptables chain that the Go chain masquerades a pod with, taken away when it is there.
//!
//! iptables' rules are nftables objects today, and are found and deleted as such. Only where the
//! kernel still has the older tables of iptables (`xtables`), and their `nat` is in use, is
//! `iptables` run: nothing else can change those.

use std::process::Command;

use kernel::nft::{self, Family};
use nix::errno::Errno;

use crate::attachment::Attachment;
use crate::error::{Code, Error};
use crate::sha512;

/// The longest name of a chain that iptables takes.
const CHAIN_BYTES: usize = 28;
/// The chain from which the Go chain jumps to one chain per container.
const ENTRY: &str = "POSTROUTING";

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
    for programs in crate::xtables::nat_in_use() {
        errors.extend(delete_by_program(&programs, &chain, attachment).err());
    }
    Error::join(errors)
}

fn delete_over_netlink(family: Family, chain: &str) -> kernel::Result<()> {
    let mut socket = nft::Socket::open()?;
    match socket.has_chain(family, "nat", chain) {
        Ok(true) => {}
        Ok(false) => return Ok(()),
        // A kernel without nftables.
        Err(error) if matches!(error.errno(), Some(Errno::EOPNOTSUPP | Errno::EINVAL)) => {
            return Ok(());
        }
        Err(error) => return Err(error),
    }
    let mut rules = socket.foreign_rules(family, "nat", Some(ENTRY))?;
    rules.retain(|rule| rule.target.as_deref() == Some(chain));
    socket.delete_foreign(family, "nat", &rules, &[chain])
}

fn chain(attachment: &Attachment) -> String {
    let hash = sha512::hex(&[&attachment.network, &attachment.container_id]);
    format!("CNI-{}", &hash[..CHAIN_BYTES - "CNI-".len()])
}

fn delete_by_program(programs: &[&str], chain: &str, attachment: &Attachment) -> Result<(), Error> {
    let Attachment {
        network,
        container_id,
        ..
    } = attachment;
    let comment = format!("name: \"{network}\" id: \"{container_id}\"");
    let failed = |op: &str, error: &dyn std::fmt::Display| {
        Error::new(Code::State, format!("{op} chain {chain}: {error}"))
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_installed =
        |program: &&&str| std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
    let Some(program) = programs.iter().find(is_installed) else {
        return Err(failed(
            "delete",
            &format!("none of {programs:?} is installed"),
        ));
    };
    let run = |words: &[&str]| {
        // Never without a bound: another program may hold the lock for long.
        let mut command = Command::new(program);
        let command = command.args(["-w", "5", "-t", "nat"]).args(words);
        command.output().map_err(|error| failed("delete", &error))
    };
    let listed = run(&["-S", ENTRY])?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    for rule in listed
        .lines()
        .filter(|rule| rule.ends_with(&format!("-j {chain}")))
    {
        let mut words = rule.split(' ').skip_while(|word| *word != "-s").skip(1);
        if let Some(source) = words.next() {
            let comment = ["-m", "comment", "--comment", &comment];
            let rule = [&["-D", ENTRY, "-s", source], &comment[..], &["-j", chain]];
            run(&rule.concat())?;
        }
    }
    for option in ["-F", "-X"] {
        // A chain that is not there is deleted.
        run(&[option, chain])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_is_named_as_the_go_plugin_names_it() {
        let attachment = Attachment::new("cbr0", "abc", "eth0").unwrap();
        assert_eq!(chain(&attachment), "CNI-64e75f641d11615844d681b7");
    }
}
