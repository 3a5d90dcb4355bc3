//! Which subnet this node takes: flannel's rules of acquisition, as a pure decision over the
//! leases that the store holds. The store carries it out and, when another node was quicker,
//! asks again.

use ipnet::IpNet;

use crate::family::{ByFamily, Family, family_of, number};
use crate::lease::Lease;
use crate::net_conf::SubnetRange;
use crate::subnets::Subnets;

/// Of how many free subnets one is chosen at random, so that nodes that start together seldom
/// want the same one.
const CANDIDATES: usize = 100;

/// What this node wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The families it must hold a subnet of, and which ones may be given out.
    pub ranges: ByFamily<SubnetRange>,
    /// What it publishes.
    pub lease: Lease,
    /// The subnets it held before, as `subnet.env` or the state folder remembers them.
    pub previous: Option<Subnets>,
}

/// A key that is taken in the store, with its lease if that can be decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The key.
    pub subnets: Subnets,
    /// `None`: somebody's claim, but not a readable one.
    pub lease: Option<Lease>,
}

/// The decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// A lease of ours is there: write our lease over it.
    Reuse(Subnets),
    /// The subnet that we had before is free: create its key.
    Previous(Subnets),
    /// A free subnet, chosen at random: create its key.
    Fresh(Subnets),
}

/// The outcome of [`choose`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Leases of ours that do not fit the configuration any more: delete their keys.
    pub release: Vec<Subnets>,
    /// What to take.
    pub choice: Choice,
}

/// No subnet of a family is free.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "no free {family} subnet: every /{} from {} to {} is taken; enlarge the network or delete leases of nodes that are gone",
    .range.subnet_len, .range.min, .range.max
)]
pub struct OutOfSubnets {
    family: Family,
    range: SubnetRange,
}

impl Claim {
    /// Whether a lease is this node's own: it has our public IP, or it is the subnet we held
    /// with our own VTEP (the node's address has changed).
    pub fn owns(&self, subnets: &Subnets, lease: &Lease) -> bool {
        let same_vtep = !lease.backend_data.is_empty()
            && lease.backend_type == self.lease.backend_type
            && lease.backend_data == self.lease.backend_data;
        lease.shares_public_ip(&self.lease) || (same_vtep && self.previous == Some(*subnets))
    }

    /// Whether the subnets are what the configuration would give out now.
    pub fn fits(&self, subnets: &Subnets) -> bool {
        Family::ALL.into_iter().all(
            |family| match (self.ranges.get(family), subnets.get(family)) {
                (None, None) => true,
                (Some(range), Some(subnet)) => range.gives_out(subnet),
                _ => false,
            },
        )
    }
}

impl SubnetRange {
    /// Whether this is one of the subnets that nodes may hold.
    pub fn gives_out(&self, subnet: IpNet) -> bool {
        let base = number(subnet.addr());
        family_of(subnet) == family_of(self.network)
            && subnet.prefix_len() == self.subnet_len
            && (number(self.min)..=number(self.max)).contains(&base)
    }
}

/// Decides what to take. `pick(n)` returns a number below `n`.
pub fn choose(
    claim: &Claim,
    taken: &[Taken],
    mut pick: impl FnMut(usize) -> usize,
) -> Result<Decision, OutOfSubnets> {
    let (own, others): (Vec<&Taken>, Vec<&Taken>) = taken.iter().partition(|taken| {
        let lease = taken.lease.as_ref();
        lease.is_some_and(|lease| claim.owns(&taken.subnets, lease))
    });
    let (fitting, mut release): (Vec<Subnets>, Vec<Subnets>) = own
        .iter()
        .map(|taken| taken.subnets)
        .partition(|subnets| claim.fits(subnets));
    // Of several, the one whose pods may still be running.
    let reused = claim
        .previous
        .filter(|previous| fitting.contains(previous))
        .or(fitting.first().copied());
    if let Some(reused) = reused {
        release.extend(fitting.into_iter().filter(|subnets| *subnets != reused));
        return Ok(Decision {
            release,
            choice: Choice::Reuse(reused),
        });
    }
    let is_free = |subnets: &Subnets| !others.iter().any(|taken| taken.subnets.overlaps(subnets));
    let choice = match claim.previous {
        Some(previous) if claim.fits(&previous) && is_free(&previous) => Choice::Previous(previous),
        _ => {
            let before = claim.previous.into_iter().chain(release.iter().copied());
            let before: Vec<Subnets> = before.collect();
            Choice::Fresh(fresh(claim, &before, &others, &mut pick)?)
        }
    };
    Ok(Decision { release, choice })
}

