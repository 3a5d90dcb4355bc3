//! From the store's events to what is wanted now: the leases, what was decided of them, and which
//! of them have changed since. Pure; who calls makes the plans and looks at the kernel.

use std::collections::BTreeMap;

use crate::demand::Demand;
use crate::diff::Plan;
use crate::lease_table::LeaseTable;
use crate::standing::{Decided, Standing};
use crate::store::{LeaseEvent, Record};
use crate::tables::Tables;

/// The leases, and what stands.
#[derive(Debug, Default)]
pub struct Wanted {
    table: LeaseTable,
    standing: Option<Standing>,
    /// Names of leases that have changed since, with what they were.
    changed: BTreeMap<Box<str>, Option<Record>>,
    /// More has changed than can be said by name.
    all: bool,
    /// Only those in use have entries.
    demand: Option<Demand>,
}

/// What the leases that changed make necessary.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Nothing,
    /// These changes; what stands has them already.
    Plan(Plan),
    /// To decide everything anew.
    Everything,
}

impl Wanted {
    /// Only peers in use are to have entries.
    pub fn on_demand() -> Self {
        Self {
            demand: Some(Demand::default()),
            ..Self::default()
        }
    }

    /// Who is in use, if that matters.
    pub fn demand(&self) -> Option<&Demand> {
        self.demand.as_ref()
    }

    /// Has `change` make a plan out of who is in use and what was decided of all peers.
    pub fn change_demand<T: Default>(
        &mut self,
        change: impl FnOnce(&mut Demand, &Tables) -> T,
    ) -> T {
        match (&mut self.demand, &self.standing) {
            (Some(demand), Some(standing)) => change(demand, &standing.decided().tables),
            _ => T::default(),
        }
    }

    /// The leases.
    pub fn table(&self) -> &LeaseTable {
        &self.table
    }

    /// What was decided last, with the steps since.
    pub fn decided(&self) -> Option<&Decided> {
        self.standing.as_ref().map(Standing::decided)
    }

    /// The tables that stand: of all peers, or of those in use.
    pub fn tables(&self) -> Option<&Tables> {
        let decided = self.decided()?;
        let in_use = self.demand.as_ref().map(Demand::tables);
        Some(in_use.unwrap_or(&decided.tables))
    }

    /// Takes an event in. Whether it told anything new.
    pub fn fold(&mut self, event: LeaseEvent) -> bool {
        let name = match &event {
            LeaseEvent::Snapshot(_) => None,
            LeaseEvent::Put(Record { name, .. }) | LeaseEvent::Removed(name) => Some(name.clone()),
        };
        let before = name.map(|name| (self.table.record(&name), name));
        let new = self.table.fold(event);
        match before {
            Some((record, name)) if new => {
                self.changed.entry(name).or_insert(record);
            }
            _ => self.all |= new,
        }
        new
    }

    /// Decides everything anew.
    pub fn decide_all(&mut self, decide: impl Fn(&LeaseTable) -> Decided) {
        // The old goes before the new is made: with very many peers both are large.
        self.standing = None;
        let standing = Standing::new(decide(&self.table), &self.table, decide);
        if let Some(demand) = &mut self.demand {
            demand.renew(&standing.decided().tables);
        }
        self.standing = Some(standing);
        self.changed.clear();
        self.all = false;
    }

    /// What the leases that changed since the last call make necessary.
    pub fn step(&mut self, decide: impl Fn(&LeaseTable) -> Decided) -> Step {
        if self.changed.is_empty() && !self.all {
            return Step::Nothing;
        }
        let Some(standing) = self.standing.as_mut().filter(|_| !self.all) else {
            return Step::Everything;
        };
        let changed: Vec<_> = std::mem::take(&mut self.changed).into_iter().collect();
        match standing.step(&changed, &self.table, decide, self.demand.as_mut()) {
            Some(plan) => Step::Plan(plan),
            None => {
                self.all = true;
                Step::Everything
            }
        }
    }
}

#[cfg(test)]
mod tests;
