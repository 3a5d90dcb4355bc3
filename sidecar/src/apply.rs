//! The thin edge to the kernel: dumps the facts, makes the changes of a plan. Decides nothing.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::thread;

use kernel::fdb::FdbEntry;
use kernel::link::Link;
use kernel::miss::Misses;
use kernel::monitor::Monitor;
use kernel::neighbour::Neighbour;
use kernel::nft;
use kernel::route::{PROTOCOL_BOOT, Route};
use kernel::{
    Mac, Request, Socket, address, fdb, link, neighbour, route, solicit, sysctl, wireguard,
};
use tracing::{debug, info};

use crate::demand::Idle;
use crate::diff::{Op, Plan};
use crate::family::{Family, family_of};
use crate::masquerade;
use crate::tables::{DeviceLink, DeviceName, Facts, Hop, Kind, PROTOCOL_TWILL, RouteKey};

/// The sockets.
#[derive(Debug)]
pub(crate) struct Kernel {
    routing: Socket,
    /// For dumps at the same time as those of `routing`.
    beside: Socket,
    nftables: nft::Socket,
}

/// Of a longer plan the single changes are not told.
const TOLD: usize = 100;

/// An operation that failed. The others went on.
#[derive(Debug)]
pub(crate) struct Failure(pub(crate) kernel::Error);

impl Kernel {
    /// Opens the sockets in the network namespace of the calling thread.
    pub(crate) fn open() -> kernel::Result<Self> {
        let (mut routing, mut beside) = (Socket::open()?, Socket::open()?);
        routing.strict_checks();
        beside.strict_checks();
        Ok(Self {
            routing,
            beside,
            nftables: nft::Socket::open()?,
        })
    }

    /// Dumps what decisions are made from. `names` are our devices.
    pub(crate) fn dump(&mut self, names: &[DeviceName]) -> kernel::Result<Facts> {
        let socket = &mut self.routing;
        let links = link::dump(socket)?;
        let ours: Vec<u32> = links
            .iter()
            .filter(|link| link.vxlan.is_some() && names.iter().any(|name| **name == *link.name))
            .map(|link| link.ifindex)
            .collect();
        let raises_misses = |link: &Link| link.vxlan.as_ref().is_some_and(|vxlan| vxlan.l3miss);
        let mut asking = Vec::new();
        if links.iter().any(raises_misses) {
            for family in Family::ALL {
                let of_family = solicit::dump(socket, family == Family::V6)?;
                asking.extend(of_family.into_iter().map(|ifindex| (ifindex, family)));
            }
        }
        let beside = &mut self.beside;
        let (addresses, routes, entries) = thread::scope(|scope| {
            // With very many peers both halves take their time, and the kernel gives them at once.
            let other = match ours.is_empty() {
                true => None,
                // Where there may be no more threads, this one has to do.
                false => thread::Builder::new()
                    .spawn_scoped(scope, || entries_of(beside, &ours))
                    .ok(),
            };
            let addresses = address::dump(socket, None)?;
            let mut routes = route::dump(socket, false)?;
            routes.extend(route::dump(socket, true)?);
            let entries = match other.map(thread::ScopedJoinHandle::join) {
                Some(Ok(entries)) => entries,
                Some(Err(panic)) => std::panic::resume_unwind(panic),
                None => entries_of(socket, &ours),
            };
            Ok::<_, kernel::Error>((addresses, routes, entries?))
        })?;
        let (neighbours, fdb) = entries;
        Ok(Facts {
            links,
            addresses,
            routes,
            neighbours,
            fdb,
            asking,
        })
    }

    /// The number of a device, if it is there. What goes wrong is for the next round to tell.
    pub(crate) fn number_of(&mut self, device: &str) -> Option<u32> {
        let link = link::by_name(&mut self.routing, device).ok().flatten();
        link.map(|link| link.ifindex)
    }

    /// The route that the kernel would take to an address.
    pub(crate) fn towards(&mut self, ip: IpAddr) -> kernel::Result<Option<Route>> {
        route::towards(&mut self.routing, ip)
    }

