//! Copying a cluster's configuration and leases from one store to another, so that a cluster can
//! change its store with its pods running.
//!
//! [`plan`] decides what is copied, and is pure; [`run`] reads both sides and carries it out. What
//! the target has is never written over: where it says something else that is reported, and left
//! for a person to decide. Doing it twice is doing it once.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::time::Duration;

use super::{Store, StoreError};
use crate::lease::Lease;
use crate::subnets::Subnets;

/// How long a lease has to live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// Without end: a reservation.
    Reserved,
    /// So long from now.
    Left(Duration),
    /// As long as the target lets a new one live: its holder lives, and where it comes from nothing
    /// expires.
    Whole,
}

/// A lease as it is carried over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parcel {
    /// Its key.
    pub subnets: Subnets,
    /// Its value.
    pub lease: Lease,
    /// Its time.
    pub life: Life,
}

/// What a store hands over for a move.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cargo {
    /// Every lease that can be read.
    pub parcels: Vec<Parcel>,
    /// Whatever else there is, by name, with the reason for which it is no lease.
    pub unreadable: Vec<(Box<str>, String)>,
}

/// A store whose leases can be taken to another.
pub trait Source: Store {
    /// Everything that is there, with its time.
    fn unload(&self) -> impl Future<Output = Result<Cargo, StoreError>>;
}

/// A store that leases can be taken to. Kubernetes is none: podCIDRs are given by the cluster, and
/// every node writes on its own Node alone.
pub trait Target: Source {
    /// Writes a lease of somebody's, if there is nothing under its key. Whether it did.
    fn load(&self, parcel: &Parcel) -> impl Future<Output = Result<bool, StoreError>>;
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// These are copied.
    pub copy: Vec<Parcel>,
    /// These are there already.
    pub same: Vec<Subnets>,
    /// These are left out, with the reason.
    pub refused: BTreeMap<String, String>,
}

/// Whether to do it, or only to say what would be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Write.
    Copy,
    /// Write nothing.
    DryRun,
}

/// What was done, or would be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Nothing was written.
    pub dry: bool,
    /// Whether the configuration was written.
    pub config: bool,
    /// How many leases were copied.
    pub copied: usize,
    /// How many were there already.
    pub same: usize,
    /// What was left out, with the reason.
    pub refused: BTreeMap<String, String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config = if self.config { "copied" } else { "kept" };
        let Self { copied, same, .. } = self;
        let dry = if self.dry { "would be: " } else { "" };
        writeln!(
            f,
            "{dry}config {config}; leases: {copied} copied, {same} there already"
        )?;
        for (name, reason) in &self.refused {
            writeln!(f, "left out: {name}: {reason}")?;
        }
        Ok(())
    }
}

/// Decides what of `from` goes to a store that has `to`.
pub fn plan(from: Cargo, to: &Cargo) -> Plan {
    let mut plan = Plan::default();
    for (name, reason) in from.unreadable {
        plan.refused.insert(name.into(), reason);
    }
    for parcel in from.parcels {
        let mut others = to.parcels.iter();
        match others.find(|other| other.subnets.overlaps(&parcel.subnets)) {
            None => plan.copy.push(parcel),
            Some(there) if there.subnets == parcel.subnets && there.lease == parcel.lease => {
                plan.same.push(parcel.subnets);
            }
            Some(there) => {
                let reason = match there.subnets == parcel.subnets {
                    true => "the target has another lease under this key".to_owned(),
                    false => format!("it overlaps {} in the target", there.subnets),
                };
                plan.refused.insert(parcel.subnets.to_string(), reason);
            }
        }
    }
    plan
}

/// Copies everything that can be copied. A lease of somebody who writes to both stores meanwhile
/// is left to them.
pub async fn run(from: &impl Source, to: &impl Target, mode: Mode) -> Result<Report, StoreError> {
    let mut report = Report {
        dry: mode == Mode::DryRun,
        ..Report::default()
    };
    let config = from.config().await?;
    match (&config, to.config().await?) {
        (Some(_), None) if report.dry => report.config = true,
        (Some(config), None) => report.config = to.init_config(config).await?,
        (Some(config), Some(there)) if *config != there => {
            let reason = "the target has another configuration".to_owned();
            report.refused.insert("config".to_owned(), reason);
        }
        _ => {}
    }
    let cargo = from.unload().await?;
    if config.is_none() && cargo == Cargo::default() {
        let reason = "there is neither a configuration nor a lease in it".to_owned();
        report.refused.insert(from.describe(), reason);
    }
    let Plan {
        copy,
        same,
        refused,
    } = plan(cargo, &to.unload().await?);
    report.same = same.len();
    report.refused.extend(refused);
    if report.dry {
        report.copied = copy.len();
        return Ok(report);
    }
    for parcel in copy {
        match to.load(&parcel).await? {
            true => report.copied += 1,
            false => {
                let reason = "somebody has just written it in the target".to_owned();
                report.refused.insert(parcel.subnets.to_string(), reason);
            }
        }
    }
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parcel(key: &str, ip: &str) -> Parcel {
        let value = format!(r#"{{"PublicIP":"{ip}"}}"#);
        Parcel {
            subnets: key.parse().unwrap(),
            lease: Lease::parse(value.as_bytes()).unwrap(),
            life: Life::Reserved,
        }
    }

    fn cargo(parcels: &[Parcel]) -> Cargo {
        Cargo {
            parcels: parcels.to_vec(),
            unreadable: vec![("nonsense".into(), "its key: no".to_owned())],
        }
    }

    #[test]
    fn what_the_target_has_is_never_written_over() {
        let from = cargo(&[
            parcel("10.5.1.0-24", "192.168.0.1"),
            parcel("10.5.2.0-24", "192.168.0.2"),
            parcel("10.5.3.0-24", "192.168.0.3"),
            parcel("10.5.4.0-24", "192.168.0.4"),
        ]);
        let to = cargo(&[
            parcel("10.5.2.0-24", "192.168.0.2"),
            parcel("10.5.3.0-24", "192.168.0.99"),
            parcel("10.5.4.0-24&fd00::-64", "192.168.0.4"),
        ]);
        let plan = plan(from, &to);
        assert_eq!(plan.copy, [parcel("10.5.1.0-24", "192.168.0.1")]);
        assert_eq!(plan.same, ["10.5.2.0-24".parse().unwrap()]);
        let refused: Vec<&str> = plan.refused.keys().map(String::as_str).collect();
        assert_eq!(refused, ["10.5.3.0-24", "10.5.4.0-24", "nonsense"]);
    }
}
