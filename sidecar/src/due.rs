//! When the loop has to do something next. It does nothing itself, and knows no clock but tokio's.

use tokio::time::Instant;

use crate::concern::Concern;

/// When to look again, and when not yet: no more than half the time goes into looking.
#[derive(Debug)]
pub(crate) struct Due {
    pub(crate) round: Instant,
    pub(crate) not_before: Instant,
    /// The nftables rules alone.
    pub(crate) rules: Option<Instant>,
    pub(crate) rules_not_before: Instant,
    /// What the kernel asks of us.
    pub(crate) misses: Option<Instant>,
    pub(crate) misses_not_before: Instant,
    /// To see who is not in use any more.
    pub(crate) ageing: Option<Instant>,
    /// That we are in sync, and with how many.
    pub(crate) telling: Option<Instant>,
}

impl Due {
    pub(crate) fn at(now: Instant) -> Self {
        Self {
            round: now,
            not_before: now,
            rules: None,
            rules_not_before: now,
            misses: None,
            misses_not_before: now,
            ageing: None,
            telling: None,
        }
    }

    pub(crate) fn round_is_due(&self, now: Instant) -> bool {
        self.round.max(self.not_before) <= now
    }

    pub(crate) fn rules_are_due(&self, now: Instant) -> bool {
        let due = self.rules.map(|due| due.max(self.rules_not_before));
        due.is_some_and(|due| due <= now)
    }

    pub(crate) fn misses_are_due(&self, now: Instant) -> bool {
        let due = self.misses.map(|due| due.max(self.misses_not_before));
        due.is_some_and(|due| due <= now)
    }

    pub(crate) fn next(&self) -> Instant {
        let round = self.round.max(self.not_before);
        let rules = self.rules.map(|due| due.max(self.rules_not_before));
        let misses = self.misses.map(|due| due.max(self.misses_not_before));
        let others = [rules, misses, self.ageing, self.telling]
            .into_iter()
            .flatten();
        others.fold(round, Instant::min)
    }

    pub(crate) fn concern(&mut self, concern: Concern) {
        let now = Instant::now();
        if concern.all {
            self.round = self.round.min(now);
        } else if concern.rules {
            self.rules = self.rules.or(Some(now));
        }
    }
}
