//! A virtual machine with the distribution's kernel, for what the kernel at hand lacks and for what
//! must also work on an older one.
//!
//! ```text
//!  script + files ─▶ initramfs ─▶ qemu ─▶ serial console ─▶ lines as they come, exit code at the end
//! ```
//!
//! It has no disk and no network card: everything is in the initramfs, and networks are namespaces
//! inside. The processor is emulated in software unless the machine at hand says that it can help.

mod cpio;
mod initramfs;
mod kernel;

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

pub use self::initramfs::File;
pub use self::kernel::Kernel;

use crate::netns;
use crate::tools::{self, Missing};

/// A machine that can be started; each run is a fresh one.
#[derive(Debug, Clone)]
pub struct Vm {
    /// What it boots.
    pub kernel: Kernel,
    /// Its memory, in MiB. The initramfs lives in it.
    pub memory_mib: u32,
    /// Its processors.
    pub processors: u8,
    /// How long a run may take, from power on to power off.
    pub deadline: Duration,
    qemu_path: PathBuf,
}

/// What a run left behind.
#[derive(Debug, Clone)]
pub struct Output {
    /// The script's exit code.
    pub code: i32,
    /// Everything that the script wrote to stdout and stderr.
    pub text: String,
    /// From power on to power off.
    pub took: Duration,
}

impl Output {
    /// The output, if the script succeeded; else an error with its end.
    pub fn success(self) -> Result<Self> {
        if self.code != 0 {
            let lines: Vec<&str> = self.text.lines().collect();
            let end = lines[lines.len().saturating_sub(40)..].join("\n");
            bail!("the script ended with {} in the machine:\n{end}", self.code);
        }
        Ok(self)
    }
}

impl Vm {
    /// A machine with 1 GiB, two processors and a quarter of an hour, if this one has what it takes.
    pub fn find() -> Result<Self, Missing> {
        if std::env::consts::ARCH != "x86_64" {
            let remedy = "the virtual machine is tried on x86_64 only";
            return Err(Missing::new("qemu-system-x86_64", remedy));
        }
        Ok(Self {
            kernel: Kernel::find()?,
            memory_mib: 1024,
            processors: 2,
            deadline: Duration::from_secs(900),
            qemu_path: tools::program("qemu-system-x86_64")?,
        })
    }

    /// Boots, runs `script` (it needs a `#!` line) as root with `files` in place, and powers off.
    /// Every line that the script writes goes to `progress` as it comes.
    ///
    /// Fails if the machine does not come to its end within the deadline or loses the script.
    pub fn run_with(
        &self,
        script: &str,
        files: &[File],
        progress: impl FnMut(&str),
    ) -> Result<Output> {
        let archive = initramfs::build(&self.kernel, script, files)?;
        let path = std::env::temp_dir().join(netns::unique_name("initramfs"));
        std::fs::write(&path, archive).with_context(|| format!("write {}", path.display()))?;
        let mut machine = Machine::start(self.command(&path))?;
        let output = machine.watch(self.deadline, progress);
        let _ = std::fs::remove_file(&path);
        output
    }

    /// As [`Vm::run_with`], with the lines going to this process' stderr.
    pub fn run(&self, script: &str, files: &[File]) -> Result<Output> {
        self.run_with(script, files, |line| eprintln!("vm: {line}"))
    }

    fn command(&self, initramfs_path: &Path) -> Command {
        let mut qemu = Command::new(&self.qemu_path);
        let [accelerator, processor] = match processor_helps() {
            true => ["kvm", "host"],
            // Every instruction set that the emulator knows, for programs built for newer ones.
            false => ["tcg,thread=multi", "max"],
        };
        qemu.args(["-nodefaults", "-no-user-config", "-nographic", "-no-reboot"])
            .args(["-accel", accelerator, "-cpu", processor])
            .args(["-m", &self.memory_mib.to_string()])
            .args(["-smp", &self.processors.to_string()])
            .args(["-serial", "stdio"])
            .arg("-kernel")
            .arg(&self.kernel.image_path)
            .arg("-initrd")
            .arg(initramfs_path)
            // A panic ends the machine at once. Mitigations cost an emulated processor time only. The
            // timer is looked at for a few real milliseconds, which on a busy machine an emulated
            // processor may not get: the kernel then takes it for broken, and hangs.
            .args([
                "-append",
                "console=ttyS0 quiet panic=-1 mitigations=off random.trust_cpu=on no_timer_check",
            ]);
        qemu
    }
}

