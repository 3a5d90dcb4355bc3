//! The one place that waits: for a condition, with a deadline.
//!
//! It decides how often to look. It must not know what is waited for; callers name it, so that a
//! missed deadline says what did not happen.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// What one look found: the condition holds, or why it does not yet.
pub enum Look<T> {
    /// It holds; waiting ends with this.
    Done(T),
    /// Not yet; the text is part of the message when the deadline passes.
    NotYet(String),
}

/// Looks until `look` is done, at first every millisecond, later every 50 ms. An error of `look`
/// ends the waiting at once.
pub fn until<T>(
    what: &str,
    deadline: Duration,
    mut look: impl FnMut() -> Result<Look<T>>,
) -> Result<T> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        match look()? {
            Look::Done(value) => return Ok(value),
            Look::NotYet(why) if start.elapsed() >= deadline => {
                bail!("waited {deadline:?} for {what}: {why}")
            }
            Look::NotYet(_) => pause_for(pause),
        }
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Waits until `holds` says true.
pub fn until_true(
    what: &str,
    deadline: Duration,
    mut holds: impl FnMut() -> Result<bool>,
) -> Result<()> {
    until(what, deadline, || {
        Ok(match holds()? {
            true => Look::Done(()),
            false => Look::NotYet("it does not hold".to_owned()),
        })
    })
}

/// Does nothing for `time`, where time itself is what is measured (an idle daemon), and between
/// two looks.
#[expect(
    clippy::disallowed_methods,
    reason = "the one sleep: every wait for a condition goes through this file"
)]
pub fn pause_for(time: Duration) {
    std::thread::sleep(time);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_deadline_names_what_was_waited_for_and_why_it_did_not_come() {
        let error = until::<()>("the moon", Duration::ZERO, || {
            Ok(Look::NotYet("clouds".to_owned()))
        })
        .unwrap_err();
        assert_eq!(error.to_string(), "waited 0ns for the moon: clouds");
    }

    #[test]
    fn the_condition_is_looked_at_again_until_it_holds() {
        let mut looks = 0;
        until_true("three looks", Duration::from_secs(5), || {
            looks += 1;
            Ok(looks == 3)
        })
        .unwrap();
        assert_eq!(looks, 3);
    }
}
