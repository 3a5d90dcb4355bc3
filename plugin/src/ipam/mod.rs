//! IPAM: which addresses an attachment gets. host-local's configuration, files and rules, so that
//! either program can release what the other reserved.
//!
//! [`Config`] is pure, and so are [`allocator`] and [`range`]; [`store`] is the disk. [`reserve`]
//! is the one way in.

mod allocator;
mod boot;
mod index;
mod owner;
mod range;
pub(crate) mod resolv_conf;
mod store;

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::Deserialize;

#[cfg(feature = "fuzz")]
pub(crate) use allocator::candidates;
use boot::Boot;
pub(crate) use owner::{Held, Owner};
use range::Range;
pub(crate) use range::{RangeSet, RawRange};
use store::Locked;
pub(crate) use store::Store;

use crate::address::{Cidr, Ip, IpOf};
use crate::cni_args::CniArgs;
use crate::file_path;
use crate::result::{IpConfig, Route};
use crate::version::Version;

/// Where host-local keeps reservations unless `dataDir` says otherwise.
pub(crate) const DATA_DIR: &str = "/var/lib/cni/networks";

/// Why no address was reserved, or why a reservation cannot be found.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IpamError {
    /// The configuration cannot be used.
    #[error("{0}")]
    Config(String),
    /// No address is left. Nothing stays reserved.
    #[error("failed to allocate for range {index}: no IP addresses available in range set: {set}")]
    Exhausted {
        /// Which range set, from 0.
        index: usize,
        /// Its ranges.
        set: String,
    },
    /// An address was asked for that cannot be had. Nothing stays reserved.
    #[error("{0}")]
    Requested(String),
    /// The owner holds an address already.
    #[error("{0}")]
    Held(String),
    /// The files.
    #[error("{op} {path}: {source}")]
    Io {
        /// What was tried.
        op: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl IpamError {
    fn io(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> IpamError {
        let path = path.to_owned();
        move |source| IpamError::Io { op, path, source }
    }
}

/// The `ipam` object of a config.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct RawIpam {
    /// `host-local`, or another plugin's name.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// Range sets; one address is taken from each.
    pub(crate) ranges: Vec<Vec<RawRange>>,
    /// Legacy: a range without a set.
    pub(crate) subnet: Option<Cidr>,
    /// Legacy.
    pub(crate) range_start: Ip,
    /// Legacy.
    pub(crate) range_end: Ip,
    /// Legacy.
    pub(crate) gateway: Ip,
    /// Passed through to the result.
    pub(crate) routes: Vec<Route>,
    /// Where reservations are kept.
    pub(crate) data_dir: String,
    /// A file that the result's `dns` is read from.
    pub(crate) resolv_conf: String,
}

/// What a runtime asks of IPAM for one container (`args.cni`, `runtimeConfig`).
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct RawWishes {
    /// Addresses to reserve.
    pub(crate) ips: Vec<IpOf>,
    /// Range sets that come before the config's.
    pub(crate) ip_ranges: Vec<Vec<RawRange>>,
}

/// A configuration that can be allocated from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Config {
    /// Where reservations are kept; the network's name is appended.
    pub(crate) data_dir: PathBuf,
    /// One address is taken from each.
    pub(crate) sets: Vec<RangeSet>,
    /// Addresses that were asked for, each once.
    pub(crate) requested: Vec<IpAddr>,
    /// For the result.
    pub(crate) routes: Vec<Route>,
    /// A file that the result's `dns` is read from.
    pub(crate) resolv_conf: Option<PathBuf>,
}

