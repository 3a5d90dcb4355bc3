//! twill, the CNI plugin: started by a container runtime once per pod and verb.
//!
//! ```text
//!  environment ─▶ invocation ─┐
//!  CNI_ARGS ────▶ cni_args    ├─▶ config ──▶ ipam ────────▶ plan ───▶ node ───▶ result ─▶ stdout
//!  stdin ───────▶ config      │   flannel    reservation    steps     kernel
//!  subnet.env ──▶ subnet_env ─┘   bridge     (files, lock)  and undo
//!
//!  pure: invocation cni_args config file_path subnet_env ipam::{range, allocator} attachment plan
//!        masquerade spoof_check result
//!  thin: network arrival scratch (files)  ipam::store (files, lock)  node (kernel)
//!        sweeper (the daemon, which deletes what DEL only quiesces)
//!  verbs: add del check status gc, and host_local for the program of that name
//! ```
//!
//! Pods are ports of a bridge, or routed without one (`config::mode`, `plan::routed`). What is
//! elsewhere chained behind is [`chained`] here, by its own names, and `builtin` where the
//! network's own config asks for it: hostports, bandwidth, tuning.
//!
//! [`run`] is the whole program with its surroundings injected. It starts no thread, and no other
//! process but the plugins that a config delegates to (`delegate`). Whatever a killed ADD leaves,
//! DEL finds by the names of its `attachment` alone.

mod add;
mod address;
mod arrival;
mod attachment;
mod bandwidth;
mod builtin;
pub mod chained;
mod check;
mod cni_args;
mod config;
mod del;
mod delegate;
mod error;
mod file_path;
#[cfg(feature = "fuzz")]
pub mod fuzz;
mod gc;
mod host_local;
mod hostports;
mod invocation;
mod ipam;
mod legacy_masquerade;
mod masquerade;
mod network;
mod node;
mod plan;
mod result;
mod scratch;
mod sha512;
mod spoof_check;
mod status;
mod subnet_env;
mod sweeper;
mod tuning;
mod version;
mod xtables;

use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::path::Path;

use chained::Chained;
use config::Header;
use config::flannel::Dialect;
use delegate::Delegates;
use error::{Code, Error};
use invocation::{Invocation, Verb};
use ipam::Owner;
use version::Version;

/// The surroundings of a run.
pub struct Process<'a> {
    /// `argv[0]`: its file name says which plugin is asked for.
    pub program: &'a OsStr,
    /// The environment.
    pub env: &'a dyn Fn(&str) -> Option<OsString>,
    /// The config.
    pub stdin: &'a mut dyn Read,
    /// One JSON document, or nothing.
    pub stdout: &'a mut dyn Write,
    /// Words for people.
    pub stderr: &'a mut dyn Write,
}

/// What the program is, by the name that it was installed under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plugin {
    /// A bridge: of a node's flannel or twill subnet, or as its own config says.
    Network(Dialect),
    /// IPAM alone.
    HostLocal,
}

impl Plugin {
    /// The plugin of that file name; a name that says nothing is twill's.
    fn named(program: &OsStr) -> (Plugin, &'static str) {
        match Path::new(program).file_name().and_then(OsStr::to_str) {
            Some("flannel") => (Plugin::Network(Dialect::Flannel), "flannel"),
            Some("bridge") => (Plugin::Network(Dialect::Bridge), "bridge"),
            Some("host-local") => (Plugin::HostLocal, "host-local"),
            _ => (Plugin::Network(Dialect::Twill), "twill"),
        }
    }
}

