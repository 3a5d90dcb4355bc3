//! The command line and its environment: flanneld's flags under flanneld's names for what exists,
//! in Go's syntax (`-x` is `--x`, `--x=v` is `--x v`, a bool takes its value only behind `=`), and
//! a few of twill's own. Pure: the arguments and the environment come in.
//!
//! Two things differ from flanneld on purpose: a wrong flag ends with code 2 (flanneld: 0, which a
//! supervisor takes for success), and a flag of flanneld's that is not built yet is refused rather
//! than ignored.

mod migrate;
mod names;
mod stores;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::Ipv4Net;

use self::names::{FLAGS, IGNORED, NOT_BUILT, Spec};
use self::stores::Wished;

pub use self::migrate::{Move, Place};
pub use self::stores::{Kubernetes, StoreChoice};

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flags {
    /// `--iface`, repeatable.
    pub iface: Vec<String>,
    /// `--iface-regex`, repeatable.
    pub iface_regex: Vec<String>,
    /// `--iface-can-reach`.
    pub iface_can_reach: Option<IpAddr>,
    /// `--subnet-file`.
    pub subnet_file: PathBuf,
    /// `--public-ip`.
    pub public_ip: Option<Ipv4Addr>,
    /// `--public-ipv6`.
    pub public_ipv6: Option<Ipv6Addr>,
    /// `--subnet-lease-renew-margin`, minutes.
    pub renew_margin: Duration,
    /// `--ip-masq`.
    pub ip_masq: bool,
    /// `--ip-masq-fully-random-disable`.
    pub fully_random_disable: bool,
    /// `--iptables-forward-rules`.
    pub forward_rules: bool,
    /// `--healthz-ip` and `--healthz-port`; none if the port is 0.
    pub healthz: Option<SocketAddr>,
    /// `-v`: 0 says what changes, from 2 on every operation.
    pub verbosity: u32,
    /// `--store-dir`.
    pub store_dir: PathBuf,
    /// `--store-resync`.
    pub store_resync: Duration,
    /// `--state-dir`.
    pub state_dir: PathBuf,
    /// `--network`.
    pub network: Option<Ipv4Net>,
    /// `--lease-ttl`.
    pub lease_ttl: Duration,
    /// `--on-lease-loss`.
    pub on_lease_loss: OnLeaseLoss,
    /// Which store, with what its own flags say.
    pub store: StoreChoice,
}

/// What to do when somebody else has taken our lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnLeaseLoss {
    /// Say so, and keep the network of the pods that run.
    #[default]
    Keep,
    /// End with an error, as flanneld does.
    Exit,
    /// Take another subnet.
    Renumber,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Run, after saying these warnings.
    Run(Box<Flags>, Vec<String>),
    /// Copy leases from one store to another.
    Migrate(Box<Move>),
    /// Print the version.
    Version,
    /// Print the usage.
    Help,
}

/// A wrong command line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FlagError {
    /// Not a flag of ours.
    #[error("unknown flag --{0}")]
    Unknown(String),
    /// flanneld has it, twilld not yet.
    #[error("flag --{0} is flanneld's and not built into twilld yet: leave it out")]
    NotBuilt(String),
    /// Not Go's syntax.
    #[error("bad flag syntax: {0}")]
    Syntax(String),
    /// No value.
    #[error("flag --{0} needs a value")]
    NoValue(String),
    /// A value of the wrong kind.
    #[error("flag --{name}={value}: {want} is wanted")]
    Value {
        /// The flag.
        name: String,
        /// What was given.
        value: String,
        /// What would be right.
        want: &'static str,
    },
    /// Flags that do not make a store, or not together.
    #[error("{0}")]
    Store(String),
}

const PREFIX: &str = "FLANNELD_";

impl Default for Flags {
    fn default() -> Self {
        Self {
            iface: Vec::new(),
            iface_regex: Vec::new(),
            iface_can_reach: None,
            subnet_file: "/run/flannel/subnet.env".into(),
            public_ip: None,
            public_ipv6: None,
            renew_margin: Duration::from_secs(60 * 60),
            ip_masq: false,
            fully_random_disable: false,
            forward_rules: true,
            healthz: None,
            verbosity: 0,
            store_dir: "/var/lib/twill/store".into(),
            store_resync: Duration::from_secs(30),
            state_dir: "/var/lib/twill".into(),
            network: None,
            lease_ttl: Duration::from_secs(24 * 60 * 60),
            on_lease_loss: OnLeaseLoss::default(),
            store: StoreChoice::default(),
        }
    }
}

/// Flags as far as they are read; the health address comes in two.
#[derive(Default)]
struct Reading {
    flags: Flags,
    stores: Wished,
    migrate: Option<migrate::Given>,
    healthz_ip: Option<IpAddr>,
    healthz_port: u16,
    on_lease_loss: Option<OnLeaseLoss>,
    given: Vec<String>,
    version: bool,
    warnings: Vec<String>,
}

