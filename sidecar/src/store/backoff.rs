//! How long to wait before the next try: longer each time, and never the same on two nodes, so
//! that a thousand of them do not come back at once to a store that was restarted.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

/// The waits since the last success, each between once and twice the one that is doubled from the
/// shortest to the longest.
#[derive(Debug)]
pub(crate) struct Backoff {
    shortest: Duration,
    longest: Duration,
    waits: ExponentialBackoff,
}

impl Backoff {
    /// The waits from a first success on.
    pub(crate) fn between(shortest: Duration, longest: Duration) -> Self {
        let builder = ExponentialBuilder::new()
            .with_min_delay(shortest)
            .with_max_delay(longest)
            .without_max_times()
            .with_jitter();
        // Without a seed every node would draw the same waits: backon's own is a constant where it
        // is built without std.
        let seed = getrandom::u64().unwrap_or_else(|_| std::process::id().into());
        let waits = builder.with_jitter_seed(seed).build();
        Self {
            shortest,
            longest,
            waits,
        }
    }

    /// The next wait.
    pub(crate) fn next(&mut self) -> Duration {
        self.waits.next().unwrap_or(self.longest)
    }

    /// It went well.
    pub(crate) fn reset(&mut self) {
        *self = Self::between(self.shortest, self.longest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORTEST: Duration = Duration::from_millis(250);
    const LONGEST: Duration = Duration::from_secs(30);

    #[test]
    fn waits_grow_to_a_bound_and_start_small_again() {
        let mut backoff = Backoff::between(SHORTEST, LONGEST);
        let waits: Vec<Duration> = (0..50).map(|_| backoff.next()).collect();
        assert!(waits[0] < 3 * SHORTEST, "{:?}", waits[0]);
        assert!(
            waits[20] >= LONGEST && waits[49] <= 2 * LONGEST + SHORTEST,
            "{waits:?}"
        );
        backoff.reset();
        assert!(backoff.next() < 3 * SHORTEST);
    }

    #[test]
    fn two_nodes_do_not_wait_alike() {
        let waits = || -> Vec<Duration> {
            let mut backoff = Backoff::between(SHORTEST, LONGEST);
            (0..5).map(|_| backoff.next()).collect()
        };
        assert_ne!(waits(), waits());
    }
}