/// Whether the processor is said to virtualise. /dev/kvm alone does not tell: it is there on
/// machines whose own hypervisor makes guests hang in it.
fn processor_helps() -> bool {
    let usable = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm");
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let told = flags
        .split_whitespace()
        .any(|flag| flag == "vmx" || flag == "svm");
    usable.is_ok() && told
}

/// A running machine; killed when dropped.
struct Machine {
    child: Child,
    console: Receiver<String>,
}

impl Machine {
    fn start(mut command: Command) -> Result<Self> {
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let mut child = command.spawn().context("start qemu")?;
        let (sender, console) = mpsc::channel();
        let streams: [Option<Box<dyn std::io::Read + Send>>; 2] = [
            child.stdout.take().map(|stream| Box::new(stream) as _),
            child.stderr.take().map(|stream| Box::new(stream) as _),
        ];
        for stream in streams.into_iter().flatten() {
            let sender = sender.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                    let line = String::from_utf8_lossy(&line)
                        .trim_end_matches('\r')
                        .to_owned();
                    if sender.send(line).is_err() {
                        break;
                    }
                }
            });
        }
        Ok(Self { child, console })
    }

    fn watch(&mut self, deadline: Duration, mut progress: impl FnMut(&str)) -> Result<Output> {
        let start = Instant::now();
        let mut console = Console::default();
        loop {
            let left = deadline.saturating_sub(start.elapsed());
            match self.console.recv_timeout(left) {
                Ok(line) => {
                    if let Some(line) = console.take(line) {
                        progress(line);
                    }
                }
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => bail!(
                    "the machine was not done within {deadline:?}; the end of its console:\n{}",
                    console.end()
                ),
            }
        }
        self.child.wait().context("wait for qemu")?;
        let Some(code) = console.code else {
            bail!(
                "the machine ended without a result; the end of its console:\n{}",
                console.end()
            );
        };
        Ok(Output {
            code,
            text: console.script,
            took: start.elapsed(),
        })
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _ = self.child.wait();
    }
}

/// The serial console, line by line: firmware and kernel, then the script, then its exit code.
#[derive(Debug, Default)]
struct Console {
    before: Vec<String>,
    begun: bool,
    script: String,
    code: Option<i32>,
}

impl Console {
    /// Takes a line in, and gives it back if the script wrote it.
    fn take(&mut self, line: String) -> Option<&str> {
        if let Some(code) = line.strip_prefix(initramfs::RESULT) {
            self.code = code.trim().parse().ok();
            return None;
        }
        if line == initramfs::BEGIN {
            self.begun = true;
            return None;
        }
        if !self.begun || self.code.is_some() {
            self.before.push(line);
            return None;
        }
        let start = self.script.len();
        self.script.push_str(&line);
        self.script.push('\n');
        Some(&self.script[start..start + line.len()])
    }

    fn end(&self) -> String {
        let all = self
            .before
            .iter()
            .map(String::as_str)
            .chain(self.script.lines());
        let all: Vec<&str> = all.collect();
        all[all.len().saturating_sub(30)..].join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_script_wrote_is_told_apart_from_the_kernel() {
        let mut console = Console::default();
        let said = [
            "SeaBIOS",
            "@@ begin",
            "one",
            "two",
            "",
            "@@ exit 3",
            "Power down",
        ];
        let taken: Vec<String> = said
            .iter()
            .filter_map(|line| console.take((*line).to_owned()).map(str::to_owned))
            .collect();
        assert_eq!(taken, ["one", "two", ""]);
        assert_eq!(
            (console.script.as_str(), console.code),
            ("one\ntwo\n\n", Some(3))
        );
        assert_eq!(console.before, ["SeaBIOS", "Power down"]);
    }
}
