//! From the store's events to what is wanted now: the leases, what was decided of them, and which
//! of them have changed since. Pure; who calls makes the plans and looks at the kernel.

use std::collections::BTreeMap;

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
    /// The leases.
    pub fn table(&self) -> &LeaseTable {
        &self.table
    }

    /// What was decided last, with the steps since.
    pub fn decided(&self) -> Option<&Decided> {
        self.standing.as_ref().map(Standing::decided)
    }

    /// The tables that stand.
    pub fn tables(&self) -> Option<&Tables> {
        self.decided().map(|decided| &decided.tables)
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
        self.standing = Some(Standing::new(decide(&self.table), &self.table, decide));
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
        match standing.step(&changed, &self.table, decide) {
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
