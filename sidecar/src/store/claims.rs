//! What stores that hand out subnets themselves have in common: who stands in the way of a claim,
//! in words, and the chance by which a free subnet is chosen.

use crate::lease::Lease;
use crate::subnet::{Claim, Taken};
use crate::subnets::Subnets;

/// Who has a part of our subnets under another key.
pub(super) fn overlapping(claim: &Claim, subnets: &Subnets, taken: &[Taken]) -> Option<String> {
    let ours = |other: &Taken| {
        let lease = other.lease.as_ref();
        lease.is_some_and(|lease| claim.owns(&other.subnets, lease))
    };
    let other = taken.iter().find(|other| {
        other.subnets != *subnets && other.subnets.overlaps(subnets) && !ours(other)
    })?;
    Some(match &other.lease {
        Some(lease) => held_by(&other.subnets, lease),
        None => format!("{} is held by an unreadable lease", other.subnets),
    })
}

/// Who holds these subnets.
pub(super) fn held_by(subnets: &Subnets, lease: &Lease) -> String {
    let ips: Vec<String> = lease
        .public_ips
        .iter()
        .map(|(_, ip)| ip.to_string())
        .collect();
    match ips.as_slice() {
        [] => format!("{subnets} is held by a node without a public IP"),
        ips => format!(
            "{subnets} is held by the node with public IP {}",
            ips.join(" and ")
        ),
    }
}

/// A number below `n`, for [`crate::subnet::choose`].
pub(super) fn random_below(n: usize) -> usize {
    // Without randomness the first will do: a lost race is tried again.
    let number = getrandom::u32().unwrap_or(0);
    number as usize % n.max(1)
}
