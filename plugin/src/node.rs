//! The node and a sandbox as the verbs meet them: thin over [`kernel`], deciding only what an
//! errno means. Facts come from here, [`plan`](crate::plan)'s steps are done here.

mod bridge;
mod host_end;
mod spoof_check;

use std::fmt::Display;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use kernel::netns::NetnsError;
use kernel::socket::Request;
use kernel::{
    Mac, Netns, Socket, address, device, leaving, link, neighbour, nft, route, sysctl, veth, vlan,
};
use nix::errno::Errno;

use crate::attachment::{Attachment, CANDIDATES};
use crate::config::bridge::{BridgeNetwork, Masquerading};
use crate::error::{Code, Error};
use crate::legacy_masquerade;
use crate::masquerade::{self, mark};
use crate::plan::{Pair, Present, Sandbox, Step, Undo};
use crate::sweeper::Sweeper;

pub(crate) use spoof_check::{collect_spoof_checks, delete_spoof_check, find_spoof_check};

/// How often, and how many times, addresses are looked at while duplicates are detected.
const DETECTION_PAUSE: Duration = Duration::from_millis(50);
const DETECTION_LOOKS: u32 = 100;

/// The node's own namespace, with a socket in it.
#[derive(Debug)]
pub(crate) struct Node {
    /// The namespace that the process was started in.
    pub(crate) home: Netns,
    /// Its links, addresses, routes.
    pub(crate) socket: Socket,
}

/// What ADD made, as the kernel says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Made {
    /// The bridge's hardware address, where there is one.
    pub(crate) bridge_mac: Option<Mac>,
    /// The node's end of the pair.
    pub(crate) host_ifname: String,
    /// Its hardware address.
    pub(crate) host_mac: Option<Mac>,
    /// The pod's.
    pub(crate) pod_mac: Mac,
    /// The hardware address of the VLAN's gateway, if pods have one.
    pub(crate) vlan_gateway_mac: Option<Mac>,
}

/// What the steps before have found out.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    bridge: Option<u32>,
    vlan_gateway: Option<u32>,
    host_ifname: String,
    host_mac: Option<Mac>,
    pod_mac: Option<Mac>,
}

impl Progress {
    fn of_bridge(&self) -> Result<u32, Error> {
        self.bridge.ok_or_else(|| refused("there is no bridge"))
    }
}

fn refused(error: impl Display) -> Error {
    Error::new(Code::Kernel, error.to_string())
}

impl Node {
    /// Opens the node.
    pub(crate) fn open() -> Result<Node, Error> {
        let socket = Socket::open().map_err(refused)?;
        Ok(Node {
            home: Netns::of(&socket).map_err(refused)?,
            socket,
        })
    }

    /// Opens the namespace of a sandbox that must exist and must not be the node's.
    pub(crate) fn sandbox(&self, path: &str, may_be_home: bool) -> Result<Netns, Error> {
        let netns = Netns::open(path).map_err(|error| match error {
            NetnsError::Missing { .. } => Error::new(Code::UnknownContainer, error.to_string()),
            error => Error::new(Code::InvalidEnvironment, format!("CNI_NETNS: {error}")),
        })?;
        match !may_be_home && netns.is(&self.home).map_err(refused)? {
            true => Err(host_netns()),
            false => Ok(netns),
        }
    }

    /// What the node has under a device's name, if anything. What concerns VLANs is asked only for
    /// networks that have some: it costs a link message.
    pub(crate) fn present(&mut self, name: &str, vlans: bool) -> Result<Option<Present>, Error> {
        let Some(device) = device::by_name(&self.socket, name).map_err(refused)? else {
            return Ok(None);
        };
        let link = match vlans {
            true => link::by_index(&mut self.socket, device.ifindex).map_err(refused)?,
            false => None,
        };
        self.socket.strict_checks();
        let addresses = address::dump(&mut self.socket, Some(device.ifindex)).map_err(refused)?;
        Ok(Some(Present {
            ifindex: device.ifindex,
            kind: device.driver,
            up: device.up,
            mtu: device.mtu,
            promiscuous: device.promiscuous,
            filters_vlans: link.as_ref().is_some_and(|link| link.filters_vlans),
            peer: link.and_then(|link| link.lower),
            mac: device.mac,
            addresses: addresses.into_iter().map(|address| address.net).collect(),
        }))
    }