/// Reads the arguments behind the program's name, then the environment for what they leave out.
pub fn parse(args: &[String], env: impl Fn(&str) -> Option<String>) -> Result<Command, FlagError> {
    let mut reading = Reading::default();
    let mut rest = args.iter();
    if args.first().is_some_and(|arg| arg == migrate::VERB) {
        reading.migrate = Some(migrate::Given::default());
        rest.next();
    }
    while let Some(arg) = rest.next() {
        let Some(text) = arg.strip_prefix('-').filter(|text| !text.is_empty()) else {
            reading.extra(arg);
            break;
        };
        let text = text.strip_prefix('-').unwrap_or(text);
        if text.is_empty() {
            if let Some(extra) = rest.next() {
                reading.extra(extra);
            }
            break;
        }
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        if name.is_empty() || name.starts_with('-') {
            // What follows may be a password.
            let name = arg.split('=').next().unwrap_or_default();
            return Err(FlagError::Syntax(name.to_owned()));
        }
        if name == "h" || name == "help" {
            return Ok(Command::Help);
        }
        let of_migrate = reading.migrate.as_ref();
        let takes_value = of_migrate.and_then(|_| migrate::Given::takes_value(name));
        let takes_value = takes_value.map_or_else(|| takes_value_of(name), Ok)?;
        let value = match (value, takes_value) {
            (Some(value), _) => value,
            (None, false) => "true",
            (None, true) => rest
                .next()
                .ok_or_else(|| FlagError::NoValue(name.to_owned()))?,
        };
        if let Some(migrate) = &mut reading.migrate
            && migrate.set(name, value)?
        {
            continue;
        }
        reading.set(name, value)?;
        reading.given.push(name.to_owned());
    }
    if reading.version {
        return Ok(Command::Version);
    }
    reading.environment(&env)?;
    reading.finish(env)
}

fn takes_value_of(name: &str) -> Result<bool, FlagError> {
    if let Some(spec) = FLAGS.iter().find(|spec| spec.name == name) {
        return Ok(spec.takes.is_some());
    }
    if let Some((_, takes)) = IGNORED.iter().find(|(ignored, _)| *ignored == name) {
        return Ok(*takes);
    }
    Err(match NOT_BUILT.contains(&name) {
        true => FlagError::NotBuilt(name.to_owned()),
        false => FlagError::Unknown(name.to_owned()),
    })
}

impl Reading {
    fn extra(&mut self, arg: &str) {
        self.warnings
            .push(format!("ignored: {arg:?} and what follows it"));
    }

    fn environment(&mut self, env: impl Fn(&str) -> Option<String>) -> Result<(), FlagError> {
        let known = FLAGS.iter().map(|spec| spec.name);
        for name in known.chain(NOT_BUILT.iter().copied()) {
            let variable = format!("{PREFIX}{}", name.to_uppercase().replace(['-', '.'], "_"));
            let value = env(&variable).filter(|value| !value.is_empty());
            let Some(value) = value.filter(|_| !self.given.iter().any(|given| given == name))
            else {
                continue;
            };
            if NOT_BUILT.contains(&name) {
                return Err(FlagError::NotBuilt(format!("{name} (from {variable})")));
            }
            if name == "version" {
                continue;
            }
            match self.set(name, &value) {
                Ok(()) => self.given.push(name.to_owned()),
                // Ignored, it would be another cluster's store.
                Err(error) if name == stores::KUBERNETES => return Err(error),
                // Any other wrong value in the environment is not fatal, as with flanneld.
                Err(error) => self.warnings.push(format!("ignored: {variable}: {error}")),
            }
        }
        Ok(())
    }

    fn set(&mut self, name: &str, value: &str) -> Result<(), FlagError> {
        let flags = &mut self.flags;
        match name {
            "iface" => flags.iface.push(value.to_owned()),
            "iface-regex" => match regex_lite::Regex::new(value) {
                Ok(_) => flags.iface_regex.push(value.to_owned()),
                Err(_) => return Err(wrong(name, value, "a regular expression")),
            },
            "iface-can-reach" => flags.iface_can_reach = optional(name, value, "an IP address")?,
            "subnet-file" => flags.subnet_file = value.into(),
            "public-ip" => flags.public_ip = optional(name, value, "an IPv4 address")?,
            "public-ipv6" => flags.public_ipv6 = optional(name, value, "an IPv6 address")?,
            "subnet-lease-renew-margin" => flags.renew_margin = minutes(name, value)?,
            "ip-masq" => flags.ip_masq = boolean(name, value)?,
            "ip-masq-fully-random-disable" => flags.fully_random_disable = boolean(name, value)?,
            "iptables-forward-rules" => flags.forward_rules = boolean(name, value)?,
            "iptables-resync" => {
                parsed::<i64>(name, value, "a number of seconds")?;
            }
            "healthz-ip" => self.healthz_ip = optional(name, value, "an IP address")?,
            "healthz-port" => self.healthz_port = parsed(name, value, "a port, 0 to 65535,")?,
            "v" => flags.verbosity = parsed(name, value, "a number")?,
            "version" => self.version = boolean(name, value)?,
            "store-dir" => flags.store_dir = value.into(),
            "store-resync" => flags.store_resync = duration(name, value)?,
            "state-dir" => flags.state_dir = value.into(),
            "network" => {
                flags.network = optional(name, value, "an IPv4 network such as 10.244.0.0/16")?
            }
            "lease-ttl" => flags.lease_ttl = duration(name, value)?,
            "on-lease-loss" => {
                self.on_lease_loss = Some(match value {
                    "keep" => OnLeaseLoss::Keep,
                    "exit" => OnLeaseLoss::Exit,
                    "renumber" => OnLeaseLoss::Renumber,
                    _ => return Err(wrong(name, value, "keep, exit or renumber")),
                });
            }
            name if stores::is_flag(name) => self.stores.set(name, value)?,
            ignored => self
                .warnings
                .push(format!("flag --{ignored} has no effect any more")),
        }
        Ok(())
    }

