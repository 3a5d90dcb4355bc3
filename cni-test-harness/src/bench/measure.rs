//! Starting processes cheaply and reading what they cost.
//!
//! A process is started by posix_spawn (std does so when nothing has to run between fork and exec),
//! in the namespace of the calling thread. stdin and stdout are pipes, as a runtime's are; stdin is
//! filled before the start. What is read is wait4's: the process and those it waited for.

use std::collections::HashMap;
use std::io::{PipeReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::libc;

use crate::tools;

/// A process to be started.
#[derive(Debug, Clone)]
pub(super) struct Start {
    pub(super) program: PathBuf,
    pub(super) args: Vec<String>,
    pub(super) env: Vec<(String, String)>,
    pub(super) stdin: Vec<u8>,
}

impl Start {
    pub(super) fn of(program: &Path, args: impl IntoIterator<Item = String>) -> Self {
        let args = args.into_iter().collect();
        Self {
            program: program.to_owned(),
            args,
            env: Vec::new(),
            stdin: Vec::new(),
        }
    }

    /// The command, and our ends of its stdout and stderr.
    fn command(&self) -> Result<(Command, [PipeReader; 2])> {
        ensure!(
            self.stdin.len() < 60_000,
            "stdin must fit into a pipe: {}",
            self.stdin.len()
        );
        let (stdin, mut to) = std::io::pipe()?;
        to.write_all(&self.stdin)?;
        let ((out, stdout), (err, stderr)) = (std::io::pipe()?, std::io::pipe()?);
        let mut command = Command::new(&self.program);
        let env = self.env.iter().map(|(key, value)| (key, value));
        command
            .args(&self.args)
            .env_clear()
            .envs(env)
            .stdin(stdin)
            .stdout(stdout);
        command.stderr(stderr);
        Ok((command, [out, err]))
    }
}

/// What one process cost.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    /// From before the start to after its end was seen.
    pub(super) wall_ms: f64,
    /// User and system time, of what it started and waited for too.
    pub(super) cpu_ms: f64,
    pub(super) stdout: Vec<u8>,
}

impl Sample {
    /// This one and then the next, as one.
    pub(super) fn then(self, next: Sample) -> Sample {
        Sample {
            wall_ms: self.wall_ms + next.wall_ms,
            cpu_ms: self.cpu_ms + next.cpu_ms,
            stdout: next.stdout,
        }
    }
}

/// What processes started together cost.
#[derive(Debug)]
pub(super) struct Round {
    /// From before the first start to after the last end.
    pub(super) wall_ms: f64,
    /// In the order of the starts.
    pub(super) samples: Vec<Sample>,
}

impl Round {
    /// This one and, for the same pods, the next, as one.
    pub(super) fn then(self, next: Round) -> Round {
        let pairs = self.samples.into_iter().zip(next.samples);
        Round {
            wall_ms: self.wall_ms + next.wall_ms,
            samples: pairs.map(|(one, other)| one.then(other)).collect(),
        }
    }
}

/// Runs one process.
pub(super) fn one(start: &Start) -> Result<Sample> {
    let mut round = at_once(std::slice::from_ref(start))?;
    round
        .samples
        .pop()
        .context("a round has a sample per start")
}

/// Starts all, one after the other without waiting, and reads each as it ends.
pub(super) fn at_once(starts: &[Start]) -> Result<Round> {
    let commands = starts
        .iter()
        .map(Start::command)
        .collect::<Result<Vec<_>>>()?;
    let (mut commands, pipes): (Vec<_>, Vec<_>) = commands.into_iter().unzip();
    let mut running = HashMap::new();
    let begin = Instant::now();
    for (index, command) in commands.iter_mut().enumerate() {
        let start = Instant::now();
        let child = command
            .spawn()
            .with_context(|| format!("start {:?}", command.get_program()))?;
        running.insert(i32::try_from(child.id())?, (index, start));
    }
    let mut ends: Vec<Option<(i32, f64, f64)>> = vec![None; starts.len()];
    while !running.is_empty() {
        let (pid, status, usage) = wait4()?;
        let end = Instant::now();
        let Some((index, start)) = running.remove(&pid) else {
            continue;
        };
        ends[index] = Some((status, ms(end - start), cpu_ms(&usage)));
    }
    let wall_ms = ms(begin.elapsed());
    // Our copies of the children's ends must go before the pipes can come to an end.
    drop(commands);
    let samples =
        ends.into_iter()
            .flatten()
            .zip(pipes)
            .map(|((status, wall_ms, cpu_ms), pipes)| {
                let [stdout, stderr] = read_all(pipes)?;
                if status != 0 {
                    let said = [stdout, stderr].concat();
                    bail!(
                        "wait status {status:#x}: {}",
                        String::from_utf8_lossy(&said)
                    );
                }
                Ok(Sample {
                    wall_ms,
                    cpu_ms,
                    stdout,
                })
            });
    Ok(Round {
        wall_ms,
        samples: samples.collect::<Result<_>>()?,
    })
}

fn read_all(pipes: [PipeReader; 2]) -> Result<[Vec<u8>; 2]> {
    let mut read = [Vec::new(), Vec::new()];
    for (mut pipe, into) in pipes.into_iter().zip(&mut read) {
        pipe.read_to_end(into)?;
    }
    Ok(read)
}

/// The peak RSS in KiB of the largest process that `start` leads to, and its stdout. The process is
/// started by the small program `floor`, because a child's peak begins with its parent's.
pub(super) fn peak_kib(start: &Start) -> Result<(u64, Vec<u8>)> {
    let mut args = vec![
        "rusage".to_owned(),
        start.program.to_string_lossy().into_owned(),
    ];
    args.extend(start.args.iter().cloned());
    let start = Start {
        program: tools::built("floor")?,
        args,
        ..start.clone()
    };
    let (mut command, pipes) = start.command()?;
    let status = command.status()?;
    drop(command);
    let [stdout, stderr] = read_all(pipes)?;
    let said = String::from_utf8_lossy(&stderr);
    ensure!(
        status.success(),
        "{}{said}",
        String::from_utf8_lossy(&stdout)
    );
    // What the program itself wrote to stderr comes before, its last line perhaps without an end.
    let digits = said.trim_end().rsplit(|c: char| !c.is_ascii_digit()).next();
    let kib = digits.and_then(|digits| digits.parse().ok());
    Ok((
        kib.with_context(|| format!("no peak RSS in {said:?}"))?,
        stdout,
    ))
}

fn wait4() -> Result<(i32, i32, libc::rusage)> {
    let mut status = 0;
    // SAFETY: rusage is plain numbers, for which zero is a value.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to locals of the right types.
    let pid = unsafe { libc::wait4(-1, &mut status, 0, &mut usage) };
    if pid < 0 {
        return Err(std::io::Error::last_os_error()).context("wait4");
    }
    Ok((pid, status, usage))
}

fn cpu_ms(usage: &libc::rusage) -> f64 {
    let ms = |time: libc::timeval| time.tv_sec as f64 * 1e3 + time.tv_usec as f64 / 1e3;
    ms(usage.ru_utime) + ms(usage.ru_stime)
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