/// Of every family what we had `before` where that can be: pods that run have addresses of it,
/// whatever has become of the other family. Else one of the free ones.
fn fresh(
    claim: &Claim,
    before: &[Subnets],
    others: &[&Taken],
    pick: &mut impl FnMut(usize) -> usize,
) -> Result<Subnets, OutOfSubnets> {
    let mut chosen = Vec::new();
    for (family, range) in claim.ranges.iter() {
        let is_free = |subnet: &IpNet| {
            let alone = Subnets::new([*subnet]);
            alone.is_some_and(|alone| !others.iter().any(|other| other.subnets.overlaps(&alone)))
        };
        let mut before = before.iter().filter_map(|subnets| subnets.get(family));
        if let Some(kept) = before.find(|subnet| range.gives_out(*subnet) && is_free(subnet)) {
            chosen.push(kept);
            continue;
        }
        let taken = others.iter().filter_map(|taken| taken.subnets.get(family));
        let free = free_subnets(range, taken, CANDIDATES);
        if free.is_empty() {
            let range = *range;
            return Err(OutOfSubnets { family, range });
        }
        chosen.push(free[pick(free.len()) % free.len()]);
    }
    Ok(Subnets::new(chosen).expect("a configuration has at least one family"))
}

/// The first free subnets of the range, at most `limit`.
fn free_subnets(
    range: &SubnetRange,
    taken: impl Iterator<Item = IpNet>,
    limit: usize,
) -> Vec<IpNet> {
    let family = family_of(range.network);
    let size = 1u128 << (family.bits() - range.subnet_len);
    let mut taken: Vec<(u128, u128)> = taken
        .map(|net| (number(net.network()), number(net.broadcast())))
        .collect();
    taken.sort_unstable();
    let mut taken = taken.into_iter().peekable();
    // The furthest address that any subnet up to here has taken.
    let mut taken_to: Option<u128> = None;
    let mut free = Vec::new();
    let mut base = number(range.min);
    let max = number(range.max);
    while base <= max && free.len() < limit {
        let last = base + (size - 1);
        while let Some((_, end)) = taken.next_if(|(start, _)| *start <= last) {
            taken_to = taken_to.max(Some(end));
        }
        if taken_to.is_none_or(|end| end < base) {
            free.push(IpNet::new_assert(family.address(base), range.subnet_len));
        }
        match last.checked_add(1) {
            Some(next) => base = next,
            None => break,
        }
    }
    free
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    const OURS: &str = r#"{"PublicIP":"192.168.50.1","BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:aa:bb"}}"#;

    #[test]
    fn a_family_that_is_new_or_gone_does_not_cost_the_other_its_subnet() {
        let dual: ByFamily<SubnetRange> = [
            (Family::V4, range("10.5.0.0/16", "10.5.1.0", "10.5.40.0")),
            (
                Family::V6,
                SubnetRange {
                    subnet_len: 64,
                    ..range("fd00:5::/48", "fd00:5:0:1::", "fd00:5:0:28::")
                },
            ),
        ]
        .into_iter()
        .collect();
        let lease = Lease::parse(OURS.as_bytes()).unwrap();
        let decide = |ranges, key: &str| {
            let claim = Claim {
                ranges,
                lease: lease.clone(),
                previous: None,
            };
            let taken = Taken {
                subnets: key.parse().unwrap(),
                lease: Some(lease.clone()),
            };
            let decision = choose(&claim, &[taken], |_| 7).unwrap();
            assert_eq!(decision.release, [key.parse().unwrap()]);
            match decision.choice {
                Choice::Fresh(subnets) => subnets.to_string(),
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(decide(dual, "10.5.30.0-24"), "10.5.30.0-24&fd00:5:0:8::-64");
        let v4 = dual.only(Family::V4);
        assert_eq!(decide(v4, "10.5.30.0-24&fd00:5:0:9::-64"), "10.5.30.0-24");
    }

    fn range(network: &str, min: &str, max: &str) -> SubnetRange {
        SubnetRange {
            network: network.parse().unwrap(),
            subnet_len: 24,
            min: min.parse().unwrap(),
            max: max.parse().unwrap(),
        }
    }

    fn claim(min: &str, max: &str, previous: Option<&str>) -> Claim {
        Claim {
            ranges: [(Family::V4, range("10.5.0.0/16", min, max))]
                .into_iter()
                .collect(),
            lease: Lease::parse(OURS.as_bytes()).unwrap(),
            previous: previous.map(|key| key.parse().unwrap()),
        }
    }

    fn taken(key: &str, value: &str) -> Taken {
        Taken {
            subnets: key.parse().unwrap(),
            lease: Lease::parse(value.as_bytes()).ok(),
        }
    }

    fn peer(key: &str) -> Taken {
        taken(key, r#"{"PublicIP":"192.168.50.30"}"#)
    }

    fn key(text: &str) -> Subnets {
        text.parse().unwrap()
    }

    #[test]
    fn the_lease_with_our_public_ip_is_taken_again() {
        let claim = claim("10.5.1.0", "10.5.255.0", None);
        let store = [peer("10.5.30.0-24"), taken("10.5.44.0-24", OURS)];
        let decision = choose(&claim, &store, |_| 0).unwrap();
        assert_eq!(decision.choice, Choice::Reuse(key("10.5.44.0-24")));
        assert_eq!(decision.release, []);
    }

    #[test]
    fn a_lease_of_ours_that_does_not_fit_is_released() {
        let claim = claim("10.5.20.0", "10.5.20.0", None);
        let dual = "10.5.20.0-24&fd00::-64";
        let store = [taken("10.5.44.0-24", OURS), taken(dual, OURS)];
        let decision = choose(&claim, &store, |_| 0).unwrap();
        assert_eq!(decision.choice, Choice::Fresh(key("10.5.20.0-24")));
        assert_eq!(decision.release, [key("10.5.44.0-24"), key(dual)]);
    }

    #[test]
    fn of_two_leases_of_ours_the_previous_one_stays() {
        let claim = claim("10.5.1.0", "10.5.255.0", Some("10.5.45.0-24"));
        let store = [taken("10.5.44.0-24", OURS), taken("10.5.45.0-24", OURS)];
        let decision = choose(&claim, &store, |_| 0).unwrap();
        assert_eq!(decision.choice, Choice::Reuse(key("10.5.45.0-24")));
        assert_eq!(decision.release, [key("10.5.44.0-24")]);
    }

    #[test]
    fn the_previous_subnet_is_taken_again_when_it_is_free() {
        let claim = claim("10.5.1.0", "10.5.255.0", Some("10.5.77.0-24"));
        let decision = choose(&claim, &[peer("10.5.30.0-24")], |_| 0).unwrap();
        assert_eq!(decision.choice, Choice::Previous(key("10.5.77.0-24")));
    }

    #[test]
    fn the_previous_subnet_is_ours_still_when_only_our_address_changed() {
        let mut claim = claim("10.5.1.0", "10.5.255.0", Some("10.5.77.0-24"));
        claim
            .lease
            .public_ips
            .set(Family::V4, "10.9.9.9".parse().unwrap());
        let store = [taken("10.5.77.0-24", OURS)];
        let decision = choose(&claim, &store, |_| 0).unwrap();
        assert_eq!(decision.choice, Choice::Reuse(key("10.5.77.0-24")));
    }

    #[test]
    fn a_previous_subnet_that_is_taken_or_does_not_fit_is_forgotten() {
        for previous in ["10.5.30.0-24", "10.9.30.0-24", "10.5.20.0-25"] {
            let claim = claim("10.5.20.0", "10.5.30.0", Some(previous));
            let decision = choose(&claim, &[peer("10.5.30.0-24")], |_| 0).unwrap();
            assert_eq!(decision.choice, Choice::Fresh(key("10.5.20.0-24")));
        }
    }

    #[test]
    fn unreadable_and_overlapping_claims_are_respected() {
        let claim = claim("10.5.20.0", "10.5.23.0", None);
        let store = [
            taken("10.5.20.0-24", "{torn"),
            peer("10.5.21.128-25"),
            peer("10.5.22.0-23"),
        ];
        let error = choose(&claim, &store, |_| 0).unwrap_err();
        assert!(error.to_string().contains("10.5.20.0 to 10.5.23.0"));
        assert_eq!(
            choose(&claim, &store[1..], |_| 0).unwrap().choice,
            Choice::Fresh(key("10.5.20.0-24"))
        );
    }

    #[test]
    fn one_of_the_first_hundred_free_ones_is_chosen_at_random() {
        let claim = claim("10.5.1.0", "10.5.255.0", None);
        let mut seen = BTreeSet::new();
        for n in 0..200 {
            let decision = choose(&claim, &[peer("10.5.1.0-24")], |of| n % of).unwrap();
            let Choice::Fresh(subnets) = decision.choice else {
                panic!("{decision:?}");
            };
            seen.insert(subnets);
        }
        assert_eq!(seen.len(), 100);
        assert_eq!(seen.first(), Some(&key("10.5.2.0-24")));
        assert_eq!(seen.last(), Some(&key("10.5.101.0-24")));
    }

    #[test]
    fn both_families_are_chosen_apart() {
        let mut claim = claim("10.5.20.0", "10.5.20.0", None);
        let mut v6 = range("fd00:5::/48", "fd00:5:0:20::", "fd00:5:0:21::");
        v6.subnet_len = 64;
        claim.ranges.set(Family::V6, v6);
        let store = [peer("10.5.30.0-24&fd00:5:0:20::-64")];
        let decision = choose(&claim, &store, |_| 0).unwrap();
        assert_eq!(
            decision.choice,
            Choice::Fresh(key("10.5.20.0-24&fd00:5:0:21::-64"))
        );
    }

    proptest! {
        #[test]
        fn what_is_free_overlaps_nothing_and_nothing_free_is_missed(
            taken in proptest::collection::vec((any::<u16>(), 20u8..=30), 0..40)
        ) {
            let range = range("10.5.0.0/16", "10.5.1.0", "10.5.255.0");
            let taken: Vec<IpNet> = taken
                .into_iter()
                .map(|(low, len)| {
                    let base = Family::V4.address((0x0a05_0000 | u32::from(low)).into());
                    IpNet::new_assert(base, len).trunc()
                })
                .collect();
            let got = free_subnets(&range, taken.iter().copied(), 1000);
            let want: Vec<IpNet> = (1..=255u128)
                .map(|third| IpNet::new_assert(Family::V4.address(0x0a05_0000 + (third << 8)), 24))
                .filter(|net| !taken.iter().any(|t| t.contains(net) || net.contains(t)))
                .collect();
            prop_assert_eq!(got, want);
        }
    }
}