    /// Does the steps in order. If one fails, those before it are undone, the last one first.
    pub(crate) fn apply(
        &mut self,
        netns: &Netns,
        steps: &[Step],
        progress: &mut Progress,
    ) -> Result<(), Error> {
        for (at, step) in steps.iter().enumerate() {
            if let Err(error) = self.step(netns, step, progress) {
                self.undo(&steps[..at]);
                return Err(error);
            }
        }
        Ok(())
    }

    /// What there is now that steps were done which end with a pair.
    pub(crate) fn made(&self, progress: Progress, network: &BridgeNetwork) -> Result<Made, Error> {
        let mac = |name: Option<&str>| match name {
            Some(name) => device::mac(&self.socket, name).map_err(refused),
            None => Ok(None),
        };
        let vlan_gateway = progress.vlan_gateway.and(network.gateway_device());
        Ok(Made {
            vlan_gateway_mac: mac(vlan_gateway)?,
            bridge_mac: mac(network.device())?,
            host_ifname: progress.host_ifname,
            host_mac: progress.host_mac,
            pod_mac: progress.pod_mac.unwrap_or(Mac([0; 6])),
        })
    }

    fn step(&mut self, netns: &Netns, step: &Step, progress: &mut Progress) -> Result<(), Error> {
        match step {
            Step::Bridge(bridge) => progress.bridge = Some(self.ensure_bridge(bridge)?),
            Step::VlanGateway(gateway) => {
                let ifindex = self.ensure_vlan_gateway(gateway, progress.of_bridge()?)?;
                progress.vlan_gateway = Some(ifindex);
            }
            Step::Forward { v6 } => forward(*v6)?,
            Step::Pair(pair) => {
                let gateway = progress.vlan_gateway.or(progress.bridge);
                progress.host_ifname = self.make_pair(netns, pair, progress.bridge, gateway)?;
                progress.host_mac = Some(pair.host_mac);
                progress.pod_mac = Some(pair.pod_mac);
            }
            Step::FitMtu { bridge, mtu } => self.fit_mtu(bridge, progress.of_bridge()?, *mtu)?,
            Step::CheckSpoofing(attachment) => {
                let mac = progress
                    .pod_mac
                    .ok_or_else(|| refused("no pair was made"))?;
                spoof_check::check_spoofing(attachment, &progress.host_ifname, mac)?;
            }
            Step::Sandbox(sandbox) => self.fill_sandbox(netns, sandbox)?,
            Step::HostEnd(end) => self.fill_host_end(end, &progress.host_ifname)?,
            Step::Forget(addresses) => {
                let gateway = progress.vlan_gateway.or(progress.bridge);
                self.all(&forget(gateway, addresses))?;
            }
            Step::Masquerade {
                attachment,
                addresses,
                by,
            } => masquerade(attachment, addresses, *by)?,
        }
        Ok(())
    }

    /// Takes steps back, the last one first.
    pub(crate) fn undo(&mut self, steps: &[Step]) {
        for undo in steps.iter().rev().filter_map(Step::undo) {
            // The failure that led here is the one to report; DEL will meet what is left.
            let _ = self.take_back(&undo);
        }
    }

    fn take_back(&mut self, undo: &Undo) -> Result<(), Error> {
        match undo {
            Undo::Pair(attachment) => self.delete_pair(attachment).map(|_| ()),
            Undo::Masquerade(attachment) => {
                delete_masquerade(&mark(attachment), |_| false)?;
                legacy_masquerade::delete(attachment)
            }
            Undo::SpoofCheck(attachment) => delete_spoof_check(attachment),
        }
    }