impl Config {
    /// Checks ranges, and gathers what was asked for from its three sources.
    pub(crate) fn validate(
        raw: &RawIpam,
        cni_args: &CniArgs,
        args: &RawWishes,
        runtime: &RawWishes,
        version: Version,
    ) -> Result<Config, IpamError> {
        let legacy = RawRange {
            subnet: raw.subnet,
            range_start: raw.range_start,
            range_end: raw.range_end,
            gateway: raw.gateway,
        };
        let legacy = raw.subnet.map(|_| vec![legacy]);
        let sets = runtime.ip_ranges.iter().chain(&legacy).chain(&raw.ranges);
        let sets: Vec<RangeSet> = sets
            .enumerate()
            .map(|(at, set)| {
                RangeSet::validate(set)
                    .map_err(|error| IpamError::Config(format!("invalid range set {at}: {error}")))
            })
            .collect::<Result<_, _>>()?;
        if sets.is_empty() {
            return Err(IpamError::Config("no IP ranges specified".into()));
        }
        for (at, set) in sets.iter().enumerate() {
            let others = sets[at + 1..].iter();
            if let Some(other) = others.clone().position(|other| set.overlaps(other)) {
                let other = at + 1 + other;
                return Err(IpamError::Config(format!(
                    "range set {at} overlaps with {other}"
                )));
            }
            if version < Version::V0_3_0 && others.clone().any(|o| o.is_v6() == set.is_v6()) {
                return Err(IpamError::Config(format!(
                    "CNI version {version} does not support more than 1 address per family"
                )));
            }
        }
        let wishes = cni_args.ip.into_iter();
        let wishes = wishes.chain(args.ips.iter().chain(&runtime.ips).map(|ip| ip.0));
        let mut requested = vec![];
        for ip in wishes {
            if !requested.contains(&ip) {
                requested.push(ip);
            }
        }
        Ok(Config {
            data_dir: path("ipam.dataDir", &raw.data_dir)?.unwrap_or_else(|| DATA_DIR.into()),
            sets,
            requested,
            routes: raw.routes.clone(),
            resolv_conf: path("ipam.resolvConf", &raw.resolv_conf)?,
        })
    }
}

/// A path that may be left out.
fn path(key: &str, text: &str) -> Result<Option<PathBuf>, IpamError> {
    let given = Some(text).filter(|text| !text.is_empty());
    let parsed = given.map(|text| file_path::parse(key, text));
    parsed.transpose().map_err(IpamError::Config)
}

/// What to do for an owner that holds an address of a set already, because an ADD of it was killed
/// and no DEL came, or because the runtime asks twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    /// Give it the same one: whoever asks finds out by itself whether the interface is there.
    Same,
    /// Fail, as host-local does: the main plugin in front of it would take success for a new
    /// address, and release it when it meets the interface.
    Refuse,
}

/// The addresses of an owner.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Reservation {
    /// One of each set.
    pub(crate) ips: Vec<IpConfig>,
    /// Those of them that it did not hold before: what an ADD that fails gives back.
    pub(crate) fresh: Vec<IpAddr>,
}

/// Reserves one address of each set for the owner. Either all are reserved when it returns, or
/// none.
pub(crate) fn reserve(
    store: &Store,
    config: &Config,
    owner: &Owner<'_>,
    again: Again,
) -> Result<Reservation, IpamError> {
    let locked = store.lock()?;
    locked.make_index()?;
    let held = locked.held_by(owner)?;
    let held = held.iter().filter_map(|(name, _)| name.parse().ok());
    let reserving = Reserving {
        locked: &locked,
        owner,
        held: held.collect(),
        again,
    };
    let mut reservation = Reservation::default();
    match reserving.all(config, &mut reservation) {
        Ok(()) => Ok(reservation),
        Err(error) => {
            for ip in reservation.fresh {
                // The first failure is the one to report; what stays is the owner's, and DEL's.
                let _ = locked.give_back(ip);
            }
            Err(error)
        }
    }
}

/// A reservation in the making.
struct Reserving<'a> {
    locked: &'a Locked<'a>,
    owner: &'a Owner<'a>,
    /// What the owner holds already.
    held: Vec<IpAddr>,
    again: Again,
}

