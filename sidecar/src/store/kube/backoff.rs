//! How long to wait before the next try: longer each time, and never the same on two nodes, so
//! that a thousand of them do not come back to a restarted API server at once.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};

const SHORTEST: Duration = Duration::from_millis(250);
const LONGEST: Duration = Duration::from_secs(30);

/// The waits since the last success.
#[derive(Debug)]
pub(super) struct Backoff(ExponentialBackoff);

impl Default for Backoff {
    fn default() -> Self {
        let mut builder = ExponentialBuilder::new()
            .with_min_delay(SHORTEST)
            .with_max_delay(LONGEST)
            .without_max_times()
            .with_jitter();
        // Without randomness of the system: a fixed seed of the crate is as good as none.
        if let Ok(seed) = getrandom::u64() {
            builder = builder.with_jitter_seed(seed);
        }
        Self(builder.build())
    }
}

impl Backoff {
    /// The next wait.
    pub(super) fn next(&mut self) -> Duration {
        self.0.next().unwrap_or(LONGEST)
    }

    /// It went well.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_start_small_again() {
        let mut backoff = Backoff::default();
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
            let mut backoff = Backoff::default();
            (0..5).map(|_| backoff.next()).collect()
        };
        assert_ne!(waits(), waits());
    }
}
