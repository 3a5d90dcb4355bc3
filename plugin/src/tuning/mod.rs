//! Tuning: kernel settings and attributes of a pod's interface.
//!
//! ```text
//!  config ──▶ Tuning ──▶ backup (file) ──▶ sandbox: settings, attributes
//!             (checked)     └──────────▶ DEL: attributes as they were
//! ```
//!
//! Settings (sysctls) belong to the sandbox and go with it; attributes are put back by DEL,
//! because the interface may be one that goes back to the node.

mod allow_list;
mod backup;
mod config;
mod repeated;

use std::path::Path;

use kernel::link::{self, Link};
use kernel::{Mac, Netns, Socket, sysctl};

use crate::error::{Code, Error};
pub(crate) use allow_list::AllowList;
pub(crate) use backup::Backup;
use config::Sysctl;
pub(crate) use config::{Tuning, data_dir};
pub(crate) use repeated::refuse_repeated_sysctl;

/// Where the operator says which settings may be changed.
pub(crate) const ALLOW_LIST: &str = "/etc/cni/tuning/allowlist.conf";

/// Whose interface is tuned.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target<'a> {
    pub(crate) container_id: &'a str,
    pub(crate) ifname: &'a str,
    /// Its namespace, and the one to come back to.
    pub(crate) sandbox: &'a Netns,
    pub(crate) home: &'a Netns,
}

impl Target<'_> {
    fn inside<T>(&self, f: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        self.sandbox.enter(self.home, f).map_err(refused)?
    }

    fn link(&self, socket: &mut Socket) -> Result<Link, Error> {
        let found = link::by_name(socket, self.ifname).map_err(refused)?;
        found.ok_or_else(|| {
            Error::new(
                Code::Kernel,
                format!("tuning: the sandbox has no interface {}", self.ifname),
            )
        })
    }
}

/// Tunes the interface. Undone as a whole if any part fails.
pub(crate) fn add(tuning: &Tuning, target: &Target<'_>, allow_list: &Path) -> Result<(), Error> {
    AllowList::read(allow_list)?.permit(tuning.sysctls.iter().map(|s| s.key.as_str()))?;
    let backup_path = backup::path(&tuning.data_dir, target.container_id, target.ifname);
    target.inside(|| {
        let mut socket = Socket::open().map_err(refused)?;
        let mut undo = vec![];
        let done = settings(&tuning.sysctls, &mut undo).and_then(|()| {
            if !tuning.changes_link() {
                return Ok(());
            }
            let link = target.link(&mut socket)?;
            let backup = Backup::of(&link, tuning);
            backup.write(&backup_path)?;
            change(&mut socket, tuning, &link).inspect_err(|_| {
                let _ = restore(&mut socket, &backup, &link);
                let _ = backup::remove(&backup_path);
            })
        });
        if done.is_err() {
            for (path, value) in undo.iter().rev() {
                let _ = sysctl::write(path, value);
            }
        }
        done
    })
}

/// Writes settings; what they were before goes to `undo`.
fn settings(sysctls: &[Sysctl], undo: &mut Vec<(String, String)>) -> Result<(), Error> {
    for Sysctl { path, value, .. } in sysctls {
        let before = sysctl::read(path).ok();
        sysctl::write(path, value).map_err(|error| {
            let msg = format!("tuning: write {value:?} to /proc/sys/{path}: {error}");
            Error::new(Code::InvalidConfig, msg)
        })?;
        undo.extend(before.map(|before| (path.clone(), before)));
    }
    Ok(())
}

fn change(socket: &mut Socket, tuning: &Tuning, link: &Link) -> Result<(), Error> {
    let mut change = link::change_index(link.ifindex);
    if let Some(mac) = tuning.mac {
        change = change.mac(mac);
    }
    if tuning.promiscuous {
        change = change.promiscuous(true);
    }
    if let Some(mtu) = tuning.mtu {
        change = change.mtu(mtu);
    }
    if let Some(on) = tuning.all_multicast {
        change = change.all_multicast(on);
    }
    if let Some(length) = tuning.txqlen {
        change = change.txqlen(length);
    }
    socket.apply_all(&[change.request()]).map_err(refused)
}