    /// For how long nothing was sent by the entries of our VXLAN devices.
    pub(crate) fn idle(&mut self, devices: &BTreeMap<u32, DeviceName>) -> kernel::Result<Idle> {
        let devices = devices.iter();
        let idle = devices.map(|(ifindex, name)| {
            let entries = fdb::idle(&mut self.routing, *ifindex)?;
            Ok((name.clone(), entries.into_iter().collect()))
        });
        idle.collect()
    }

    /// A subscription to what the kernel asks of us.
    pub(crate) fn misses(&self) -> kernel::Result<Misses> {
        Misses::open()
    }

    /// A subscription to what others than us change.
    pub(crate) fn monitor(&mut self) -> kernel::Result<Monitor> {
        Monitor::open(&mut self.routing, &mut self.nftables)
    }

    /// Makes the changes in order. What fails is handed back; the next round tries again. `between`
    /// is called now and then.
    pub(crate) fn apply(
        &mut self,
        plan: &Plan,
        facts: &Facts,
        mut between: impl FnMut(),
    ) -> Vec<Failure> {
        let mut indexes: BTreeMap<&str, u32> = facts
            .links
            .iter()
            .map(|link| (link.name.as_str(), link.ifindex))
            .collect();
        let mut failures = Vec::new();
        let mut rest = Vec::with_capacity(plan.len());
        tell(plan);
        for op in plan {
            match op {
                Op::DeleteDevice { device, .. } => {
                    indexes.remove(&**device);
                    self.attempt(link::delete(device), &mut failures);
                }
                Op::CreateDevice(device, wanted) => {
                    let Some(request) = creation(device, wanted) else {
                        continue;
                    };
                    self.attempt(request, &mut failures);
                    match link::by_name(&mut self.routing, device) {
                        Ok(Some(made)) => {
                            indexes.insert(device, made.ifindex);
                        }
                        // Its creation has failed already, and said so.
                        Ok(None) => {}
                        Err(error) => failures.push(Failure(error)),
                    }
                }
                other => rest.push(other),
            }
        }
        // A few at a time, for a message takes many times the room of what it says.
        for some in rest.chunks(kernel::socket::BATCH) {
            let batch: Vec<_> = some.iter().filter_map(|op| request(op, &indexes)).collect();
            let answers = self.routing.apply(&batch);
            failures.extend(answers.into_iter().filter_map(|a| a.err()).map(Failure));
            between();
        }
        failures
    }

    fn attempt(&mut self, request: Request, failures: &mut Vec<Failure>) {
        let answers = self.routing.apply(&[request]);
        failures.extend(answers.into_iter().filter_map(|a| a.err()).map(Failure));
    }

    /// Makes these changes to a device that was just made.
    pub(crate) fn set_up<const N: usize>(
        &mut self,
        device: &str,
        requests: impl FnOnce(u32) -> [Request; N],
    ) -> kernel::Result<()> {
        match link::by_name(&mut self.routing, device)? {
            Some(link) => self.routing.apply_all(&requests(link.ifindex)),
            // Gone again already; the next round sees it.
            None => Ok(()),
        }
    }

    /// Other tables' chains that drop forwarded traffic, as `family table chain`.
    pub(crate) fn forward_drops(&mut self) -> kernel::Result<Vec<String>> {
        self.nftables.forward_drops()
    }

    /// Makes our nftables table what is wanted, if it is not. Whether it was written.
    pub(crate) fn ensure_nftables(&mut self, rules: &masquerade::Rules) -> kernel::Result<bool> {
        let wanted = rules.table();
        let present = self.nftables.dump(wanted.family, &wanted.name)?;
        match present {
            None if wanted.chains.is_empty() => Ok(false),
            Some(present) if !wanted.chains.is_empty() && present.is(&wanted) => Ok(false),
            Some(_) if wanted.chains.is_empty() => {
                self.nftables.delete(wanted.family, &wanted.name)?;
                Ok(true)
            }
            _ => {
                self.nftables.replace(&wanted)?;
                Ok(true)
            }
        }
    }
}

