//! A ping that goes on: a thousand echo requests a second, of which every single one is accounted
//! for, so that what is done meanwhile is seen to have cost no packet.
//!
//! The count at ping's end would not do: the last request may be on its way then. So ping prints
//! every reply, and a loss is a gap in the numbers.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::netns::{Netns, unique_name};
use crate::process::Daemon;
use crate::wait::{self, Look};

/// Between two requests, in seconds, as ping takes it.
const INTERVAL: &str = "0.001";

/// Which requests were answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answers {
    /// The number of the last request that was answered.
    pub last: usize,
    /// The requests before it that were not.
    pub lost: Vec<usize>,
}

/// A ping on its way; ended when dropped.
pub struct Stream {
    daemon: Option<Daemon>,
    log_path: PathBuf,
}

impl Stream {
    /// Starts it and waits for the first answers.
    pub fn start(from: &Netns, to: IpAddr) -> Result<Self> {
        let log_path = std::env::temp_dir().join(unique_name("ping"));
        let mut ping = from.command("ping")?;
        ping.args(["-n", "-i", INTERVAL, &to.to_string()]);
        let daemon = Daemon::spawn("ping", &mut ping, &log_path)?;
        let mut stream = Self {
            daemon: Some(daemon),
            log_path,
        };
        stream.go_on(100)?;
        Ok(stream)
    }

    /// What has been answered so far.
    pub fn answers(&self) -> Result<Answers> {
        let said = std::fs::read_to_string(&self.log_path)
            .with_context(|| format!("read ping's output {}", self.log_path.display()))?;
        Ok(parse(&said))
    }

    /// Waits until `more` further requests have been answered.
    pub fn go_on(&mut self, more: usize) -> Result<()> {
        let until = self.answers()?.last + more;
        // ping sends late when the machine is busy, which is no loss.
        wait::until("answers to ping", Duration::from_secs(60), || {
            let last = self.answers()?.last;
            Ok(match last >= until {
                true => Look::Done(()),
                false => Look::NotYet(format!("{last} of {until}")),
            })
        })
    }

    /// Waits for some more answers, so that a request lost last is noticed, and ends it.
    pub fn end(mut self) -> Result<Answers> {
        self.go_on(200)?;
        let answers = self.answers();
        self.daemon.take().into_iter().for_each(Daemon::kill);
        answers
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.daemon.take().into_iter().for_each(Daemon::kill);
        let _ = std::fs::remove_file(&self.log_path);
    }
}

/// Reads the replies: `64 bytes from 10.5.1.2: icmp_seq=7 ttl=62 time=0.077 ms`. The number has 16
/// bits and starts anew from 0.
fn parse(said: &str) -> Answers {
    const ROUND: usize = 1 << 16;
    let mut seen = BTreeSet::new();
    let mut last = 0;
    for line in said.lines().filter(|line| line.contains("time=")) {
        let number = line.split("icmp_seq=").nth(1);
        let number = number.and_then(|rest| rest.split(' ').next()?.parse::<usize>().ok());
        let Some(number) = number else { continue };
        let mut number = last - last % ROUND + number;
        if number + ROUND / 2 < last {
            number += ROUND;
        }
        last = last.max(number);
        seen.insert(number);
    }
    let lost = (1..last).filter(|number| !seen.contains(number)).collect();
    Answers { last, lost }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replies(numbers: impl IntoIterator<Item = usize>) -> String {
        let line = |n| format!("64 bytes from 10.1.1.1: icmp_seq={n} ttl=62 time=0.1 ms\n");
        numbers.into_iter().map(line).collect()
    }

    #[test]
    fn a_gap_is_a_loss_and_a_late_answer_is_none() {
        let answers = parse(&replies([1, 2, 5, 4, 6]));
        assert_eq!((answers.last, answers.lost), (6, vec![3]));
        let unreachable = "From 10.1.1.254 icmp_seq=1 Destination Host Unreachable\n";
        let answers = parse(&(unreachable.to_owned() + &replies([2])));
        assert_eq!((answers.last, answers.lost), (2, vec![1]));
    }

    #[test]
    fn numbers_that_start_anew_go_on() {
        let answers = parse(&replies((1..65536).chain(0..3)));
        assert_eq!((answers.last, answers.lost), (65538, vec![]));
    }
}
