//! Everybody's leases: a fold over the store's events. Any order of events that ends in the same
//! store ends in the same table.

use std::collections::BTreeMap;

use crate::lease::Lease;
use crate::store::{LeaseEvent, Record};
use crate::subnets::Subnets;

/// The leases known now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeaseTable {
    leases: BTreeMap<Subnets, Lease>,
    skipped: BTreeMap<Box<str>, String>,
    complete: bool,
}

impl LeaseTable {
    /// Takes an event in. Whether it told anything new.
    pub fn fold(&mut self, event: LeaseEvent) -> bool {
        match event {
            LeaseEvent::Snapshot(records) => {
                let mut told = Self::of(records);
                told.complete = true;
                let new = told != *self;
                *self = told;
                new
            }
            LeaseEvent::Put(record) => {
                let content = record.content.as_ref();
                let content = content.map(|(subnets, lease)| (subnets, lease));
                let new = self.content(&record.name) != Some(content);
                self.put(record);
                new
            }
            LeaseEvent::Removed(name) => {
                let new = self.content(&name).is_some();
                self.remove(&name);
                new
            }
        }
    }

    /// A table of these entries alone, which no snapshot has completed.
    pub fn of(records: impl IntoIterator<Item = Record>) -> Self {
        let mut table = Self::default();
        records.into_iter().for_each(|record| table.put(record));
        table
    }

    /// The entry of this name.
    pub fn record(&self, name: &str) -> Option<Record> {
        let content = match self.content(name)? {
            Ok((subnets, lease)) => Ok((*subnets, lease.clone())),
            Err(reason) => Err(reason.clone()),
        };
        let name = name.into();
        Some(Record { name, content })
    }

    fn put(&mut self, Record { name, content }: Record) {
        self.remove(&name);
        match content {
            Ok((subnets, lease)) => {
                self.leases.insert(subnets, lease);
            }
            Err(reason) => {
                self.skipped.insert(name, reason);
            }
        }
    }

    fn remove(&mut self, name: &str) {
        self.skipped.remove(name);
        if let Ok(subnets) = name.parse() {
            self.leases.remove(&subnets);
        }
    }

    fn content(&self, name: &str) -> Option<Result<(&Subnets, &Lease), &String>> {
        if let Some(reason) = self.skipped.get(name) {
            return Some(Err(reason));
        }
        let subnets = name.parse().ok()?;
        self.leases.get_key_value(&subnets).map(Ok)
    }

    /// Whether a snapshot has been seen. Before that, what is missing may be there.
    pub fn is_complete(&self) -> bool {
        self.complete
    }

    /// The leases, in the order of their subnets.
    pub fn leases(&self) -> impl Iterator<Item = (&Subnets, &Lease)> {
        self.leases.iter()
    }

    /// The lease of these subnets.
    pub fn get(&self, subnets: &Subnets) -> Option<&Lease> {
        self.leases.get(subnets)
    }

    /// What is in the store and is no lease, by name, with the reason.
    pub fn skipped(&self) -> impl Iterator<Item = (&str, &str)> {
        self.skipped
            .iter()
            .map(|(name, reason)| (&**name, &**reason))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn record(n: u8, good: bool) -> Record {
        let name: Box<str> = format!("10.5.{n}.0-24").into();
        let content = match good {
            true => Ok((name.parse().unwrap(), Lease::default())),
            false => Err("torn".to_owned()),
        };
        Record { name, content }
    }

    #[test]
    fn nothing_is_complete_before_the_first_snapshot() {
        let mut table = LeaseTable::default();
        table.fold(LeaseEvent::Put(record(1, true)));
        assert!(!table.is_complete());
        table.fold(LeaseEvent::Snapshot(vec![record(2, true)]));
        assert!(table.is_complete());
        assert_eq!(table.leases().count(), 1);
    }

    #[test]
    fn a_lease_that_turns_bad_is_skipped_and_one_that_turns_good_is_back() {
        let mut table = LeaseTable::default();
        table.fold(LeaseEvent::Put(record(1, true)));
        table.fold(LeaseEvent::Put(record(1, false)));
        assert_eq!(table.leases().count(), 0);
        assert_eq!(table.skipped().next(), Some(("10.5.1.0-24", "torn")));
        table.fold(LeaseEvent::Put(record(1, true)));
        assert_eq!((table.leases().count(), table.skipped().count()), (1, 0));
    }

    fn event() -> impl Strategy<Value = LeaseEvent> {
        let one = || (0u8..6, any::<bool>()).prop_map(|(n, good)| record(n, good));
        prop_oneof![
            5 => one().prop_map(LeaseEvent::Put),
            3 => one().prop_map(|record| LeaseEvent::Removed(record.name)),
            1 => proptest::collection::vec(one(), 0..6).prop_map(LeaseEvent::Snapshot),
        ]
    }

    proptest! {
        #[test]
        fn any_history_ends_in_what_the_store_holds(
            events in proptest::collection::vec(event(), 0..60)
        ) {
            // The model: the store itself, by name.
            let mut store: BTreeMap<Box<str>, Record> = BTreeMap::new();
            let mut table = LeaseTable::default();
            for event in events {
                match event.clone() {
                    LeaseEvent::Snapshot(records) => {
                        store = records.into_iter().map(|r| (r.name.clone(), r)).collect();
                    }
                    LeaseEvent::Put(record) => {
                        store.insert(record.name.clone(), record);
                    }
                    LeaseEvent::Removed(name) => {
                        store.remove(&name);
                    }
                }
                table.fold(event);
            }
            let mut fresh = LeaseTable::default();
            fresh.fold(LeaseEvent::Snapshot(store.into_values().collect()));
            fresh.complete = table.complete;
            prop_assert_eq!(table, fresh);
        }
    }
}
