//! What the last look at everything decided, so that one changed lease is one small plan.
//!
//! A lease that has nothing to do with the others changes only entries of its own: what the backend
//! makes of it alone, before and after, is the whole difference. Where leases share or contest
//! something (a subnet, a VTEP's MAC), no small plan is made, and everything is looked at instead.
//! Both ways end in the same tables.

use std::collections::BTreeSet;

use kernel::Mac;

use crate::demand::Demand;
use crate::diff::{Plan, diff};
use crate::lease_table::LeaseTable;
use crate::peers::Skipped;
use crate::store::Record;
use crate::subnets::Subnets;
use crate::tables::Tables;

/// More changed leases than this are not worth looking at one by one.
const FEW: usize = 64;

/// What becomes of leases: [`crate::desired::desired`] with everything else given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Decided {
    /// The tables wanted.
    pub tables: Tables,
    /// The leases left out, with the reason.
    pub skipped: Skipped,
    /// How many peers there are.
    pub peers: usize,
}

/// A lease of this name changed: what was there before.
pub(crate) type Before = (Box<str>, Option<Record>);

/// What stands, and what of it more than one lease has to do with.
#[derive(Debug)]
pub(crate) struct Standing {
    decided: Decided,
    /// MAC addresses that several leases have, those left out included.
    contested: BTreeSet<Mac>,
}

impl Standing {
    /// Everything has just been decided out of `table`. `decide` does so for any table.
    pub(crate) fn new(
        decided: Decided,
        table: &LeaseTable,
        decide: impl Fn(&LeaseTable) -> Decided,
    ) -> Self {
        let mut contested = BTreeSet::new();
        for device in decided.tables.devices.values() {
            let mut macs: Vec<Mac> = device.neighbours.values().copied().collect();
            macs.sort_unstable();
            let twice = macs.windows(2).filter(|pair| pair[0] == pair[1]);
            contested.extend(twice.map(|pair| pair[0]));
        }
        for name in decided.skipped.keys() {
            // What is left out by itself has nothing that others might want.
            let alone = decide(&LeaseTable::of(table.record(name)));
            contested.extend(macs(&alone.tables));
        }
        Self { decided, contested }
    }

    /// What was decided.
    pub(crate) fn decided(&self) -> &Decided {
        &self.decided
    }

    /// The plan for leases that changed, of which only those in use count where there is a `demand`;
    /// `table` has them as they are now. `None` if they have to
    /// do with others: then everything must be decided anew, and nothing has been changed here.
    pub(crate) fn step(
        &mut self,
        changed: &[Before],
        table: &LeaseTable,
        decide: impl Fn(&LeaseTable) -> Decided,
        demand: Option<&mut Demand>,
    ) -> Option<Plan> {
        if changed.len() > FEW {
            return None;
        }
        let old = LeaseTable::of(changed.iter().filter_map(|(_, record)| record.clone()));
        let new = LeaseTable::of(changed.iter().filter_map(|(name, _)| table.record(name)));
        let (before, after) = (decide(&old), decide(&new));
        let by_itself = |name: &String| {
            let alone = decide(&LeaseTable::of(table.record(name))).tables;
            alone.routes.is_empty() && macs(&alone).next().is_none()
        };
        let apart = old.leases().all(|(subnets, _)| is_apart(subnets, table))
            && new.leases().all(|(subnets, _)| is_apart(subnets, table))
            && after.skipped.keys().all(by_itself)
            && !self.contests(&before.tables, &after.tables);
        if !apart {
            return None;
        }
        let plan = match demand {
            Some(demand) => demand.exchange(&before.tables, &after.tables),
            None => diff(&after.tables, &before.tables),
        };
        let Decided {
            tables,
            skipped,
            peers,
        } = &mut self.decided;
        tables.exchange(before.tables, after.tables);
        skipped.retain(|name, _| !before.skipped.contains_key(name));
        skipped.extend(after.skipped);
        *peers = *peers + after.peers - before.peers;
        Some(plan)
    }

    /// Whether a MAC address in these tables is, or would be, another lease's as well.
    fn contests(&self, before: &Tables, after: &Tables) -> bool {
        let contested = |mac: Mac| self.contested.contains(&mac);
        macs(before).chain(macs(after)).any(contested)
            || after.devices.iter().any(|(name, after)| {
                let standing = self.decided.tables.devices.get(name);
                let ours = before.devices.get(name);
                let taken = |mac: &Mac| {
                    let by_us = ours.is_some_and(|device| device.fdb.contains_key(mac));
                    !by_us && standing.is_none_or(|device| device.fdb.contains_key(mac))
                };
                after.fdb.len() < after.neighbours.len() || after.fdb.keys().any(taken)
            })
    }
}

/// Whether no other lease claims an address of these subnets.
fn is_apart(subnets: &Subnets, table: &LeaseTable) -> bool {
    let mut others = table.leases().filter(|(other, _)| *other != subnets);
    !others.any(|(other, _)| other.overlaps(subnets))
}

fn macs(tables: &Tables) -> impl Iterator<Item = Mac> {
    let devices = tables.devices.values();
    devices.flat_map(|device| device.fdb.keys().copied())
}
