//! The distribution's kernel and its modules, unpacked into the cache and never installed.
//!
//! `./dev test-vm` puts it there: Debian's package below `<cache>/vm/<package>/`, with the lists
//! that depmod makes. Here it is only looked for.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::tools::{self, Missing};

/// Folders of modules that go along whole, below `kernel/`.
const FOLDERS: [&str; 9] = [
    "net/802",
    "net/8021q",
    "net/bridge",
    "net/ipv4",
    "net/ipv6",
    "net/llc",
    "net/netfilter",
    "net/sched",
    "drivers/net/wireguard",
];

/// Single modules; what they need goes along.
const MODULES: [&str; 12] = [
    // Asked for by name when nf_tables starts, so that modules.dep does not tell.
    "crypto/crc32c_generic.ko",
    "drivers/net/dummy.ko",
    "drivers/net/geneve.ko",
    "drivers/net/ifb.ko",
    "drivers/net/macvlan.ko",
    "drivers/net/tun.ko",
    "drivers/net/veth.ko",
    "drivers/net/virtio_net.ko",
    "drivers/net/vrf.ko",
    "drivers/net/vxlan/vxlan.ko",
    "drivers/virtio/virtio_pci.ko",
    "fs/overlayfs/overlay.ko",
];

/// An unpacked kernel package.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// What the machine boots.
    pub image_path: PathBuf,
    /// Its release, as `uname -r` will say.
    pub release: String,
    modules_dir: PathBuf,
}

impl Kernel {
    /// The newest kernel in the cache.
    pub fn find() -> Result<Self, Missing> {
        let missing = || Missing::new("a kernel for virtual machines", "run `./dev test-vm`");
        let packages = std::fs::read_dir(tools::cache_dir().join("vm")).map_err(|_| missing())?;
        let mut dirs: Vec<PathBuf> = packages.flatten().map(|entry| entry.path()).collect();
        dirs.sort();
        dirs.iter()
            .rev()
            .find_map(|dir| Self::in_package(dir))
            .ok_or_else(missing)
    }

    fn in_package(dir: &Path) -> Option<Self> {
        let mut releases = std::fs::read_dir(dir.join("lib/modules")).ok()?.flatten();
        let modules_dir = releases.next()?.path();
        let release = modules_dir.file_name()?.to_string_lossy().into_owned();
        let image_path = dir.join(format!("boot/vmlinuz-{release}"));
        let whole = image_path.is_file() && modules_dir.join("modules.dep").is_file();
        whole.then_some(Self {
            image_path,
            release,
            modules_dir,
        })
    }

    /// The modules to take along with all that they need, and the lists by which modprobe and the
    /// kernel find them: paths here and paths in the machine.
    pub fn modules(&self) -> Result<Vec<(PathBuf, String)>> {
        let list_path = self.modules_dir.join("modules.dep");
        let list = std::fs::read_to_string(&list_path)
            .with_context(|| format!("read {}", list_path.display()))?;
        let inside = format!("/lib/modules/{}", self.release);
        let mut files: Vec<(PathBuf, String)> = closure(&list, is_wanted)
            .iter()
            .map(|name| (self.modules_dir.join(name), format!("{inside}/{name}")))
            .collect();
        for entry in std::fs::read_dir(&self.modules_dir)?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with("modules.") {
                files.push((entry.path(), format!("{inside}/{name}")));
            }
        }
        Ok(files)
    }
}

fn is_wanted(module: &str) -> bool {
    // Modules are compressed in newer packages: `.ko.xz`.
    let Some(path) = module.strip_prefix("kernel/") else {
        return false;
    };
    FOLDERS
        .iter()
        .any(|folder| Path::new(path).starts_with(folder))
        || MODULES.iter().any(|name| path.starts_with(name))
}

/// Reads modules.dep (`module: what it needs, in the order of unloading`) and returns what is
/// wanted with everything it needs.
fn closure(list: &str, wanted: impl Fn(&str) -> bool) -> BTreeSet<&str> {
    let needs: BTreeMap<&str, &str> = list
        .lines()
        .filter_map(|line| line.split_once(':'))
        .collect();
    let mut taken = BTreeSet::new();
    let mut todo: Vec<&str> = needs.keys().copied().filter(|name| wanted(name)).collect();
    while let Some(name) = todo.pop() {
        if taken.insert(name) {
            todo.extend(
                needs
                    .get(name)
                    .into_iter()
                    .flat_map(|all| all.split_whitespace()),
            );
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_comes_with_what_it_needs() {
        let list = "kernel/drivers/net/wireguard/wireguard.ko: kernel/lib/a.ko kernel/lib/b.ko\n\
                    kernel/lib/a.ko: kernel/lib/c.ko\n\
                    kernel/lib/b.ko:\n\
                    kernel/lib/c.ko:\n\
                    kernel/sound/loud.ko: kernel/lib/d.ko\n";
        let found: Vec<_> = closure(list, is_wanted).into_iter().collect();
        let expected = [
            "kernel/drivers/net/wireguard/wireguard.ko",
            "kernel/lib/a.ko",
            "kernel/lib/b.ko",
            "kernel/lib/c.ko",
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn folders_are_taken_by_whole_names() {
        assert!(is_wanted("kernel/net/bridge/br_netfilter.ko.xz"));
        assert!(is_wanted("kernel/drivers/net/dummy.ko"));
        assert!(!is_wanted("kernel/net/bridge2/x.ko"));
        assert!(!is_wanted("kernel/drivers/net/tungsten/x.ko"));
    }
}