/// Runs one verb and returns the exit code: 0, or 1 with an error document on stdout.
pub fn run(process: Process<'_>) -> i32 {
    let file_name = Path::new(process.program).file_name();
    let chained = file_name.and_then(OsStr::to_str).and_then(Chained::named);
    if let Some(plugin) = chained {
        return chained::run(plugin, process);
    }
    let Process {
        program,
        env,
        stdin,
        stdout,
        stderr,
    } = process;
    let (plugin, name) = Plugin::named(program);
    let mut version = Version::LATEST;
    let answer = match Invocation::from_env(env) {
        Err(error) => Err(error),
        Ok(Invocation::About) => {
            let _ = stderr.write_all(version::about(name, Version::V0_1_0).as_bytes());
            return 0;
        }
        Ok(Invocation::Version) => Ok(version::announcement()),
        Ok(Invocation::Verb(verb)) => {
            note_trace(env, stderr);
            header(stdin).and_then(|header| {
                version = Version::of_config(&header.version).unwrap_or(Version::LATEST);
                dispatch(plugin, &header, &verb, Delegates { env }, stderr)
            })
        }
    };
    let (code, document) = match answer {
        Ok(document) => (0, document),
        Err(error) => (1, error.render(version)),
    };
    match stdout
        .write_all(document.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Ok(()) => code,
        Err(error) => {
            let _ = writeln!(stderr, "twill: write the answer: {error}");
            1
        }
    }
}

/// Says which trace of the runtime's this run is part of (W3C Trace Context), if it says so.
fn note_trace(env: &dyn Fn(&str) -> Option<OsString>, stderr: &mut dyn Write) {
    let trace = env("TRACEPARENT").and_then(|value| value.into_string().ok());
    let is_one = |trace: &String| {
        let mut bytes = trace.bytes();
        trace.len() <= 64 && bytes.all(|b| b.is_ascii_hexdigit() || b == b'-')
    };
    if let Some(trace) = trace.filter(|trace| !trace.is_empty()).filter(is_one) {
        let _ = writeln!(stderr, "twill: traceparent={trace}");
    }
}

fn header(stdin: &mut dyn Read) -> Result<Header, Error> {
    let mut bytes = Vec::with_capacity(4096);
    stdin
        .read_to_end(&mut bytes)
        .map_err(|error| Error::new(Code::Io, format!("error reading from stdin: {error}")))?;
    Header::parse(&bytes)
}

/// Does the verb; the document for stdout is empty where the specification wants none.
fn dispatch(
    plugin: Plugin,
    header: &Header,
    verb: &Verb,
    delegates: Delegates<'_>,
    stderr: &mut dyn Write,
) -> Result<String, Error> {
    let silent = |done: Result<(), Error>| done.map(|()| String::new());
    match (plugin, verb) {
        (_, Verb::Unknown(command)) => {
            let msg = format!("unknown CNI_COMMAND: {command}");
            Err(Error::new(Code::InvalidEnvironment, msg))
        }
        (Plugin::Network(dialect), Verb::Add(request)) => {
            add::add(header, request, dialect, delegates)
        }
        (Plugin::Network(dialect), Verb::Del(request)) => {
            silent(del::del(header, request, dialect, delegates, stderr))
        }
        (Plugin::Network(dialect), Verb::Check(request)) => {
            silent(check::check(header, request, dialect, delegates))
        }
        (Plugin::Network(dialect), Verb::Status) => {
            silent(status::status(header, dialect, delegates))
        }
        (Plugin::Network(dialect), Verb::Gc) => silent(gc::gc(header, dialect, delegates, stderr)),
        (Plugin::HostLocal, Verb::Add(request)) => {
            let owner = owner(&request.container_id, &request.ifname);
            host_local::add(header, &owner, &request.args)
        }
        (Plugin::HostLocal, Verb::Del(request)) => {
            let owner = owner(&request.container_id, &request.ifname);
            silent(host_local::del(header, &owner))
        }
        (Plugin::HostLocal, Verb::Check(request)) => {
            let owner = owner(&request.container_id, &request.ifname);
            silent(host_local::check(header, &owner, &request.args))
        }
        (Plugin::HostLocal, Verb::Status) => silent(host_local::status(header)),
        (Plugin::HostLocal, Verb::Gc) => silent(host_local::gc(header, stderr)),
    }
}

fn owner<'a>(container_id: &'a str, ifname: &'a str) -> Owner<'a> {
    Owner {
        container_id,
        ifname,
    }
}
