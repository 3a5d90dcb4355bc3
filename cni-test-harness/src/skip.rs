//! Skipping a test, never silently.
//!
//! A test that needs what this machine lacks (a program, a kernel feature) says so with
//! [`skip_unless!`](crate::skip_unless): the reason is printed past the test runner's capture, and
//! where `CI` is `true` it is a failure, so that a missing install step cannot look green. What is
//! skipped for is decided by the caller; this file only says it.

use std::ffi::OsStr;
use std::fmt::Display;
use std::io::Write;

/// What a skipped test returns: it has passed as far as the runner is concerned.
pub trait Skipped {
    /// The value that counts as passed.
    fn skipped() -> Self;
}

impl Skipped for () {
    fn skipped() -> Self {}
}

impl<E> Skipped for Result<(), E> {
    fn skipped() -> Self {
        Ok(())
    }
}

/// Ends the test as skipped unless something is there.
///
/// `let path = skip_unless!(tools::go_tool("bridge"));` gives the value or skips for the error;
/// `skip_unless!(kernel_has_x, "no x in this kernel");` skips when the condition is false.
/// For tests that return `()` or `Result<(), E>`.
#[macro_export]
macro_rules! skip_unless {
    ($found:expr $(,)?) => {
        match $found {
            Ok(found) => found,
            Err(missing) => return $crate::skip::skip(&missing, concat!(file!(), ":", line!())),
        }
    };
    ($holds:expr, $($reason:tt)+) => {
        if !$holds {
            return $crate::skip::skip(&format!($($reason)+), concat!(file!(), ":", line!()));
        }
    };
}

/// Ends the test as passed, with the reason printed, unless something is there that cannot be
/// installed: a program that no registry has, which a person may name by its path. Unlike
/// [`skip_unless!`](crate::skip_unless) it passes in CI.
///
/// ```text
/// let programs = try_if_there!(crio::Programs::named());
/// ```
#[macro_export]
macro_rules! try_if_there {
    ($found:expr $(,)?) => {
        match $found {
            Ok(found) => found,
            Err(missing) => {
                return $crate::skip::not_tried(&missing, concat!(file!(), ":", line!()));
            }
        }
    };
}

/// Says that the running test is skipped and why; what [`skip_unless!`](crate::skip_unless) calls.
///
/// # Panics
/// Where `CI` is `true`: there everything that a test needs must be installed.
pub fn skip<T: Skipped>(reason: &dyn Display, place: &str) -> T {
    let test = running_test(place);
    refuse_in_ci(std::env::var_os("CI").as_deref(), &test, reason);
    // Not eprintln!: the runner swallows that when a test passes.
    let _ = writeln!(std::io::stderr(), "skipped: {test}: {reason}");
    T::skipped()
}

/// Says that the running test was not tried and why; what
/// [`try_if_there!`](crate::try_if_there) calls.
pub fn not_tried<T: Skipped>(reason: &dyn Display, place: &str) -> T {
    let test = running_test(place);
    let _ = writeln!(std::io::stderr(), "not tried: {test}: {reason}");
    T::skipped()
}

/// The runner names a test's thread after it, except when it runs one test at a time.
fn running_test(place: &str) -> String {
    let thread = std::thread::current();
    let name = thread.name().filter(|name| *name != "main");
    name.unwrap_or(place).to_owned()
}

fn refuse_in_ci(ci: Option<&OsStr>, test: &str, reason: &dyn Display) {
    let ci = ci.is_some_and(|ci| ci == "true");
    assert!(
        !ci,
        "{test} would be skipped, which CI must not do: {reason}"
    );
}

#[cfg(test)]
mod tests {
    use super::refuse_in_ci;
    use crate::tools::Missing;

    #[test]
    fn what_is_there_is_handed_over() {
        let found: Result<u32, Missing> = Ok(7);
        assert_eq!(skip_unless!(found), 7);
        skip_unless!(1 + 1 == 2, "arithmetic is {}", "gone");
    }

    #[test]
    #[should_panic(expected = "this test would be skipped, which CI must not do: no x here")]
    fn in_ci_a_skipped_test_fails_with_its_reason() {
        refuse_in_ci(Some("true".as_ref()), "this test", &"no x here");
    }

    #[test]
    fn by_hand_a_skipped_test_does_not_fail() {
        refuse_in_ci(None, "this test", &"no x here");
        refuse_in_ci(Some("".as_ref()), "this test", &"no x here");
    }
}
