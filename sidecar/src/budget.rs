//! So many a second and no more: what is not used up is kept for at most a second.

use std::time::Duration;

use tokio::time::Instant;

/// A number that grows with time.
#[derive(Debug)]
pub(crate) struct Budget {
    per_second: usize,
    left: usize,
    since: Instant,
}

impl Budget {
    /// Full at the beginning.
    pub(crate) fn new(per_second: usize, now: Instant) -> Self {
        Self {
            per_second,
            left: per_second,
            since: now,
        }
    }

    /// How many there are now.
    pub(crate) fn left(&mut self, now: Instant) -> usize {
        let passed = now.saturating_duration_since(self.since);
        let passed = passed.min(Duration::from_secs(1)).as_micros() as usize;
        let more = passed * self.per_second / 1_000_000;
        // Parts of one are kept for the next time.
        if more > 0 {
            self.left = (self.left + more).min(self.per_second);
            self.since = now;
        }
        self.left
    }

    /// Uses some up.
    pub(crate) fn spend(&mut self, count: usize) {
        self.left = self.left.saturating_sub(count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_used_up_comes_back_with_time_and_no_more_than_that() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut budget = Budget::new(10, start);
        assert_eq!(budget.left(at(0)), 10);
        budget.spend(10);
        assert_eq!(budget.left(at(99)), 0);
        assert_eq!(budget.left(at(100)), 1);
        assert_eq!(budget.left(at(350)), 3);
        assert_eq!(budget.left(at(60_000)), 10);
    }
}
