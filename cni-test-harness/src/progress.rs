//! Lines that tell a person what is happening, with times.
//!
//! On a terminal a step is shown while it runs and gets its time when it is done; into a pipe each
//! step is one plain line.

use std::io::{IsTerminal, Write};
use std::time::Instant;

use anyhow::Result;

/// Shows steps on stdout.
pub struct Progress {
    terminal: bool,
    start: Instant,
}

impl Progress {
    /// Begins counting.
    pub fn new() -> Self {
        Self {
            terminal: std::io::stdout().is_terminal(),
            start: Instant::now(),
        }
    }

    /// Runs one step under its name.
    pub fn step<T>(&self, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let start = Instant::now();
        self.show(what);
        let outcome = work();
        let mark = if outcome.is_ok() { "ok" } else { "failed" };
        let took = start.elapsed().as_secs_f64() * 1e3;
        self.line(&format!("{mark:>6}  {took:>8.1} ms  {what}"));
        outcome
    }

    /// Shows what is going on at the moment; on a terminal only.
    pub fn show(&self, what: &str) {
        if self.terminal {
            let seconds = self.start.elapsed().as_secs_f64();
            print!("\r\x1b[K   …  {seconds:>7.1} s   {what}");
            let _ = std::io::stdout().flush();
        }
    }

    /// A line that stays.
    pub fn line(&self, text: &str) {
        let clear = if self.terminal { "\r\x1b[K" } else { "" };
        println!("{clear}{text}");
        // Into a pipe stdout is buffered, and a reader wants to see where things are.
        let _ = std::io::stdout().flush();
    }

    /// A heading above what follows.
    pub fn heading(&self, text: &str) {
        let (on, off) = if self.terminal {
            ("\x1b[1m", "\x1b[0m")
        } else {
            ("", "")
        };
        self.line(&format!("\n{on}{text}{off}"));
    }

    /// Seconds since the beginning.
    pub fn seconds(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}