    /// Makes the pair, and returns the name of the node's end. A port hands all it receives to its
    /// bridge: what it would do with router advertisements needs no setting. `gateway` is the device
    /// behind which the node finds the pod, if that is another one than the pair itself.
    fn make_pair(
        &mut self,
        netns: &Netns,
        pair: &Pair,
        bridge: Option<u32>,
        gateway: Option<u32>,
    ) -> Result<String, Error> {
        self.await_leaving(&pair.forget)?;
        let host_name = self.create_pair(netns, pair, bridge)?;
        let mut host = link::change(&host_name).alias(&pair.attachment.alias());
        match bridge {
            Some(_) => host = host.port(pair.hairpin, pair.isolated),
            None => host_end::before_carrier(&host_name),
        }
        let mut requests = vec![host.request()];
        requests.extend(forget(gateway, &pair.forget));
        let made = self.all(&requests);
        // The pod's end is down: nothing has come by the port in another VLAN.
        match made.and_then(|()| self.join_vlans(pair, &host_name)) {
            Ok(()) => Ok(host_name),
            Err(error) => {
                let _ = self.delete_pair(&pair.attachment);
                Err(error)
            }
        }
    }

    /// Puts the pair's port into its VLANs.
    fn join_vlans(&mut self, pair: &Pair, host_name: &str) -> Result<(), Error> {
        let Some((vlans, untagged)) = pair.vlans.as_ref().and_then(|v| Some((v, v.untagged()?)))
        else {
            return Ok(());
        };
        let port = device::index(&self.socket, host_name).map_err(refused)?;
        let port = port.ok_or_else(|| refused(format!("{host_name} is gone")))?;
        let mut requests = vec![];
        if !vlans.keep_default {
            requests.push(vlan::leave_all(port));
        }
        requests.push(vlan::join(port, Some(untagged), &vlans.tagged()));
        self.all(&requests)
    }

    /// Where a pair that had one of the addresses is still leaving, sees it off.
    fn await_leaving(&mut self, addresses: &[IpAddr]) -> Result<(), Error> {
        for ip in addresses {
            let left = device::index(&self.socket, &leaving::name(*ip)).map_err(refused)?;
            if left.is_some() {
                return self.all(&[leaving::delete_all()]);
            }
        }
        Ok(())
    }

    /// Makes both ends with one message, under the first name that is free, and returns it.
    fn create_pair(
        &mut self,
        netns: &Netns,
        pair: &Pair,
        bridge: Option<u32>,
    ) -> Result<String, Error> {
        for candidate in 0..CANDIDATES {
            let host_name = pair.attachment.host_ifname(candidate);
            let veth = veth::Veth {
                host_name: &host_name,
                pod_name: &pair.attachment.ifname,
                pod_netns: netns.fd(),
                mtu: pair.mtu,
                host_mac: Some(pair.host_mac),
                pod_mac: Some(pair.pod_mac),
                master: bridge,
                host_txqlen: None,
            };
            let mut made = self.socket.apply_all(&[veth.create()]);
            let taken = made.as_ref().err().and_then(kernel::Error::errno) == Some(Errno::EEXIST);
            if taken && candidate == 0 {
                // The attachment's last pair may still be leaving.
                self.all(&[leaving::delete_all()])?;
                made = self.socket.apply_all(&[veth.create()]);
            }
            match made {
                Ok(()) => return Ok(host_name),
                Err(error) if error.errno() == Some(Errno::EEXIST) => {}
                Err(error) => return Err(refused(error)),
            }
            // Either end's name may be the one that is taken.
            match link::by_name(&mut self.socket, &host_name).map_err(refused)? {
                Some(link) if !is_of(&link, &pair.attachment) => {}
                _ => {
                    let msg = format!("{} exists already", pair.attachment);
                    return Err(Error::new(Code::Conflict, msg));
                }
            }
        }
        let msg = format!(
            "every name for the node's end of {} is taken",
            pair.attachment
        );
        Err(Error::new(Code::Conflict, msg))
    }

