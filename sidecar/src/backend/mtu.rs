//! How large a packet of a pod may be: what the underlay carries, less what the backend puts
//! around it.

use crate::family::Family;
use crate::underlay::Underlay;

/// The smallest MTU with which a family works (RFC 791, RFC 8200 §5), in bytes.
const fn smallest(family: Family) -> u32 {
    match family {
        Family::V4 => 68,
        Family::V6 => 1280,
    }
}

/// The MTU that fits every family. `configured` is `Backend.MTU`, for backends that have it:
/// `Some(None)` where it is not given.
pub(super) fn least(
    families: impl Iterator<Item = Family>,
    underlay: &Underlay,
    configured: Option<Option<u32>>,
    overhead: impl Fn(Family) -> u32,
) -> Result<u32, String> {
    let outer = configured.flatten().unwrap_or(underlay.mtu);
    let mtus = families.map(|family| (outer.saturating_sub(overhead(family)), family));
    let (mtu, family) = mtus.min().ok_or("no address family is enabled")?;
    let least = smallest(family);
    if mtu >= least {
        return Ok(mtu);
    }
    let advice = match configured {
        Some(_) => ", or set Backend.MTU",
        None => "",
    };
    Err(format!(
        "pods would have an MTU of {mtu}, and {family} needs {least}: give {} an MTU of at least {}{advice}",
        underlay.name,
        least + overhead(family)
    ))
}
