//! `vlan`, `vlanTrunk` and `preserveDefaultVlan`: the VLANs that a pod's port of the bridge is in.
//! Pure.

use std::collections::BTreeSet;

use kernel::vlan;
use serde::Deserialize;

/// What the port is in by the bridge plugin's rule where a trunk alone is given.
const DEFAULT: u16 = 1;

/// One VLAN, or several in a row.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(default)]
pub(super) struct RawTrunk {
    id: Option<i64>,
    #[serde(rename = "minID")]
    min: Option<i64>,
    #[serde(rename = "maxID")]
    max: Option<i64>,
}

/// The VLANs of a bridge that filters them.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Vlans {
    /// The pod's own: what it sends without a tag. The bridge's gateway address is in it too.
    pub(crate) own: Option<u16>,
    /// Those that it sends and gets with their tags.
    pub(crate) trunk: BTreeSet<u16>,
    /// The port stays in those that the bridge gives every port.
    pub(crate) keep_default: bool,
}

impl Vlans {
    /// `None` where nothing is asked, and the bridge need not filter. An empty trunk asks.
    pub(super) fn parse(
        vlan: i64,
        trunk: Option<&[RawTrunk]>,
        keep_default: bool,
    ) -> Result<Option<Vlans>, String> {
        let own = match u16::try_from(vlan) {
            Ok(0) => None,
            Ok(vid) if vlan::ALL.contains(&vid) => Some(vid),
            _ => {
                return Err(format!(
                    "invalid VLAN ID {vlan} (must be between 0 and 4094)"
                ));
            }
        };
        let mut vids = BTreeSet::new();
        for entry in trunk.unwrap_or_default() {
            entry.expand(&mut vids)?;
        }
        Ok((own.is_some() || trunk.is_some()).then_some(Vlans {
            own,
            trunk: vids,
            keep_default,
        }))
    }

    /// What the port gets without a tag, if anything is said about the port at all.
    pub(crate) fn untagged(&self) -> Option<u16> {
        self.own
            .or_else(|| (!self.trunk.is_empty()).then_some(DEFAULT))
    }

    /// What it gets with tags. The VLAN without a tag is not among them, wherever it was listed:
    /// the kernel would take the later word.
    pub(crate) fn tagged(&self) -> BTreeSet<u16> {
        let mut tagged = self.trunk.clone();
        if let Some(untagged) = self.untagged() {
            tagged.remove(&untagged);
        }
        tagged
    }
}

impl RawTrunk {
    fn expand(&self, into: &mut BTreeSet<u16>) -> Result<(), String> {
        let vid = |given: Option<i64>, key: &str| match given {
            None => Ok(None),
            Some(id) => match u16::try_from(id).ok().filter(|id| vlan::ALL.contains(id)) {
                Some(id) => Ok(Some(id)),
                None => Err(format!("incorrect trunk {key} parameter")),
            },
        };
        match (vid(self.min, "minID")?, vid(self.max, "maxID")?) {
            (Some(min), Some(max)) if min > max => {
                return Err("minID is greater than maxID in trunk parameter".into());
            }
            (Some(min), Some(max)) => into.extend(min..=max),
            (Some(_), None) => return Err(missing("maxID")),
            (None, Some(_)) => return Err(missing("minID")),
            (None, None) => {}
        }
        into.extend(vid(self.id, "id")?);
        Ok(())
    }
}

fn missing(key: &str) -> String {
    format!("minID and maxID should be configured simultaneously, {key} is missing")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn parse(vlan: i64, trunk: Value) -> Result<Option<Vlans>, String> {
        let trunk: Option<Vec<RawTrunk>> = go_json::from_value(&trunk).unwrap();
        Vlans::parse(vlan, trunk.as_deref(), false)
    }

    #[test]
    fn a_trunk_is_its_numbers_and_its_ranges_each_once() {
        let trunk =
            json!([{"id":101},{"minID":200,"maxID":203},{"id":202},{"id":5,"minID":7,"maxID":7}]);
        let vlans = parse(0, trunk).unwrap().unwrap();
        assert_eq!(vlans.trunk, BTreeSet::from([5, 7, 101, 200, 201, 202, 203]));
        let all = parse(0, json!([{"minID":1,"maxID":4094}])).unwrap();
        assert_eq!(all.unwrap().trunk.len(), 4094);
    }

    #[test]
    fn the_bridge_filters_where_any_of_it_is_said_even_an_empty_trunk() {
        assert_eq!(parse(0, json!(null)), Ok(None));
        assert_eq!(parse(0, json!([])), Ok(Some(Vlans::default())));
        let vlans = parse(100, json!(null)).unwrap().unwrap();
        assert_eq!((vlans.own, vlans.untagged()), (Some(100), Some(100)));
    }

    #[test]
    fn what_has_no_tag_is_the_pods_own_or_beside_a_trunk_the_default() {
        let untagged = |vlan, trunk| {
            let vlans = parse(vlan, trunk).unwrap().unwrap();
            (
                vlans.untagged(),
                vlans.tagged().into_iter().collect::<Vec<_>>(),
            )
        };
        assert_eq!(untagged(0, json!([])), (None, vec![]));
        assert_eq!(untagged(0, json!([{"id":7}])), (Some(1), vec![7]));
        assert_eq!(
            untagged(0, json!([{"minID":1,"maxID":2}])),
            (Some(1), vec![2])
        );
        assert_eq!(
            untagged(7, json!([{"minID":6,"maxID":8}])),
            (Some(7), vec![6, 8])
        );
    }

    #[test]
    fn what_no_vlan_can_be_is_refused_with_its_key() {
        for (vlan, trunk, words) in [
            (4095, json!(null), "invalid VLAN ID 4095"),
            (-1, json!(null), "invalid VLAN ID -1"),
            (65537, json!(null), "invalid VLAN ID 65537"),
            (0, json!([{"id":0}]), "incorrect trunk id parameter"),
            (0, json!([{"id":4095}]), "incorrect trunk id parameter"),
            (
                0,
                json!([{"minID":0,"maxID":5}]),
                "incorrect trunk minID parameter",
            ),
            (
                0,
                json!([{"minID":5,"maxID":4095}]),
                "incorrect trunk maxID parameter",
            ),
            (
                0,
                json!([{"minID":9,"maxID":5}]),
                "minID is greater than maxID",
            ),
            (0, json!([{"minID":9}]), "maxID is missing"),
            (0, json!([{"maxID":9}]), "minID is missing"),
        ] {
            let error = parse(vlan, trunk).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}