    fn fill_sandbox(&mut self, netns: &Netns, sandbox: &Sandbox) -> Result<(), Error> {
        let mut socket = netns
            .enter(&self.home, || {
                sandbox_sysctls(sandbox)?;
                Socket::open().map_err(refused)
            })
            .map_err(refused)??;
        let ifname = &sandbox.ifname;
        let ifindex = device::index(&socket, ifname).map_err(refused)?;
        let ifindex = ifindex.ok_or_else(|| refused(format!("{ifname} left the sandbox")))?;
        let detected = |net: &IpNet| sandbox.detect_duplicates && net.addr().is_ipv6();
        let mut requests: Vec<Request> = (sandbox.addresses.iter())
            .map(|net| match detected(net) {
                true => address::add_with_detection(ifindex, *net),
                false => address::add(ifindex, *net),
            })
            .collect();
        requests.push(link::change_index(ifindex).announcing().request());
        if sandbox.raise {
            requests.push(link::change_index(ifindex).up().request());
        }
        if sandbox.addresses.iter().any(detected) {
            socket.apply_all(&requests).map_err(refused)?;
            requests.clear();
            wait_for_detection(&mut socket, ifindex)?;
        }
        requests.extend(sandbox.routes.iter().filter_map(|route| {
            Some(route::append(&route::Route {
                gateway: route.gw.0,
                ifindex: Some(ifindex),
                metric: route.priority,
                table: route.table.filter(|t| *t != 0).unwrap_or(route::TABLE_MAIN),
                scope: route.scope,
                mtu: Some(route.mtu).filter(|mtu| *mtu != 0),
                advmss: Some(route.advmss).filter(|advmss| *advmss != 0),
                ..route::Route::to(route.dst?.0)
            }))
        }));
        socket
            .apply_all(&requests)
            .map_err(|error| refused(error).context(&format!("in the sandbox, {ifname}")))
    }

    /// Whether there is the attachment's pair, by its node's end.
    pub(crate) fn has_pair(&mut self, attachment: &Attachment) -> Result<bool, Error> {
        self.pair_of(attachment).map(|pair| pair.is_some())
    }

    /// Deletes the pair by its node's end, if that is this attachment's. Whether there was one.
    pub(crate) fn delete_pair(&mut self, attachment: &Attachment) -> Result<bool, Error> {
        match self.pair_of(attachment)? {
            Some(link) => self.all(&[link::delete_index(link.ifindex)]).map(|()| true),
            None => Ok(false),
        }
    }

    /// As [`Node::delete_pair`], but leaves what takes long to the sweeper. Until then nothing goes
    /// through the pair, and its addresses are not free.
    pub(crate) fn dismiss_pair(
        &mut self,
        attachment: &Attachment,
        addresses: &[IpAddr],
        sweeper: &Sweeper,
    ) -> Result<bool, Error> {
        let Some(link) = self.pair_of(attachment)? else {
            return Ok(false);
        };
        let quiet = |socket: &mut Socket| {
            link.group == leaving::GROUP
                || socket
                    .apply_all(&leaving::leave(link.ifindex, addresses))
                    .is_ok()
        };
        match quiet(&mut self.socket) && sweeper.call() {
            true => Ok(true),
            false => self.all(&[link::delete_index(link.ifindex)]).map(|()| true),
        }
    }

    fn pair_of(&mut self, attachment: &Attachment) -> Result<Option<link::Link>, Error> {
        for candidate in 0..CANDIDATES {
            let name = attachment.host_ifname(candidate);
            let link = link::by_name(&mut self.socket, &name).map_err(refused)?;
            if let Some(link) = link.filter(|link| is_of(link, attachment)) {
                return Ok(Some(link));
            }
        }
        Ok(None)
    }

    fn all(&mut self, requests: &[Request]) -> Result<(), Error> {
        match requests {
            [] => Ok(()),
            requests => self.socket.apply_all(requests).map_err(refused),
        }
    }
}

/// Where there is no bridge, what is remembered went with the pair.
fn forget(bridge: Option<u32>, addresses: &[IpAddr]) -> Vec<Request> {
    let on = bridge.into_iter();
    on.flat_map(|bridge| {
        addresses
            .iter()
            .map(move |ip| neighbour::delete(bridge, *ip))
    })
    .collect()
}

/// The error for a sandbox that is the node's own namespace.
pub(crate) fn host_netns() -> Error {
    Error::new(
        Code::HostNetns,
        "plugin's netns and netns from CNI_NETNS should not be the same",
    )
}

/// Whether a device is the attachment's node's end: its alias says so, or, where ADD was killed
/// before it gave one, its hardware address.
fn is_of(link: &link::Link, attachment: &Attachment) -> bool {
    let named = match &link.alias {
        Some(alias) => *alias == attachment.alias(),
        None => link.mac == Some(attachment.host_mac()),
    };
    link.kind == "veth" && named
}