fn restore(socket: &mut Socket, backup: &Backup, link: &Link) -> Result<(), Error> {
    let mut change = link::change_index(link.ifindex);
    if let Some(mac) = backup
        .mac
        .as_deref()
        .and_then(|mac| mac.parse::<Mac>().ok())
    {
        change = change.mac(mac);
    }
    if let Some(on) = backup.promisc {
        change = change.promiscuous(on);
    }
    if let Some(mtu) = backup.mtu {
        change = change.mtu(mtu);
    }
    if let Some(on) = backup.allmulti {
        change = change.all_multicast(on);
    }
    if let Some(length) = backup.tx_q_len {
        change = change.txqlen(length);
    }
    socket.apply_all(&[change.request()]).map_err(refused)
}

/// Says which setting or attribute is not as configured any more.
pub(crate) fn check(tuning: &Tuning, target: &Target<'_>) -> Result<(), Error> {
    target.inside(|| {
        for Sysctl { path, value, .. } in &tuning.sysctls {
            let found = sysctl::read(path).map_err(|error| {
                let msg = format!("tuning: read /proc/sys/{path}: {error}");
                Error::new(Code::CheckFailed, msg)
            })?;
            differs(&format!("/proc/sys/{path}"), value, &found)?;
        }
        if !tuning.changes_link() {
            return Ok(());
        }
        let mut socket = Socket::open().map_err(refused)?;
        let link = target.link(&mut socket)?;
        let of = |what: &str| format!("{what} of {}", target.ifname);
        if let Some(mac) = tuning.mac {
            let found = link.mac.map(|mac| mac.to_string()).unwrap_or_default();
            differs(&of("Ethernet address"), &mac.to_string(), &found)?;
        }
        if tuning.promiscuous {
            differs(
                &of("promiscuous mode"),
                "true",
                &link.promiscuous.to_string(),
            )?;
        }
        if let Some(mtu) = tuning.mtu {
            differs(&of("MTU"), &mtu.to_string(), &link.mtu.to_string())?;
        }
        if let Some(on) = tuning.all_multicast {
            let found = link.all_multicast.to_string();
            differs(&of("all-multicast mode"), &on.to_string(), &found)?;
        }
        if let Some(length) = tuning.txqlen {
            let found = link.txqlen.to_string();
            differs(&of("transmit queue length"), &length.to_string(), &found)?;
        }
        Ok(())
    })
}

fn differs(what: &str, wanted: &str, found: &str) -> Result<(), Error> {
    // The kernel separates the numbers of a list by tabs.
    let words = |text: &str| {
        text.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    match words(wanted) == words(found) {
        true => Ok(()),
        false => Err(Error::new(
            Code::CheckFailed,
            format!(
                "Error: Tuning configured value of {what} is {wanted}, current value is {found}"
            ),
        )),
    }
}

/// Puts back what the interface was, where there still is one, and forgets it.
pub(crate) fn del(
    data_dir: &Path,
    container_id: &str,
    ifname: &str,
    sandbox: Option<(&Netns, &Netns)>,
) -> Result<(), Error> {
    let path = backup::path(data_dir, container_id, ifname);
    if let (Some(backup), Some((sandbox, home))) = (Backup::read(&path), sandbox) {
        let target = Target {
            container_id,
            ifname,
            sandbox,
            home,
        };
        // An interface that is gone needs nothing, and one that refuses is about to go.
        let _ = target.inside(|| {
            let mut socket = Socket::open().map_err(refused)?;
            let link = target.link(&mut socket)?;
            restore(&mut socket, &backup, &link)
        });
    }
    backup::remove(&path)
}

fn refused(error: impl std::fmt::Display) -> Error {
    Error::new(Code::Kernel, format!("tuning: {error}"))
}
