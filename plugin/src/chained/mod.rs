//! The plugins that stand in a chain behind a main plugin, by their own names: `portmap`,
//! `bandwidth`, `tuning`; and `loopback`, which runtimes call beside it.
//!
//! ```text
//!  environment, stdin ──▶ Call ──▶ portmap ─── crate::hostports
//!                                  bandwidth ─ crate::bandwidth
//!                                  tuning ──── crate::tuning
//!                                  loopback
//!  prevResult ──▶ Previous ──────▶ passed on, with what was added ──▶ stdout
//! ```
//!
//! What they do is in the rooms on the right, which the main plugin uses too. Here is how it is
//! asked for: environment and config in, prevResult through, and nothing needed by DEL and GC but
//! names.

mod bandwidth;
mod loopback;
mod portmap;
mod previous;
mod tuning;

use std::io::Read;

use kernel::netns::NetnsError;
use kernel::{Netns, Socket};
use serde::Deserialize;

use crate::Process;
use crate::attachment::Attachment;
use crate::config::Header;
use crate::error::{Code, Error};
use crate::invocation::{Container, Invocation, Sandboxed, Verb};
use crate::node::host_netns;
use crate::version::{self, Version};

/// A plugin of this room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chained {
    /// Host ports.
    Portmap,
    /// Limits of what a pod receives and sends.
    Bandwidth,
    /// Settings and attributes of a pod's interface.
    Tuning,
    /// A sandbox's loopback device.
    Loopback,
}

impl Chained {
    /// All of them.
    pub const ALL: [Chained; 4] = [
        Chained::Portmap,
        Chained::Bandwidth,
        Chained::Tuning,
        Chained::Loopback,
    ];

    /// The name it is installed under.
    pub const fn name(self) -> &'static str {
        match self {
            Chained::Portmap => "portmap",
            Chained::Bandwidth => "bandwidth",
            Chained::Tuning => "tuning",
            Chained::Loopback => "loopback",
        }
    }

    /// The plugin of that name.
    pub fn named(name: &str) -> Option<Chained> {
        Chained::ALL
            .into_iter()
            .find(|plugin| plugin.name() == name)
    }

    /// The first version of the specification that it speaks.
    const fn oldest(self) -> Version {
        match self {
            Chained::Bandwidth => Version::V0_3_0,
            _ => Version::V0_1_0,
        }
    }

    fn version_of(self, header: &Header) -> Result<Version, Error> {
        let known = Version::of_config(&header.version).ok();
        if let Some(version) = known.filter(|version| *version >= self.oldest()) {
            return Ok(version);
        }
        let details = format!(
            "config is {:?}, plugin supports [{}]",
            header.version,
            self.versions(" ")
        );
        Err(Error::new(Code::IncompatibleVersion, "incompatible CNI versions").details(details))
    }

    /// The versions that it speaks, in quotes.
    fn versions(self, separator: &str) -> String {
        let spoken = Version::ALL.into_iter().filter(|v| *v >= self.oldest());
        let quoted: Vec<String> = spoken.map(|v| format!("{:?}", v.as_str())).collect();
        quoted.join(separator)
    }

    /// The answer to VERSION, with its newline.
    fn announcement(self) -> String {
        format!(
            "{{\"cniVersion\":\"{}\",\"supportedVersions\":[{}]}}\n",
            Version::LATEST,
            self.versions(",")
        )
    }
}

/// Runs one verb of a plugin and returns the exit code: 0, or 1 with an error document on stdout.
pub fn run(plugin: Chained, process: Process<'_>) -> i32 {
    let mut spoken = Version::LATEST;
    let answer = match Invocation::from_env(process.env) {
        Err(error) => Err(error),
        Ok(Invocation::About) => {
            let about = version::about(plugin.name(), plugin.oldest());
            let _ = process.stderr.write_all(about.as_bytes());
            return 0;
        }
        Ok(Invocation::Version) => Ok(plugin.announcement()),
        Ok(Invocation::Verb(verb)) => read(process.stdin).and_then(|text| {
            let header = Header::parse(&text)?;
            spoken = Version::of_config(&header.version).unwrap_or(Version::LATEST);
            if plugin == Chained::Tuning && matches!(verb, Verb::Add(_) | Verb::Check(_)) {
                // Not to be seen in what was parsed.
                crate::tuning::refuse_repeated_sysctl(&text)?;
            }
            dispatch(plugin, &header, &verb)
        }),
    };
    let (code, document) = match answer {
        Ok(document) => (0, document),
        Err(error) => (1, error.render(spoken)),
    };
    let written = process.stdout.write_all(document.as_bytes());
    match written.and_then(|()| process.stdout.flush()) {
        Ok(()) => code,
        Err(error) => {
            let _ = writeln!(process.stderr, "twill: write the answer: {error}");
            1
        }
    }
}

fn read(stdin: &mut dyn Read) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::with_capacity(4096);
    stdin
        .read_to_end(&mut bytes)
        .map_err(|error| Error::new(Code::Io, format!("error reading from stdin: {error}")))?;
    Ok(bytes)
}