/// What is on these devices.
fn entries_of(
    socket: &mut Socket,
    ours: &[u32],
) -> kernel::Result<(Vec<Neighbour>, Vec<FdbEntry>)> {
    if ours.is_empty() {
        return Ok(Default::default());
    }
    let neighbours = neighbour::dump(socket)?;
    let mut fdb = Vec::new();
    for ifindex in ours {
        fdb.extend(fdb::dump(socket, Some(*ifindex))?);
    }
    Ok((neighbours, fdb))
}

/// No router advertisements on our devices. `/proc/sys` may be read-only in a container, and the
/// device works all the same.
pub(crate) fn refuse_router_advertisements(device: &str) -> std::io::Result<()> {
    sysctl::ensure(&format!("net/ipv6/conf/{device}/accept_ra"), "0")
}

/// Changes of devices are changes of state; the rest is detail.
fn tell(plan: &Plan) {
    for op in plan {
        match op {
            Op::DeleteDevice { device, why } => {
                info!(%device, why, "device does not fit and is made anew");
            }
            Op::CreateDevice(device, link) => {
                info!(%device, mac = ?link.mac, mtu = link.mtu, "device is made");
            }
            Op::SetMtu(device, mtu) => info!(%device, mtu, "MTU is put right"),
            Op::SetMac(device, mac) => info!(%device, %mac, "MAC address is put right"),
            other if plan.len() <= TOLD => debug!(?other, "change"),
            _ => {}
        }
    }
}

/// `None` for what its user makes.
fn creation(name: &str, wanted: &DeviceLink) -> Option<Request> {
    match &wanted.kind {
        Kind::Vxlan(vxlan) => {
            let mac = wanted.mac.unwrap_or(Mac([0; 6]));
            Some(vxlan.create(name, mac, wanted.mtu))
        }
        Kind::Ipip(ipip) => Some(ipip.create(name, wanted.mtu)),
        Kind::Wireguard => Some(wireguard::create(name, wanted.mtu)),
        Kind::Tun => None,
    }
}

/// The request of one operation; `None` if its device is not there, which was reported when it was
/// to be made.
fn request(op: &Op, indexes: &BTreeMap<&str, u32>) -> Option<Request> {
    let index = |device: &DeviceName| indexes.get(&**device).copied();
    Some(match op {
        Op::DeleteDevice { .. } | Op::CreateDevice(..) => return None,
        Op::SetMtu(device, mtu) => link::change_index(index(device)?).mtu(*mtu).request(),
        Op::SetMac(device, mac) => link::change_index(index(device)?).mac(*mac).request(),
        Op::SetUp(device) => link::change_index(index(device)?).up().request(),
        Op::AddAddress(device, net) => address::replace(index(device)?, *net),
        Op::DeleteAddress(device, net) => address::delete(index(device)?, *net),
        Op::Ask(device, family) => solicit::user_space(index(device)?, *family == Family::V6),
        Op::Resolve(device, ip, mac) => neighbour::resolve(index(device)?, *ip, *mac),
        Op::PutFdb(device, mac, ip) => fdb::replace(index(device)?, *mac, *ip),
        Op::DeleteFdb(device, mac) => fdb::delete(index(device)?, *mac),
        Op::PutNeighbour(device, ip, mac) => neighbour::replace(index(device)?, *ip, *mac),
        Op::DeleteNeighbour(device, ip) => neighbour::delete(index(device)?, *ip),
        Op::PutRoute(key, hop) => route::replace(&route_of(key, hop, index(&hop.device)?, false)),
        Op::DeleteRoute(key, hop) => route::delete(&route_of(key, hop, index(&hop.device)?, true)),
    })
}

fn route_of(key: &RouteKey, hop: &Hop, ifindex: u32, any_protocol: bool) -> Route {
    let unspecified = family_of(key.destination).unspecified();
    // Ours by its device, or else by its number. Without a gateway it is by its device.
    let own_device = hop.onlink || hop.via == unspecified;
    let protocol = match (any_protocol, own_device) {
        (true, _) => 0,
        (false, true) => PROTOCOL_BOOT,
        (false, false) => PROTOCOL_TWILL,
    };
    Route {
        gateway: Some(hop.via).filter(|via| *via != unspecified),
        ifindex: Some(ifindex),
        onlink: hop.onlink,
        protocol,
        metric: key.metric,
        ..Route::to(key.destination)
    }
}
