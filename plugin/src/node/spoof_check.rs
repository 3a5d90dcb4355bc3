//! The rules against spoofing, written and deleted. What they are is in [`crate::spoof_check`].

use kernel::{Mac, nft};
use nix::errno::Errno;

use super::refused;
use crate::attachment::Attachment;
use crate::error::{Code, Error};
use crate::spoof_check::{ENTRY, FAMILY, Names, TABLE, stale_chains};

/// Drops what comes in by the node's end with another hardware address.
pub(super) fn check_spoofing(
    attachment: &Attachment,
    host_ifname: &str,
    mac: Mac,
) -> Result<(), Error> {
    let names = Names::checked(attachment)?;
    // What an ADD that was killed may have left would stand before the new rule.
    delete_spoof_check(attachment)?;
    let write = || {
        let mut socket = nft::Socket::open()?;
        socket.append(&names.table(mac), &[(ENTRY, names.entry(host_ifname))])
    };
    write().map_err(|error| refused(error).context("macspoofchk"))
}

/// Deletes the rules of an attachment, if it has any.
pub(crate) fn delete_spoof_check(attachment: &Attachment) -> Result<(), Error> {
    in_words(
        nft::Socket::open()
            .and_then(|mut socket| delete(&mut socket, &Names::of(attachment).chains)),
    )
}

/// Deletes the rules of a network's attachments that are none of these.
pub(crate) fn collect_spoof_checks(network: &str, valid: &[Attachment]) -> Result<(), Error> {
    let collect = || {
        let mut socket = nft::Socket::open()?;
        let rules = socket.foreign_rules(FAMILY, TABLE, None)?;
        for chains in stale_chains(&rules, network, valid) {
            delete(&mut socket, &chains)?;
        }
        Ok(())
    };
    in_words(collect())
}

/// Says so if the rules of an attachment are not all there.
pub(crate) fn find_spoof_check(attachment: &Attachment) -> Result<(), Error> {
    let read = || nft::Socket::open()?.foreign_rules(FAMILY, TABLE, None);
    let rules = read().map_err(|error| refused(error).context("macspoofchk"))?;
    match Names::of(attachment).are_all_in(&rules) {
        true => Ok(()),
        false => Err(Error::new(
            Code::CheckFailed,
            format!(
                "macspoofchk: rules of {attachment} are missing from nftables table bridge nat"
            ),
        )),
    }
}

fn delete(socket: &mut nft::Socket, chains: &[String; 2]) -> kernel::Result<()> {
    let [chain, mac_chain] = chains;
    // Both programs make and delete the two together.
    if !socket.has_chain(FAMILY, TABLE, chain)? {
        return Ok(());
    }
    let mut rules = socket.foreign_rules(FAMILY, TABLE, Some(ENTRY))?;
    rules.retain(|rule| rule.target.as_ref() == Some(chain));
    socket.delete_foreign(FAMILY, TABLE, &rules, &[chain, mac_chain])
}

fn in_words(done: kernel::Result<()>) -> Result<(), Error> {
    match done {
        // A kernel without nftables, or without its tables for bridges, has no such rules.
        Err(error)
            if matches!(
                error.errno(),
                Some(
                    Errno::EOPNOTSUPP
                        | Errno::EAFNOSUPPORT
                        | Errno::EPROTONOSUPPORT
                        | Errno::EINVAL
                )
            ) =>
        {
            Ok(())
        }
        done => done.map_err(|error| refused(error).context("delete rules of macspoofchk")),
    }
}
