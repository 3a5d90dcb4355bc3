//! Running other programs: to their end with a deadline, or as daemons with a log.
//!
//! Every child leads a process group of its own, so that what it started is killed with it. This
//! file decides nothing about what is run or where; `netns` gives commands their namespace.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::wait::{self, Look};

/// How long a short program (`ip`, `nft`, a plugin) may take before it is killed.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// What a program that came to its end left behind.
#[derive(Debug, Clone)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// All of its standard error.
    pub stderr: Vec<u8>,
    /// From before the start to after the end.
    pub took: Duration,
}

impl Output {
    /// Its exit code; 128 + N when signal N ended it, as a shell says.
    pub fn code(&self) -> i32 {
        let by_signal = || self.status.signal().map_or(-1, |signal| 128 + signal);
        self.status.code().unwrap_or_else(by_signal)
    }

    /// Standard output as text.
    pub fn stdout_text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    pub fn stderr_text(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

/// The command as a person would type it, for messages.
pub fn line(command: &Command) -> String {
    let program = command.get_program().to_string_lossy().into_owned();
    let args = command
        .get_args()
        .map(|arg| arg.to_string_lossy().into_owned());
    std::iter::once(program)
        .chain(args)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Runs `command` with `stdin` to its end, whatever its exit code. Killed with all it started when
/// `deadline` passes, which is an error.
pub fn run(command: &mut Command, stdin: &[u8], deadline: Duration) -> Result<Output> {
    let start = Instant::now();
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .process_group(0)
        .spawn()
        .with_context(|| format!("start `{}`", line(command)))?;
    let mut pipes = Pipes::of(&mut child, stdin)?;
    let done = pipes.pump(&mut child, start, deadline);
    // What it started and left in its group goes as well; the group is gone in the usual case.
    let _ = killpg(pid_of(&child), Signal::SIGKILL);
    let status = child
        .wait()
        .with_context(|| format!("wait for `{}`", line(command)))?;
    let output = Output {
        status,
        stdout: pipes.stdout,
        stderr: pipes.stderr,
        took: start.elapsed(),
    };
    if !done? {
        bail!(
            "`{}` did not end within {deadline:?}; stderr so far: {}",
            line(command),
            output.stderr_text().trim()
        );
    }
    Ok(output)
}

/// As [`run`] with nothing on stdin; an exit code other than 0 is an error with its stderr.
pub fn check(command: &mut Command) -> Result<Output> {
    check_with(command, b"", DEADLINE)
}

/// As [`run`]; an exit code other than 0 is an error with its stderr.
pub fn check_with(command: &mut Command, stdin: &[u8], deadline: Duration) -> Result<Output> {
    let output = run(command, stdin, deadline)?;
    if !output.status.success() {
        let said = format!("{}{}", output.stderr_text(), output.stdout_text());
        bail!(
            "`{}`: exit {}: {}",
            line(command),
            output.code(),
            said.trim()
        );
    }
    Ok(output)
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).expect("the kernel's pids are below 2^22"))
}

/// The parent's ends of a child's pipes, and what came and is still to go.
struct Pipes<'a> {
    to: Option<std::process::ChildStdin>,
    out: Option<std::process::ChildStdout>,
    err: Option<std::process::ChildStderr>,
    rest: &'a [u8],
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl<'a> Pipes<'a> {
    fn of(child: &mut Child, stdin: &'a [u8]) -> Result<Self> {
        let to = child.stdin.take().filter(|_| !stdin.is_empty());
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let fds = [to.as_ref().map(AsFd::as_fd), out.as_ref().map(AsFd::as_fd)];
        for fd in fds
            .into_iter()
            .chain([err.as_ref().map(AsFd::as_fd)])
            .flatten()
        {
            fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        }
        Ok(Self {
            to,
            out,
            err,
            rest: stdin,
            stdout: Vec::new(),
            stderr: Vec::new(),
        })
    }

    /// Moves bytes until the child has ended and its pipes are drained: true. False: out of time.
    fn pump(&mut self, child: &mut Child, start: Instant, deadline: Duration) -> Result<bool> {
        let mut ended: Option<Instant> = None;
        loop {
            let open = self.out.is_some() || self.err.is_some();
            if ended.is_none() && child.try_wait()?.is_some() {
                ended = Some(Instant::now());
            }
            match ended {
                // A grandchild may hold a pipe open; it gets a moment, and is killed by the caller.
                Some(at) if !open || at.elapsed() > Duration::from_secs(1) => return Ok(true),
                None if start.elapsed() > deadline => return Ok(false),
                _ => {}
            }
            // With the pipes closed, the end is a matter of microseconds; else the pipes wake us.
            self.step(if open { 20 } else { 1 })?;
        }
    }

    fn step(&mut self, timeout_ms: u16) -> Result<()> {
        let waits = [
            (self.out.as_ref().map(AsFd::as_fd), PollFlags::POLLIN),
            (self.err.as_ref().map(AsFd::as_fd), PollFlags::POLLIN),
            (self.to.as_ref().map(AsFd::as_fd), PollFlags::POLLOUT),
        ];
        let open = |(fd, flags): (Option<_>, _)| fd.map(|fd| PollFd::new(fd, flags));
        let mut fds: Vec<PollFd<'_>> = waits.into_iter().filter_map(open).collect();
        match poll(&mut fds, PollTimeout::from(timeout_ms)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => bail!("poll a child's pipes: {errno}"),
        }
        drain(&mut self.out, &mut self.stdout)?;
        drain(&mut self.err, &mut self.stderr)?;
        feed(&mut self.to, &mut self.rest)
    }
}

/// Reads what is there; at its end the pipe is closed.
fn drain(pipe: &mut Option<impl Read>, into: &mut Vec<u8>) -> Result<()> {
    let Some(from) = pipe else { return Ok(()) };
    match from.read_to_end(into) {
        Ok(_) => *pipe = None,
        Err(error) if error.kind() == ErrorKind::WouldBlock => {}
        Err(error) => return Err(error).context("read a child's output"),
    }
    Ok(())
}

/// Writes what the pipe takes; closes it when all is written or the child does not read.
fn feed(pipe: &mut Option<impl Write>, rest: &mut &[u8]) -> Result<()> {
    let Some(to) = pipe else { return Ok(()) };
    match to.write(rest) {
        Ok(written) => *rest = &rest[written..],
        Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => *rest = &[],
        Err(error) => return Err(error).context("write a child's stdin"),
    }
    if rest.is_empty() {
        *pipe = None;
    }
    Ok(())
}

/// A program that runs until it is told to end; killed with its process group when dropped.
pub struct Daemon {
    name: String,
    child: Child,
    log_path: PathBuf,
    detached: bool,
}

impl Daemon {
    /// Starts `command` with stdout and stderr going to the file `log_path` (appended).
    pub fn spawn(name: &str, command: &mut Command, log_path: &Path) -> Result<Self> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(log_path)
            .with_context(|| format!("open the log {}", log_path.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0);
        let child = command
            .spawn()
            .with_context(|| format!("start {name}: {}", line(command)))?;
        let log_path = log_path.to_owned();
        Ok(Self {
            name: name.to_owned(),
            child,
            log_path,
            detached: false,
        })
    }