fn masquerade(attachment: &Attachment, addresses: &[IpNet], by: Masquerading) -> Result<(), Error> {
    let has_nftables = || match nft::Socket::open().and_then(|mut s| s.tables(nft::Family::Inet)) {
        Err(error) => !legacy_masquerade::is_without_nftables(&error),
        Ok(_) => true,
    };
    if by == Masquerading::Iptables || by == Masquerading::Either && !has_nftables() {
        return legacy_masquerade::add(attachment, addresses);
    }
    // What an ADD that was killed may have left would stand before the new rules.
    delete_masquerade(&mark(attachment), |_| false)?;
    let rules = masquerade::rules(attachment, addresses).into_iter();
    let rules: Vec<_> = rules.map(|rule| (masquerade::CHECKS, rule)).collect();
    let mut socket = nft::Socket::open().map_err(refused)?;
    socket
        .append(&masquerade::table(), &rules)
        .map_err(|error| refused(error).context("masquerade"))
}

/// Deletes the masquerading rules whose comments begin with the mark, but for those to be kept.
/// Without the table there are none.
pub(crate) fn delete_masquerade(mark: &str, kept: impl Fn(&str) -> bool) -> Result<(), Error> {
    let delete = || {
        let mut socket = nft::Socket::open()?;
        let family = nft::Family::Inet;
        let checks = Some(masquerade::CHECKS);
        let mut rules = socket.foreign_rules(family, masquerade::TABLE, checks)?;
        rules.retain(|rule| rule.comment.starts_with(mark) && !kept(&rule.comment));
        socket.delete_foreign(family, masquerade::TABLE, &rules, &[])
    };
    match delete() {
        Err(error) if !legacy_masquerade::is_without_nftables(&error) => {
            Err(refused(error).context("delete masquerading rules"))
        }
        _ => Ok(()),
    }
}

fn forward(v6: bool) -> Result<(), Error> {
    let key = match v6 {
        false => "net/ipv4/ip_forward",
        true => "net/ipv6/conf/all/forwarding",
    };
    sysctl::ensure(key, "1").map_err(|error| {
        Error::new(
            Code::Kernel,
            format!("failed to enable forwarding: write {key}: {error}"),
        )
    })
}

/// Settings of the pod's interface, before it is up. Those that only save time may fail.
fn sandbox_sysctls(sandbox: &Sandbox) -> Result<(), Error> {
    let ifname = &sandbox.ifname;
    let detect = sandbox.detect_duplicates;
    if detect {
        let _ = sysctl::write(&format!("net/ipv6/conf/{ifname}/enhanced_dad"), "1");
    }
    let accept = if detect { "1" } else { "0" };
    let _ = sysctl::write(&format!("net/ipv6/conf/{ifname}/accept_dad"), accept);
    if !sandbox.addresses.iter().any(|net| net.addr().is_ipv6()) {
        return Ok(());
    }
    for name in ["lo", ifname] {
        must(&format!("net/ipv6/conf/{name}/disable_ipv6"), "0")?;
    }
    must(&format!("net/ipv6/conf/{ifname}/keep_addr_on_down"), "1")
}

/// Waits until no IPv6 address of the interface is tentative, but not for ever.
fn wait_for_detection(socket: &mut Socket, ifindex: u32) -> Result<(), Error> {
    for _ in 0..DETECTION_LOOKS {
        let addresses = address::dump(socket, Some(ifindex)).map_err(refused)?;
        if let Some(taken) = addresses.iter().find(|address| address.dad_failed) {
            let net = taken.net;
            return Err(refused(format!("another host has the pod's address {net}")));
        }
        if !addresses.iter().any(|address| address.tentative) {
            return Ok(());
        }
        #[expect(
            clippy::disallowed_methods,
            reason = "the end of the detection is announced to multicast listeners only, and a pod that asked for it waits seconds anyway"
        )]
        std::thread::sleep(DETECTION_PAUSE);
    }
    Err(refused("the pod's addresses are still tentative"))
}

fn must(key: &str, value: &str) -> Result<(), Error> {
    sysctl::ensure(key, value).map_err(|error| {
        Error::new(
            Code::Kernel,
            format!("in the sandbox, write {key}: {error}"),
        )
    })
}
