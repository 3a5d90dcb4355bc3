//! The program under the name `portmap`: the result is passed on as it came.

use kernel::Socket;

use super::previous::Previous;
use super::{Call, Gone, refused};
use crate::error::Error;
use crate::hostports::{self, HostPorts};

pub(super) fn add(call: &Call<'_>) -> Result<String, Error> {
    let ports = HostPorts::parse(&call.header.config)
        .map_err(|error| error.context("failed to parse config"))?;
    let missing = "must be called as chained plugin";
    let previous = Previous::required(call.header, call.version, missing)?;
    let targets = hostports::targets(previous.addresses_of(&call.request.ifname));
    if let (Some(ports), [first, ..]) = (ports, targets.as_slice()) {
        let mut socket = Socket::open().map_err(refused)?;
        let device = hostports::device_towards(&mut socket, *first)?;
        hostports::add(&ports, &call.attachment()?, &targets, &device)?;
    }
    previous.render()
}

pub(super) fn check(call: &Call<'_>) -> Result<(), Error> {
    let ports = HostPorts::parse(&call.header.config)?;
    let missing = "Required prevResult missing";
    let previous = Previous::required(call.header, call.version, missing)?;
    let targets = hostports::targets(previous.addresses_of(&call.request.ifname));
    if let (Some(ports), [first, ..]) = (ports, targets.as_slice()) {
        let mut socket = Socket::open().map_err(refused)?;
        let device = hostports::device_towards(&mut socket, *first)?;
        return hostports::check(&ports, &call.attachment()?, &targets, &device);
    }
    Ok(())
}

/// Needs no ports in the config: what is the attachment's says so.
pub(super) fn del(gone: &Gone<'_>) -> Result<(), Error> {
    let attachment = gone.attachment();
    let ours = hostports::del(&attachment);
    let legacy = hostports::delete_legacy(&attachment);
    let errors = [ours.err(), legacy.err()];
    Error::join(errors.into_iter().flatten().collect())
}
