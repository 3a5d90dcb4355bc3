//! Bandwidth: how fast a pod may receive (ingress) and send (egress).
//!
//! ```text
//!             ingress: token bucket on what leaves the node's end
//!   network ──────────────────────────────────▶ veth ──▶ pod
//!           ◀── token bucket on an ifb ◀── detour ◀── veth ◀── pod   egress
//! ```
//!
//! The node's end of the pair goes with the pod. The ifb does not: its name is computed from the
//! container, as the Go plugin does, and its alias says whose it is, so that DEL and GC find it.

mod limits;

use kernel::link::{self, Link};
use kernel::tc::{self, TokenBucket};
use kernel::{Socket, ifb};

use crate::attachment::Attachment;
use crate::error::{Code, Error};
use crate::result::Interface;
use crate::sha512;
pub(crate) use limits::Limits;

/// The beginning of an ifb's alias; the attachment's names follow, as in a veth's. It is no longer
/// than a veth's, so that what fits there fits here.
const ALIAS: &str = "twifb:";
/// What an ifb's name begins with, and how many digits follow.
const PREFIX: &str = "bwp";
const DIGITS: usize = 12;

/// Limits an attachment. `host` is the node's end of its pair. Returns the ifb, if there is one:
/// it belongs into the result. Undone as a whole if any part fails.
pub(crate) fn add(
    socket: &mut Socket,
    limits: &Limits,
    attachment: &Attachment,
    host: &Link,
) -> Result<Option<Interface>, Error> {
    shape(socket, limits, attachment, host).inspect_err(|_| {
        let _ = del(socket, attachment);
        let _ = socket.apply(&[
            tc::delete_root(host.ifindex),
            tc::delete_ingress(host.ifindex),
        ]);
    })
}

fn shape(
    socket: &mut Socket,
    limits: &Limits,
    attachment: &Attachment,
    host: &Link,
) -> Result<Option<Interface>, Error> {
    let mut requests = vec![];
    if let Some(bucket) = &limits.ingress {
        requests.push(tc::replace_token_bucket(host.ifindex, bucket));
    }
    let Some(bucket) = &limits.egress else {
        return apply(socket, &requests).map(|()| None);
    };
    let (name, in_the_way) = free_name(socket, attachment)?;
    requests.extend(in_the_way.map(|old| link::delete_index(old.ifindex)));
    requests.extend(ifb::create(&name, host.mtu, &alias(attachment)));
    // A filter of an earlier ADD would lead nowhere.
    requests.push(tc::delete_ingress(host.ifindex));
    apply(socket, &requests)?;
    let made = link::by_name(socket, &name).map_err(refused)?;
    let made = made.ok_or_else(|| {
        Error::new(
            Code::Kernel,
            format!("bandwidth: device {name} vanished after it was made"),
        )
    })?;
    apply(
        socket,
        &[
            tc::replace_token_bucket(made.ifindex, bucket),
            tc::add_ingress(host.ifindex),
            tc::redirect_ingress(host.ifindex, made.ifindex),
        ],
    )?;
    Ok(Some(Interface {
        name,
        mac: made.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        ..Interface::default()
    }))
}

/// Says which limit does not hold any more.
pub(crate) fn check(
    socket: &mut Socket,
    limits: &Limits,
    attachment: &Attachment,
    host: &Link,
) -> Result<(), Error> {
    if let Some(bucket) = &limits.ingress {
        bucket_is(socket, host, bucket)?;
    }
    let Some(bucket) = &limits.egress else {
        return Ok(());
    };
    let Some(ifb) = find(socket, attachment)? else {
        return Err(failed(format!("{attachment} has no ifb device")));
    };
    bucket_is(socket, &ifb, bucket)?;
    let redirects = tc::redirects(socket, host.ifindex).map_err(refused)?;
    match redirects.contains(&ifb.ifindex) {
        true => Ok(()),
        false => Err(failed(format!(
            "what comes in by {} does not go through {}",
            host.name, ifb.name
        ))),
    }
}

fn bucket_is(socket: &mut Socket, device: &Link, wanted: &TokenBucket) -> Result<(), Error> {
    let found = tc::token_bucket(socket, device.ifindex).map_err(refused)?;
    match found {
        Some(found) if found == *wanted => Ok(()),
        Some(found) => Err(failed(format!(
            "the limit of {} is {found:?}, not {wanted:?}",
            device.name
        ))),
        None => Err(failed(format!("{} has no limit", device.name))),
    }
}