    fn finish(mut self, env: impl Fn(&str) -> Option<String>) -> Result<Command, FlagError> {
        if let Some(migrate) = self.migrate {
            let Flags {
                lease_ttl,
                verbosity,
                ..
            } = self.flags;
            let order = migrate.finish(&self.stores, lease_ttl, verbosity, &env)?;
            return Ok(Command::Migrate(Box::new(order)));
        }
        let ip = self.healthz_ip.unwrap_or(Ipv4Addr::UNSPECIFIED.into());
        let port = self.healthz_port;
        self.flags.healthz = (port != 0).then(|| SocketAddr::new(ip, port));
        let (store, unused) = self.stores.choose(&self.given, self.flags.lease_ttl, env)?;
        self.flags.on_lease_loss = self.on_lease_loss.unwrap_or(match store {
            // A Node gets another podCIDR by being made anew, and its old pods went with it.
            StoreChoice::Kubernetes(_) => OnLeaseLoss::Renumber,
            _ => OnLeaseLoss::Keep,
        });
        self.flags.store = store;
        self.warnings.extend(unused);
        Ok(Command::Run(Box::new(self.flags), self.warnings))
    }
}

fn wrong(name: &str, value: &str, want: &'static str) -> FlagError {
    FlagError::Value {
        name: name.to_owned(),
        value: value.to_owned(),
        want,
    }
}

fn parsed<T: std::str::FromStr>(
    name: &str,
    value: &str,
    want: &'static str,
) -> Result<T, FlagError> {
    value.parse().map_err(|_| wrong(name, value, want))
}

fn optional<T: std::str::FromStr>(
    name: &str,
    value: &str,
    want: &'static str,
) -> Result<Option<T>, FlagError> {
    match value {
        "" => Ok(None),
        value => parsed(name, value, want).map(Some),
    }
}

/// The words that Go's `strconv.ParseBool` takes.
fn boolean(name: &str, value: &str) -> Result<bool, FlagError> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(wrong(name, value, "true or false")),
    }
}

fn minutes(name: &str, value: &str) -> Result<Duration, FlagError> {
    let want = "1 to 1439 minutes";
    match parsed::<u64>(name, value, want)? {
        minutes @ 1..=1439 => Ok(Duration::from_secs(minutes * 60)),
        _ => Err(wrong(name, value, want)),
    }
}

/// `24h`, `90m`, `30s`, `500ms`; a bare number is seconds. More than nothing.
fn duration(name: &str, value: &str) -> Result<Duration, FlagError> {
    let want = "a duration such as 24h, 90m, 30s or 500ms";
    let digits = value.trim_end_matches(|c: char| c.is_ascii_lowercase());
    let number: u32 = parsed(name, digits, want).map_err(|_| wrong(name, value, want))?;
    let unit = match &value[digits.len()..] {
        "ms" => Duration::from_millis(1),
        "s" | "" => Duration::from_secs(1),
        "m" => Duration::from_secs(60),
        "h" => Duration::from_secs(60 * 60),
        _ => return Err(wrong(name, value, want)),
    };
    match unit.checked_mul(number) {
        Some(duration) if !duration.is_zero() => Ok(duration),
        _ => Err(wrong(name, value, want)),
    }
}

/// What `--help` prints.
pub fn usage() -> String {
    let mut text = String::from(
        "Usage: twilld [FLAG]...\n       twilld migrate [--dry-run] --from PLACE --to PLACE [FLAG]...\n\nClaims a subnet for this node, writes subnet.env and keeps the overlay to the other nodes.\nEvery flag can also be set by the environment: --ip-masq by FLANNELD_IP_MASQ, and so on.\n\nThe leases are in Kubernetes with --kube-subnet-mgr; else in etcd if any --etcd-... flag or FLANNELD_ETCD_... is given;\nelse in the folder --store-dir, which all nodes must share.\n\ntwilld migrate copies the configuration and all leases from one store to another, and overwrites nothing.\nA place is file:DIR, etcd, etcd:URL,URL/PREFIX or (only as --from) kubernetes.\n\n",
    );
    for Spec { name, takes, help } in FLAGS {
        let takes = takes.map(|value| format!(" {value}")).unwrap_or_default();
        text.push_str(&format!("  --{name}{takes}\n        {help}\n"));
    }
    text
}

#[cfg(test)]
mod tests;
