//! Other plugins, run as the specification says for delegated ones (CNI 1.1.0, section 4): looked
//! for in CNI_PATH, with this run's environment and the whole config on stdin.
//!
//! Only where a config asks for a type that is not built in: [`ipam`] for its `ipam.type`,
//! [`mod@main`] for flannel's `delegate.type`. What they are asked, and when, is there; here is how a
//! program is run and its answer read. Their errors are the runtime's as they are.

pub(crate) mod ipam;
pub(crate) mod main;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Seek as _, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpid, getppid};
use serde::Deserialize;
use serde_json::Value;

use crate::config::Header;
use crate::error::{Code, Error};

/// The variables of the specification, which are handed on; so is everything else that this
/// process has.
const VARIABLES: [&str; 7] = [
    "CNI_CONTAINERID",
    "CNI_NETNS",
    "CNI_IFNAME",
    "CNI_ARGS",
    "CNI_PATH",
    "CNI_NETNS_OVERRIDE",
    "TRACEPARENT",
];

/// The lists that the runtime gives GC.
const GC_KEYS: [&str; 2] = ["cni.dev/valid-attachments", "cni.dev/attachments"];

/// What a plugin is run in.
#[derive(Clone, Copy)]
pub(crate) struct Delegates<'a> {
    /// This run's environment.
    pub(crate) env: &'a dyn Fn(&str) -> Option<OsString>,
}

/// Another plugin, with the config that it is given.
#[derive(Clone, Copy)]
pub(crate) struct Delegate<'a> {
    /// How plugins are run.
    pub(crate) delegates: Delegates<'a>,
    /// Its type, and so its program's name.
    pub(crate) kind: &'a str,
    /// The config of a main plugin, whole.
    pub(crate) config: &'a Value,
}

impl Delegate<'_> {
    /// Tells it to take away what it made.
    pub(crate) fn del(&self) -> Result<(), Error> {
        self.delegates.tell(self.kind, "DEL", self.config)
    }

    /// Asks whether all is as it was made.
    pub(crate) fn check(&self, header: &Header) -> Result<(), Error> {
        let config = with_keys(self.config, &header.config, &["prevResult"]);
        self.delegates.tell(self.kind, "CHECK", &config)
    }

    /// Asks whether an ADD could be served.
    pub(crate) fn status(&self) -> Result<(), Error> {
        self.delegates.tell(self.kind, "STATUS", self.config)
    }

    /// Hands on which attachments are valid.
    pub(crate) fn gc(&self, header: &Header) -> Result<(), Error> {
        let config = with_keys(self.config, &header.config, &GC_KEYS);
        self.delegates.tell(self.kind, "GC", &config)
    }

    fn add(&self) -> Result<Vec<u8>, Error> {
        self.delegates.run(self.kind, "ADD", self.config)
    }
}

impl<'a> Delegates<'a> {
    /// The plugin of a type.
    pub(crate) fn plugin(self, kind: &'a str, config: &'a Value) -> Delegate<'a> {
        Delegate {
            delegates: self,
            kind,
            config,
        }
    }
}

impl Delegates<'_> {
    /// Runs a plugin for a verb and returns what it says on stdout; its stderr is ours.
    ///
    /// It is killed with this process: a runtime that gives up and calls DEL must not be overtaken
    /// by what an earlier ADD still does.
    fn run(&self, plugin: &str, verb: &str, config: &Value) -> Result<Vec<u8>, Error> {
        let program = self.find(plugin)?;
        let failed = |error: io::Error| {
            // It is being installed by somebody who does not do that by rename.
            let code = match error.kind() {
                ErrorKind::ExecutableFileBusy => Code::TryAgain,
                _ => Code::InvalidEnvironment,
            };
            let msg = format!("run plugin {plugin:?} ({}): {error}", program.display());
            Error::new(code, msg)
        };
        let mut command = Command::new(&program);
        command
            .env("CNI_COMMAND", verb)
            .stdin(stdin_of(config).map_err(failed)?)
            .stderr(Stdio::inherit());
        for name in VARIABLES {
            match (self.env)(name) {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        let parent = getpid();
        // SAFETY: both calls are async-signal-safe and allocate nothing, as is wanted of what runs
        // between fork and exec.
        unsafe { command.pre_exec(move || die_with(parent)) };
        let answer = command.output().map_err(failed)?;
        match answer.status.success() {
            true => Ok(answer.stdout),
            false => Err(their_error(
                plugin,
                &answer.stdout,
                &answer.status.to_string(),
            )),
        }
    }

    /// The same, for a verb that has no answer.
    fn tell(&self, plugin: &str, verb: &str, config: &Value) -> Result<(), Error> {
        self.run(plugin, verb, config).map(drop)
    }

    fn find(&self, plugin: &str) -> Result<PathBuf, Error> {
        let path = (self.env)("CNI_PATH").unwrap_or_default();
        let dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
        let refused = |code, reason: &str| {
            let dirs: Vec<_> = dirs.iter().map(|dir| dir.to_string_lossy()).collect();
            let dirs = dirs.join(" ");
            let msg = format!("failed to find plugin {plugin:?} in path [{dirs}]{reason}");
            Err(Error::new(code, msg))
        };
        let separates = |c: char| c == '/' || c.is_control();
        if matches!(plugin, "" | "." | "..") || plugin.contains(separates) {
            return refused(Code::InvalidConfig, ": that is no plugin's name");
        }
        let mut candidates = dirs.iter().map(|dir| dir.join(plugin));
        let is_file = |path: &PathBuf| fs::metadata(path).is_ok_and(|meta| meta.is_file());
        match candidates.find(is_file) {
            Some(found) => Ok(found),
            None => refused(Code::InvalidEnvironment, ""),
        }
    }
}

/// A file that holds the config: a pipe would be written to by a process that has to read, too.
fn stdin_of(config: &Value) -> io::Result<Stdio> {
    let text = go_json::to_compact(config).map_err(io::Error::other)?;
    let mut file = File::from(memfd_create(c"config", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    Ok(file.into())
}

/// In the child: be killed when the parent is.
fn die_with(parent: Pid) -> io::Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    match getppid() == parent {
        true => Ok(()),
        false => Err(ErrorKind::Interrupted.into()),
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct TheirError {
    code: u32,
    msg: String,
    details: String,
}

fn their_error(plugin: &str, stdout: &[u8], status: &str) -> Error {
    match go_json::from_slice::<TheirError>(stdout) {
        Ok(theirs) => Error::new(Code::Theirs(theirs.code), theirs.msg).details(theirs.details),
        Err(error) => {
            let said = String::from_utf8_lossy(stdout);
            let msg = format!("plugin {plugin:?} failed ({status}) without an error: {error}");
            Error::new(Code::Decode, msg).details(said)
        }
    }
}

/// The config that ADD had, with what the runtime adds for CHECK or GC.
fn with_keys(config: &Value, of: &Value, keys: &[&str]) -> Value {
    let mut config = config.clone();
    if let Some(object) = config.as_object_mut() {
        for key in keys {
            if let Some(value) = go_json::field(of, key) {
                object.retain(|name, _| !name.eq_ignore_ascii_case(key));
                object.insert((*key).to_owned(), value.clone());
            }
        }
        object.sort_keys();
    }
    config
}