impl Reserving<'_> {
    fn all(&self, config: &Config, reservation: &mut Reservation) -> Result<(), IpamError> {
        let mut wishes = config.requested.clone();
        for (index, set) in config.sets.iter().enumerate() {
            let wish = wishes.iter().position(|ip| set.range_of(*ip).is_some());
            let wish = wish.map(|at| wishes.remove(at));
            let (ip, range) = match self.held_of(index, set, wish)? {
                Some(held) => held,
                None => {
                    let (ip, range) = match wish {
                        Some(wish) => {
                            let range = reserve_wish(self.locked, index, set, wish, self.owner)?;
                            (wish, range)
                        }
                        None => reserve_next(self.locked, index, set, self.owner)?,
                    };
                    reservation.fresh.push(ip);
                    self.locked.set_last_reserved(index, ip);
                    (ip, range)
                }
            };
            let address = IpNet::new(ip, range.subnet.prefix_len())
                .expect("a range's prefix length is one of its family");
            reservation.ips.push(IpConfig {
                interface: None,
                address: Some(Cidr(address)),
                gateway: Ip(Some(range.gateway)),
            });
        }
        if !wishes.is_empty() {
            let left: Vec<String> = wishes.iter().map(IpAddr::to_string).collect();
            let left = left.join(" ");
            return Err(IpamError::Requested(format!(
                "failed to allocate all requested IPs: {left}"
            )));
        }
        Ok(())
    }

    /// The address of the set that the owner holds, if any, and if it is the one asked for.
    fn held_of<'s>(
        &self,
        index: usize,
        set: &'s RangeSet,
        wish: Option<IpAddr>,
    ) -> Result<Option<(IpAddr, &'s Range)>, IpamError> {
        let mut held = self.held.iter();
        let mut held = held.find_map(|ip| Some((*ip, set.range_of(*ip)?)));
        match (self.again, held, wish) {
            (Again::Refuse, Some((ip, _)), None) => {
                let id = self.owner.container_id;
                return Err(IpamError::Held(format!(
                    "failed to allocate for range {index}: {ip} has been allocated to {id}, duplicate allocation is not allowed"
                )));
            }
            (Again::Refuse, ..) => held = None,
            (Again::Same, _, Some(wish)) => {
                let range = set.range_of(wish).filter(|_| self.held.contains(&wish));
                held = range.map(|range| (wish, range));
            }
            (Again::Same, _, None) => {}
        }
        Ok(held)
    }
}

fn reserve_wish<'a>(
    locked: &Locked<'_>,
    index: usize,
    set: &'a RangeSet,
    wish: IpAddr,
    owner: &Owner<'_>,
) -> Result<&'a Range, IpamError> {
    let refuse = |reason: String| {
        let msg = format!("failed to allocate for range {index}: {reason}");
        Err(IpamError::Requested(msg))
    };
    match set.range_of(wish) {
        Some(range) if range.gateway == wish => {
            refuse(format!("requested ip {wish} is subnet's gateway"))
        }
        Some(range) if locked.take(wish, owner)? => Ok(range),
        _ => refuse(format!(
            "requested IP address {wish} is not available in range set {set}"
        )),
    }
}

fn reserve_next<'a>(
    locked: &Locked<'_>,
    index: usize,
    set: &'a RangeSet,
    owner: &Owner<'_>,
) -> Result<(IpAddr, &'a Range), IpamError> {
    for (ip, range) in allocator::candidates(set, locked.last_reserved(index)) {
        if locked.take(ip, owner)? {
            return Ok((ip, range));
        }
    }
    Err(IpamError::Exhausted {
        index,
        set: set.to_string(),
    })
}

/// How many addresses STATUS looks at before it reads the names of the whole folder.
const LOOKS: usize = 16;

/// Whether every set has a free address: what STATUS asks. Nothing is changed, and only names are
/// read.
pub(crate) fn has_room(store: &Store, config: &Config) -> Result<(), IpamError> {
    let mut taken: Option<HashSet<IpAddr>> = None;
    for (index, set) in config.sets.iter().enumerate() {
        // The ones that the next ADD tries first.
        let next = allocator::candidates(set, store.last_reserved(index));
        if next.take(LOOKS).any(|(ip, _)| store.is_free(ip)) {
            continue;
        }
        let taken = match &mut taken {
            Some(taken) => taken,
            none => none.insert(store.addresses()?.into_iter().collect()),
        };
        let free = |(ip, _): &(IpAddr, &Range)| !taken.contains(ip);
        if allocator::candidates(set, None).find(free).is_none() {
            return Err(IpamError::Exhausted {
                index,
                set: set.to_string(),
            });
        }
    }
    Ok(())
}