/// Takes away the attachment's ifb, or one that the Go plugin made for its container.
pub(crate) fn del(socket: &mut Socket, attachment: &Attachment) -> Result<(), Error> {
    match find(socket, attachment)? {
        Some(ifb) => apply(socket, &[link::delete_index(ifb.ifindex)]),
        None => Ok(()),
    }
}

/// Takes away what limits the node's end of a pair, which may outlive the limits.
pub(crate) fn release(socket: &mut Socket, host: &Link) -> Result<(), Error> {
    let requests = [
        tc::delete_root(host.ifindex),
        tc::delete_ingress(host.ifindex),
    ];
    apply(socket, &requests)
}

/// Takes away the ifbs of a network's attachments that are not to be kept.
pub(crate) fn gc(
    socket: &mut Socket,
    network: &str,
    keep: &dyn Fn(&str, &str) -> bool,
) -> Result<(), Error> {
    let stale: Vec<_> = link::dump(socket)
        .map_err(refused)?
        .into_iter()
        .filter(|link| {
            owner(link).is_some_and(|owner| {
                owner.network == network && !keep(&owner.container_id, &owner.ifname)
            })
        })
        .map(|link| link::delete_index(link.ifindex))
        .collect();
    apply(socket, &stale)
}

fn alias(attachment: &Attachment) -> String {
    let alias = attachment.alias();
    let names = alias.split_once(':').map_or("", |(_, names)| names);
    format!("{ALIAS}{names}")
}

fn owner(link: &Link) -> Option<Attachment> {
    let names = link.alias.as_deref()?.strip_prefix(ALIAS)?;
    match link.kind.as_str() {
        "ifb" => Attachment::from_alias(&format!("twill:{names}")),
        _ => None,
    }
}

/// The names that the attachment's ifb may have: the Go plugin's, and, for a container that has
/// two attachments to one network, another.
fn names(attachment: &Attachment) -> [String; 2] {
    let Attachment {
        network,
        container_id,
        ifname,
    } = attachment;
    let name = |texts: &[&str]| format!("{PREFIX}{}", &sha512::hex(texts)[..DIGITS]);
    [
        name(&[network, container_id]),
        name(&[network, container_id, ifname]),
    ]
}

fn is_anothers(link: &Link, attachment: &Attachment) -> bool {
    link.kind != "ifb" || owner(link).is_some_and(|owner| owner != *attachment)
}

fn find(socket: &mut Socket, attachment: &Attachment) -> Result<Option<Link>, Error> {
    for name in names(attachment) {
        let found = link::by_name(socket, &name).map_err(refused)?;
        if let Some(link) = found.filter(|link| !is_anothers(link, attachment)) {
            return Ok(Some(link));
        }
    }
    Ok(None)
}

/// A name for a new ifb, and an older one of the same owner that has it.
fn free_name(
    socket: &mut Socket,
    attachment: &Attachment,
) -> Result<(String, Option<Link>), Error> {
    let names = names(attachment);
    for name in &names {
        match link::by_name(socket, name).map_err(refused)? {
            Some(link) if is_anothers(&link, attachment) => {}
            found => return Ok((name.clone(), found)),
        }
    }
    Err(Error::new(
        Code::Conflict,
        format!(
            "bandwidth: devices {} and {} are somebody else's",
            names[0], names[1]
        ),
    ))
}

fn apply(socket: &mut Socket, requests: &[kernel::Request]) -> Result<(), Error> {
    match requests {
        [] => Ok(()),
        requests => socket.apply_all(requests).map_err(refused),
    }
}

fn refused(error: kernel::Error) -> Error {
    Error::new(Code::Kernel, format!("bandwidth: {error}"))
}

fn failed(msg: String) -> Error {
    Error::new(Code::CheckFailed, format!("bandwidth: {msg}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ifb_has_the_go_plugins_name() {
        let it = Attachment::new("cbr0", "abc", "eth0").unwrap();
        assert_eq!(names(&it)[0], "bwp64e75f641d11");
        assert_eq!(names(&it)[1].len(), 15);
        assert_eq!(alias(&it), "twifb:cbr0/abc/eth0");
    }
}
