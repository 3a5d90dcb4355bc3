//! A follower of a store, as the rest of twilld is one: it folds events into a lease table.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{Instant, timeout};
use twilld::lease_table::LeaseTable;
use twilld::store::{LeaseEvent, Store, doubt};
use twilld::subnets::Subnets;

/// For what a store does by itself, on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// The table as it stands, and what has come.
pub(crate) struct Following {
    pub(crate) table: LeaseTable,
    pub(crate) log: Vec<LeaseEvent>,
    events: mpsc::Receiver<LeaseEvent>,
    watching: JoinHandle<()>,
}

impl Following {
    /// Follows what the store itself says.
    pub(crate) fn start(store: impl Store) -> Self {
        let (to_us, events) = mpsc::channel(16);
        Self::of(events, spawn_local(store.watch(to_us)))
    }

    /// Follows what the node that holds `own` believes of it.
    pub(crate) fn start_as(store: impl Store, own: Subnets) -> Self {
        let (to_us, events) = mpsc::channel(16);
        Self::of(events, spawn_local(doubt::watch(store, own, to_us)))
    }

    fn of(events: mpsc::Receiver<LeaseEvent>, watching: JoinHandle<()>) -> Self {
        Self {
            table: LeaseTable::default(),
            log: Vec::new(),
            events,
            watching,
        }
    }

    async fn take(&mut self, wait: Duration) -> bool {
        match timeout(wait, self.events.recv()).await {
            Ok(Some(event)) => {
                self.log.push(event.clone());
                self.table.fold(event);
                true
            }
            Ok(None) => panic!("the watch has ended"),
            Err(_) => false,
        }
    }

    /// Takes events in until the table is complete and `holds`.
    pub(crate) async fn until(&mut self, what: &str, holds: impl Fn(&LeaseTable) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !(self.table.is_complete() && holds(&self.table)) {
            let rest = deadline.saturating_duration_since(Instant::now());
            if !self.take(rest).await {
                let names: Vec<String> = self
                    .table
                    .leases()
                    .map(|(subnets, _)| subnets.to_string())
                    .collect();
                panic!("not within {DEADLINE:?}: {what}; there are {names:?}");
            }
        }
    }

    /// Takes in what comes within a time; how many events that were.
    pub(crate) async fn for_a_while(&mut self, time: Duration) -> usize {
        let (before, end) = (self.log.len(), Instant::now() + time);
        while self
            .take(end.saturating_duration_since(Instant::now()))
            .await
        {}
        self.log.len() - before
    }

    /// How often a lease that had been there was said to be gone, by its removal or by a snapshot
    /// without it.
    pub(crate) fn removals(&self) -> usize {
        let mut there: BTreeSet<&str> = BTreeSet::new();
        let mut removals = 0;
        for event in &self.log {
            match event {
                LeaseEvent::Snapshot(records) => {
                    let now: BTreeSet<&str> = records.iter().map(|r| &*r.name).collect();
                    removals += there.difference(&now).count();
                    there = now;
                }
                LeaseEvent::Put(record) => {
                    there.insert(&record.name);
                }
                LeaseEvent::Removed(name) => removals += usize::from(there.remove(&**name)),
            }
        }
        removals
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.watching.abort();
    }
}
