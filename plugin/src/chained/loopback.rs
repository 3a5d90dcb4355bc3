//! The program under the name `loopback`: brings a sandbox's `lo` up, whatever CNI_IFNAME says.

use std::net::IpAddr;

use kernel::link::{self, Link};
use kernel::{Mac, Socket, address};

use super::previous::Previous;
use super::{Call, Gone, refused};
use crate::address::Cidr;
use crate::error::{Code, Error};
use crate::result::{AddResult, Interface, IpConfig};

const LO: &str = "lo";

pub(super) fn add(call: &Call<'_>) -> Result<String, Error> {
    let previous = Previous::of(call.header, call.version)?;
    let mut socket = call.socket_inside()?;
    let lo = lo(&mut socket)?;
    let up = link::change_index(lo.ifindex).up().request();
    socket.apply_all(&[up]).map_err(refused)?;
    if let Some(previous) = previous {
        return previous.render();
    }
    let mut ips = vec![];
    for found in address::dump(&mut socket, Some(lo.ifindex)).map_err(refused)? {
        if !found.net.addr().is_loopback() {
            return Err(Error::new(
                Code::Conflict,
                format!("loopback interface has non-loopback address {}", found.net),
            ));
        }
        ips.push(IpConfig {
            interface: Some(0),
            address: Some(Cidr(found.net)),
            ..IpConfig::default()
        });
    }
    ips.sort_by_key(|ip| {
        ip.address
            .map(|address| address.0.addr())
            .is_some_and(|ip: IpAddr| ip.is_ipv6())
    });
    let result = AddResult {
        interfaces: vec![Interface {
            name: LO.to_owned(),
            mac: lo.mac.unwrap_or(Mac([0; 6])).to_string(),
            sandbox: call.request.netns.clone(),
        }],
        ips,
        ..AddResult::default()
    };
    result.render(call.version)
}

pub(super) fn check(call: &Call<'_>) -> Result<(), Error> {
    match lo(&mut call.socket_inside()?)?.up {
        true => Ok(()),
        false => Err(Error::new(Code::CheckFailed, "loopback interface is down")),
    }
}

pub(super) fn del(gone: &Gone<'_>) -> Result<(), Error> {
    let Some((sandbox, home)) = gone.sandbox()? else {
        return Ok(());
    };
    let opened = sandbox.enter(&home, Socket::open);
    let mut socket = opened.map_err(refused)?.map_err(refused)?;
    let down = link::change(LO).down().request();
    socket.apply_all(&[down]).map_err(refused)
}

fn lo(socket: &mut Socket) -> Result<Link, Error> {
    let found = link::by_name(socket, LO).map_err(refused)?;
    found.ok_or_else(|| Error::new(Code::Kernel, "the sandbox has no device lo"))
}
