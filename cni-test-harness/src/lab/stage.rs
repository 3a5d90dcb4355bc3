//! Where a lab is built: namespaces under short names, commands that are printed before they run.
//!
//! A lab writes `{a}` where it means its namespace `a`; what is printed and run has the real name,
//! which no other run has.

use std::io::Write;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::netns::{self, Netns};
use crate::process::{self, Daemon};
use crate::wait::{self, Look};

const DEADLINE: Duration = Duration::from_secs(20);

/// The nodes of every lab.
pub(super) const NODES: [&str; 3] = ["a", "b", "c"];

pub(super) struct Stage<'a> {
    out: &'a mut dyn Write,
    // Dropped before the namespaces that they are in.
    daemons: Vec<Daemon>,
    namespaces: Vec<(&'static str, Netns)>,
}

/// The underlay address of a node, counted from 1.
pub(super) fn underlay_ip(node: usize) -> String {
    format!("192.168.50.{node}")
}

/// A MAC for the VXLAN device of a node.
pub(super) fn vtep_mac(node: usize) -> String {
    format!("02:00:00:00:09:{node:02x}")
}

/// All ordered pairs of different nodes, counted from 1.
pub(super) fn pairs() -> impl Iterator<Item = (usize, usize)> {
    let all = 1..=NODES.len();
    all.clone()
        .flat_map(move |from| all.clone().map(move |to| (from, to)))
        .filter(|(from, to)| from != to)
}

impl<'a> Stage<'a> {
    pub(super) fn new(out: &'a mut dyn Write) -> Self {
        Self {
            out,
            daemons: Vec::new(),
            namespaces: Vec::new(),
        }
    }

    /// A sentence between the commands.
    pub(super) fn say(&mut self, text: &str) -> Result<()> {
        Ok(writeln!(self.out, "\n# {text}")?)
    }

    fn filled(&self, command: &str) -> String {
        let fill = |text: String, (short, netns): &(&str, Netns)| {
            text.replace(&format!("{{{short}}}"), netns.name())
        };
        self.namespaces.iter().fold(command.to_owned(), fill)
    }

    /// Makes a namespace that the lab calls `short`.
    pub(super) fn namespace(&mut self, short: &'static str) -> Result<()> {
        let name = netns::unique_name(short);
        writeln!(self.out, "ip netns add {name}")?;
        writeln!(self.out, "ip -n {name} link set lo up")?;
        self.namespaces.push((short, Netns::create(&name)?));
        Ok(())
    }

    /// Prints and runs a command; its output is printed and returned. It must succeed.
    pub(super) fn run(&mut self, command: &str) -> Result<String> {
        let (line, output) = self.attempt(command)?;
        ensure!(
            output.status.success(),
            "`{line}`: exit {}: {}",
            output.code(),
            output.stderr_text().trim()
        );
        Ok(output.stdout_text())
    }

    fn attempt(&mut self, command: &str) -> Result<(String, process::Output)> {
        let line = self.filled(command);
        writeln!(self.out, "{line}")?;
        let mut words = line.split_whitespace();
        let program = words.next().context("an empty command")?;
        let output = process::run(Command::new(program).args(words), b"", DEADLINE)?;
        for said in output.stdout_text().lines().filter(|line| !line.is_empty()) {
            writeln!(self.out, "    {said}")?;
        }
        Ok((line, output))
    }

    /// Prints and starts a command that runs until the lab is over, or until [`Stage::stop`].
    pub(super) fn start(&mut self, command: &str) -> Result<()> {
        let line = self.filled(command);
        writeln!(self.out, "{line} &")?;
        let mut words = line.split_whitespace();
        let program = words.next().context("an empty command")?;
        let log_path = std::env::temp_dir().join(netns::unique_name("lab.log"));
        let daemon = Daemon::spawn(program, Command::new(program).args(words), &log_path)?;
        self.daemons.push(daemon);
        Ok(())
    }

    /// Waits until the command started last has printed `wanted`, and prints the lines with it.
    pub(super) fn heard(&mut self, wanted: &str) -> Result<()> {
        let daemon = self.daemons.last_mut().context("nothing was started")?;
        let log_path = daemon.log_path().to_owned();
        let lines = daemon.wait_until(&format!("a line with {wanted:?}"), DEADLINE, || {
            let log = std::fs::read_to_string(&log_path)?;
            let found: Vec<&str> = log.lines().filter(|line| line.contains(wanted)).collect();
            Ok(match found.is_empty() {
                true => Look::NotYet(format!("heard: {log:?}")),
                false => Look::Done(found.join("\n")),
            })
        })?;
        for line in lines.lines() {
            writeln!(self.out, "    {line}")?;
        }
        Ok(())
    }

    /// Waits until `command` prints `wanted`; prints it once.
    pub(super) fn shows(&mut self, command: &str, wanted: &str) -> Result<()> {
        let line = self.filled(command);
        wait::until(&format!("`{line}` to show {wanted:?}"), DEADLINE, || {
            let mut words = line.split_whitespace();
            let program = words.next().context("an empty command")?;
            let output = process::run(Command::new(program).args(words), b"", DEADLINE)?;
            let said = output.stdout_text();
            Ok(match said.contains(wanted) {
                true => Look::Done(()),
                false => Look::NotYet(said),
            })
        })?;
        self.run(command)?;
        Ok(())
    }

    /// `ping` from a namespace; whether it is answered must be as expected.
    pub(super) fn ping(&mut self, from: &str, to: &str, answered: bool) -> Result<()> {
        let wait = if answered { "-c 3 -W 2" } else { "-c 1 -W 0.5" };
        let command = format!("ip netns exec {{{from}}} ping -n -q -i 0.05 {wait} {to}");
        let (line, output) = self.attempt(&command)?;
        if output.status.success() != answered {
            let expected = if answered { "no answer" } else { "an answer" };
            bail!("`{line}`: {expected}: {}", output.stdout_text().trim());
        }
        Ok(())
    }

    /// A switch with a node on each port: 192.168.50.1 to .3 on `eth0`.
    pub(super) fn underlay(&mut self) -> Result<()> {
        self.say("The underlay: a switch, and three nodes that reach each other.")?;
        self.namespace("switch")?;
        self.run("ip -n {switch} link add br0 type bridge mcast_snooping 0")?;
        self.run("ip -n {switch} link set br0 up")?;
        for (number, node) in (1..).zip(NODES) {
            self.namespace(node)?;
            let ip = underlay_ip(number);
            self.run(&format!(
                "ip -n {{switch}} link add node{number} type veth peer eth0 netns {{{node}}}"
            ))?;
            self.run(&format!(
                "ip -n {{switch}} link set node{number} master br0 up"
            ))?;
            self.run(&format!("ip -n {{{node}}} addr add {ip}/24 dev eth0"))?;
            self.run(&format!("ip -n {{{node}}} link set eth0 up"))?;
        }
        self.ping("a", &underlay_ip(2), true)
    }
}

impl Drop for Stage<'_> {
    fn drop(&mut self) {
        for daemon in self.daemons.drain(..) {
            let log_path = daemon.log_path().to_owned();
            drop(daemon);
            let _ = std::fs::remove_file(log_path);
        }
    }
}