    /// Its process id, which is also its process group's.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its output goes.
    pub fn log_path(&self) -> &Path {
        &self.log_path
    }

    /// The last `lines` lines of its output, for failure messages.
    pub fn log_tail(&self, lines: usize) -> String {
        log_tail(&self.log_path, lines)
    }

    /// How it ended, when it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    /// Waits until `look` is done; fails at once, with the log's tail, when the daemon ends before.
    pub fn wait_until<T>(
        &mut self,
        what: &str,
        deadline: Duration,
        mut look: impl FnMut() -> Result<Look<T>>,
    ) -> Result<T> {
        let (name, log_path) = (self.name.clone(), self.log_path.clone());
        let child = &mut self.child;
        wait::until(what, deadline, || {
            if let Some(status) = child.try_wait()? {
                bail!("{name} ended ({status}) before {what}");
            }
            look()
        })
        .with_context(|| format!("{name}; the end of its log:\n{}", log_tail(&log_path, 20)))
    }

    /// Sends `signal` to the daemon alone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        nix::sys::signal::kill(pid_of(&self.child), signal)
            .with_context(|| format!("send {signal} to {}", self.name))
    }

    /// Sends SIGTERM and waits for the end; how it ended and how long that took.
    pub fn terminate(mut self, deadline: Duration) -> Result<(ExitStatus, Duration)> {
        let start = Instant::now();
        self.signal(Signal::SIGTERM)?;
        let child = &mut self.child;
        let status = wait::until("the end after SIGTERM", deadline, || {
            Ok(match child.try_wait()? {
                Some(status) => Look::Done(status),
                None => Look::NotYet("still running".to_owned()),
            })
        });
        let status = status.with_context(|| format!("{}:\n{}", self.name, self.log_tail(20)))?;
        Ok((status, start.elapsed()))
    }

    /// Kills it as a crash would: SIGKILL to its process group.
    pub fn kill(mut self) {
        self.end();
    }

    /// Lets it run on after this process has ended.
    pub fn detach(mut self) {
        self.keep();
    }

    /// Lets it run on when this is dropped.
    pub fn keep(&mut self) {
        self.detached = true;
    }

    fn end(&mut self) {
        let _ = killpg(pid_of(&self.child), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !self.detached {
            self.end();
        }
    }
}

/// The last `lines` lines of a log file; an unreadable one says so.
pub fn log_tail(path: &Path, lines: usize) -> String {
    match std::fs::read(path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let all: Vec<&str> = text.lines().collect();
            all[all.len().saturating_sub(lines)..].join("\n")
        }
        Err(error) => format!("(no log {}: {error})", path.display()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn a_program_gets_all_of_its_stdin_and_gives_all_of_its_output() {
        let input = vec![b'x'; 1_000_000];
        let output = run(&mut shell("cat; echo err >&2; exit 3"), &input, DEADLINE).unwrap();
        assert_eq!((output.stdout.len(), output.code()), (1_000_000, 3));
        assert_eq!(output.stderr, b"err\n");
    }

    #[test]
    fn a_program_past_its_deadline_is_killed_and_named() {
        let error = run(
            &mut shell("echo so far >&2; sleep 60"),
            b"",
            Duration::from_millis(200),
        )
        .unwrap_err()
        .to_string();
        assert!(
            error.contains("did not end within 200ms") && error.contains("so far"),
            "{error}"
        );
    }

    #[test]
    fn a_program_that_does_not_read_its_stdin_is_no_error() {
        let output = run(&mut shell("exit 0"), &vec![b'x'; 1_000_000], DEADLINE).unwrap();
        assert!(output.status.success());
    }

    #[test]
    fn a_daemon_that_ends_early_is_reported_with_its_log() {
        let log = std::env::temp_dir().join(format!("twh-log-{}", std::process::id()));
        let mut daemon = Daemon::spawn("crasher", &mut shell("echo boom; exit 1"), &log).unwrap();
        let error = daemon
            .wait_until::<()>("never", DEADLINE, || Ok(Look::NotYet("no".to_owned())))
            .unwrap_err();
        let _ = std::fs::remove_file(&log);
        assert!(format!("{error:#}").contains("boom"), "{error:#}");
    }
}
