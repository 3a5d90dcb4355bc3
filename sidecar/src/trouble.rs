//! What is wrong right now, told once when it begins and once when it ends. Counted always.

use std::collections::BTreeMap;

use tracing::{info, warn};

/// How many new faults of one round are told one by one.
const TOLD: usize = 10;
/// Names in one line, where the others are to be named as well.
const NAMES: usize = 100;

/// A set of faults by what they are about.
#[derive(Debug, Default)]
pub(crate) struct Troubles {
    kind: &'static str,
    names_all: bool,
    known: BTreeMap<String, String>,
}

impl Troubles {
    /// `kind` is the message under which they are told.
    pub(crate) fn new(kind: &'static str) -> Self {
        Self {
            kind,
            names_all: false,
            known: BTreeMap::new(),
        }
    }

    /// The same where those that are not told one by one are named at least.
    pub(crate) fn naming_all(self) -> Self {
        let names_all = true;
        Self { names_all, ..self }
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.known.len()
    }

    /// Whether something else is wrong now than was known.
    pub(crate) fn differs(&self, now: &BTreeMap<String, String>) -> bool {
        self.known != *now
    }

    /// Takes what is wrong beside what is known.
    pub(crate) fn add(&mut self, more: BTreeMap<String, String>) {
        let mut now = self.known.clone();
        now.extend(more);
        self.update(now);
    }

    /// Takes what is wrong now, by subject, and tells what is new since the last time.
    pub(crate) fn update(&mut self, now: BTreeMap<String, String>) {
        let is_new =
            |(subject, reason): &(&String, &String)| self.known.get(*subject) != Some(reason);
        let new: Vec<_> = now.iter().filter(is_new).collect();
        for (subject, reason) in new.iter().take(TOLD) {
            warn!(%subject, %reason, "{}", self.kind);
        }
        let others = new.get(TOLD..).unwrap_or_default();
        if self.names_all {
            for some in others.chunks(NAMES) {
                let subjects: Vec<&str> = some.iter().map(|(subject, _)| &***subject).collect();
                warn!(
                    more = some.len(),
                    subjects = subjects.join(" "),
                    "{}",
                    self.kind
                );
            }
        } else if !others.is_empty() {
            warn!(more = others.len(), "{}", self.kind);
        }
        let over = self
            .known
            .keys()
            .filter(|subject| !now.contains_key(*subject));
        let over = over.count();
        if over > 0 {
            info!(over, left = now.len(), "{}: no longer", self.kind);
        }
        self.known = now;
    }
}