/// Does a verb of a plugin; the document for stdout is empty where the specification wants none.
pub(crate) fn dispatch(plugin: Chained, header: &Header, verb: &Verb) -> Result<String, Error> {
    let silent = |done: Result<(), Error>| done.map(|()| String::new());
    match verb {
        Verb::Add(request) => {
            let call = Call::new(plugin.version_of(header)?, header, request)?;
            match plugin {
                Chained::Portmap => portmap::add(&call),
                Chained::Bandwidth => bandwidth::add(&call),
                Chained::Tuning => tuning::add(&call),
                Chained::Loopback => loopback::add(&call),
            }
        }
        Verb::Check(request) => {
            Version::of_config_since(&header.version, "CHECK", Version::V0_4_0)?;
            let call = Call::new(plugin.version_of(header)?, header, request)?;
            silent(match plugin {
                Chained::Portmap => portmap::check(&call),
                Chained::Bandwidth => bandwidth::check(&call),
                Chained::Tuning => tuning::check(&call),
                Chained::Loopback => loopback::check(&call),
            })
        }
        Verb::Del(request) => {
            plugin.version_of(header)?;
            let gone = Gone { header, request };
            silent(match plugin {
                Chained::Portmap => portmap::del(&gone),
                Chained::Bandwidth => bandwidth::del(&gone),
                Chained::Tuning => tuning::del(&gone),
                Chained::Loopback => loopback::del(&gone),
            })
        }
        Verb::Status => {
            Version::of_config_since(&header.version, "STATUS", Version::V1_1_0)?;
            Ok(String::new())
        }
        Verb::Gc => {
            Version::of_config_since(&header.version, "GC", Version::V1_1_0)?;
            silent(collect(plugin, header))
        }
        Verb::Unknown(command) => {
            let msg = format!("unknown CNI_COMMAND: {command}");
            Err(Error::new(Code::InvalidEnvironment, msg))
        }
    }
}

/// The result of the plugins before this one, as it is handed on by one that adds nothing to it.
#[cfg(feature = "fuzz")]
pub(crate) fn passed_on(header: &Header, version: Version) -> Result<String, Error> {
    previous::Previous::required(header, version, "no prevResult")?.render()
}

/// ADD or CHECK, for a sandbox that is there.
struct Call<'a> {
    version: Version,
    header: &'a Header,
    request: &'a Sandboxed,
    home: Netns,
    sandbox: Netns,
}

impl<'a> Call<'a> {
    /// Refuses the node's own namespace before anything is done in it.
    fn new(version: Version, header: &'a Header, request: &'a Sandboxed) -> Result<Self, Error> {
        let home = Netns::current().map_err(refused)?;
        let sandbox = Netns::open(&request.netns).map_err(|error| match error {
            NetnsError::Missing { .. } => Error::new(Code::UnknownContainer, error.to_string()),
            error => Error::new(Code::InvalidEnvironment, format!("CNI_NETNS: {error}")),
        })?;
        if !request.netns_override && sandbox.is(&home).map_err(refused)? {
            return Err(host_netns());
        }
        Ok(Call {
            version,
            header,
            request,
            home,
            sandbox,
        })
    }

    fn attachment(&self) -> Result<Attachment, Error> {
        let Sandboxed {
            container_id,
            ifname,
            ..
        } = self.request;
        Attachment::new(&self.header.name, container_id, ifname)
    }

    fn socket_inside(&self) -> Result<Socket, Error> {
        let opened = self.sandbox.enter(&self.home, Socket::open);
        opened.map_err(refused)?.map_err(refused)
    }
}

/// DEL, for a sandbox that may be gone.
struct Gone<'a> {
    header: &'a Header,
    request: &'a Container,
}

impl Gone<'_> {
    /// Not checked for its length: what could not be made has nothing to be deleted.
    fn attachment(&self) -> Attachment {
        Attachment {
            network: self.header.name.clone(),
            container_id: self.request.container_id.clone(),
            ifname: self.request.ifname.clone(),
        }
    }

    /// The sandbox, if it is one and is still there, and the way back. The node's own is an error.
    fn sandbox(&self) -> Result<Option<(Netns, Netns)>, Error> {
        let Some(path) = &self.request.netns else {
            return Ok(None);
        };
        let sandbox = match Netns::open(path) {
            Ok(sandbox) => sandbox,
            Err(NetnsError::Missing { .. } | NetnsError::NotANamespace { .. }) => return Ok(None),
            Err(error) => return Err(refused(error)),
        };
        let home = Netns::current().map_err(refused)?;
        if !self.request.netns_override && sandbox.is(&home).map_err(refused)? {
            return Err(host_netns());
        }
        Ok(Some((sandbox, home)))
    }
}

#[derive(Debug, Deserialize)]
struct Valid {
    #[serde(rename = "containerID")]
    container_id: String,
    ifname: String,
}

/// GC: what belongs to no attachment that the runtime lists. Without a list nothing is known, and
/// nothing is collected.
fn collect(plugin: Chained, header: &Header) -> Result<(), Error> {
    let keys = ["cni.dev/valid-attachments", "cni.dev/attachments"];
    let found = (keys.iter()).find_map(|key| Some((key, go_json::field(&header.config, key)?)));
    let Some((key, list)) = found else {
        return Ok(());
    };
    let valid: Option<Vec<Valid>> = go_json::from_value(list)
        .map_err(|error| Error::new(Code::Decode, format!("{key}: {error}")))?;
    let valid = valid.unwrap_or_default();
    let keep = |container_id: &str, ifname: &str| {
        let is = |v: &Valid| v.container_id == container_id && v.ifname == ifname;
        valid.iter().any(is)
    };
    match plugin {
        Chained::Portmap => crate::hostports::gc(&header.name, &keep),
        Chained::Bandwidth => {
            let mut socket = Socket::open().map_err(refused)?;
            crate::bandwidth::gc(&mut socket, &header.name, &keep)
        }
        // What they change goes with the sandbox; backups name no network.
        Chained::Tuning | Chained::Loopback => Ok(()),
    }
}

fn refused(error: impl std::fmt::Display) -> Error {
    Error::new(Code::Kernel, error.to_string())
}
