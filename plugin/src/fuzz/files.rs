//! Targets for files that anything may have happened to: reservations, scratch files, backups, the
//! operator's list of settings. They are written to a folder and read by the code that reads them.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use super::is_reported;
use crate::cni_args::CniArgs;
use crate::error::Error;
use crate::ipam::{self, Again, Config, Held, IpamError, Owner, RawIpam, RawWishes, Store};
use crate::scratch::Scratch;
use crate::tuning::{AllowList, Backup};
use crate::version::Version;

const NETWORK: &str = "net";
/// The addresses of this range that pods may have: .2 to .6.
const RANGE: &str = r#"{"type": "host-local", "ranges": [[{"subnet": "10.1.2.0/29"}]]}"#;
const OURS: Owner<'_> = Owner {
    container_id: "ours",
    ifname: "eth0",
};

/// A folder of this thread's, gone with the value.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Dir {
        let thread = std::thread::current().id();
        let name = format!("twill-fuzz-{}-{thread:?}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).expect("a folder below the temporary one");
        Dir(dir)
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, bytes).expect("a file in a folder of our own");
        path
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A network's folder: files end at a byte 1, and in each the content begins behind a byte 2.
/// Whatever is in them, addresses can be reserved and released, nobody loses one, and none is lost.
pub(super) fn reservations(bytes: &[u8]) {
    let dir = Dir::new();
    let folder = dir.0.join(NETWORK);
    fs::create_dir_all(&folder).expect("a folder in a folder of our own");
    for file in bytes.split(|byte| *byte == 1).take(32) {
        let at = file.iter().position(|byte| *byte == 2);
        let (name, content) = file.split_at(at.unwrap_or(file.len()));
        if let Some(path) = file_name(name).map(|name| folder.join(name)) {
            // Names that this file system does not take are none.
            let _ = fs::write(path, content.get(1..).unwrap_or_default());
        }
    }
    let config = range();
    let store = Store::indexed_within(&dir.0, NETWORK);
    let held_before = holders(&store);
    room(ipam::has_room(&store, &config));
    let mine = match ipam::reserve(&store, &config, &OURS, Again::Same) {
        Ok(reservation) => reservation,
        Err(error) => return full(&error, &held_before),
    };
    let mine = mine.ips[0]
        .address
        .expect("an address was reserved")
        .0
        .addr();
    let before = held_before.iter().find(|(ip, _)| *ip == mine);
    assert!(
        before.is_none_or(|(_, held)| held.is(&OURS)),
        "{mine} was taken from {before:?}"
    );
    // Twice: a legacy file, of a container as a whole, goes once its interfaces have none.
    for _ in 0..2 {
        store.release(&OURS).expect("a release");
    }
    assert!(!store.holds_any(&OURS).expect("a look"));
    for (ip, held) in held_before.iter().filter(|(_, held)| !held.is(&OURS)) {
        assert_eq!(store.holder_of(*ip).as_ref(), Some(held), "{ip}");
    }
    // With no valid attachment every address is free again.
    store.release_others(|_| false).expect("a collection");
    for pod in ["a", "b", "c", "d", "e"] {
        let owner = Owner {
            container_id: pod,
            ..OURS
        };
        ipam::reserve(&store, &config, &owner, Again::Refuse)
            .unwrap_or_else(|error| panic!("{pod}: {error}"));
    }
}

/// What the index lists for an owner who holds .2, and for one who holds nothing: a byte 1 between
/// the two. It is a hint: a wrong one releases nobody else's address, and no file beside them.
pub(super) fn owner_index(bytes: &[u8]) {
    let dir = Dir::new();
    let store = Store::indexed_within(&dir.0, NETWORK);
    let theirs = Owner {
        container_id: "theirs",
        ..OURS
    };
    for owner in [&OURS, &theirs] {
        ipam::reserve(&store, &range(), owner, Again::Same).expect("a free range");
    }
    let beside = dir.file("beside", b"ours\r\neth0");
    fs::remove_dir_all(dir.0.join(".links")).expect("the index");
    let mut listed = bytes.split(|byte| *byte == 1);
    for owner in [&OURS, &theirs] {
        let listed = OsStr::from_bytes(listed.next().unwrap_or_default());
        // Targets that this file system does not take are none.
        if store.mislead(owner, listed).is_err() {
            return;
        }
    }
    let held = holders(&store);
    let his = held.iter().find(|(_, held)| !held.is(&OURS));
    let (ip, his) = his.expect("an address of another's");
    let _ = store.surely_held(&OURS);
    let _ = store.surely_holds_nothing(&OURS);
    assert!(store.holds_any(&OURS).expect("a look"), "{listed:?}");
    store.release(&OURS).expect("a release");
    assert!(beside.exists());
    assert_eq!(store.holder_of(*ip).as_ref(), Some(his));
    store.release_others(|_| false).expect("a collection");
    assert!(beside.exists());
    assert_eq!(holders(&store), []);
}

fn file_name(name: &[u8]) -> Option<&str> {
    let name = std::str::from_utf8(name).ok()?;
    // The other files of the folder are not what an address's file may be damaged into.
    let is_one = !["", ".", "..", "lock", "boot_id"].contains(&name);
    (is_one && !name.contains(['/', '\0'])).then_some(name)
}

fn range() -> Config {
    let raw: RawIpam = go_json::from_slice(RANGE.as_bytes()).expect("a right config");
    let none = RawWishes::default();
    Config::validate(&raw, &CniArgs::default(), &none, &none, Version::V1_0_0).expect("a range")
}

fn holders(store: &Store) -> Vec<(std::net::IpAddr, Held)> {
    let ips = store.addresses().expect("a folder");
    ips.into_iter()
        .filter_map(|ip| Some((ip, store.holder_of(ip)?)))
        .collect()
}

fn room(outcome: Result<(), IpamError>) {
    match outcome {
        Ok(()) | Err(IpamError::Exhausted { .. }) => {}
        Err(error) => panic!("STATUS: {error}"),
    }
}

/// Only a range of which others hold every address is full.
fn full(error: &IpamError, held: &[(std::net::IpAddr, Held)]) {
    assert!(matches!(error, IpamError::Exhausted { .. }), "{error}");
    let range = range();
    let inside = |ip: &std::net::IpAddr| range.sets[0].range_of(*ip).is_some();
    let held = held.iter().filter(|(ip, _)| inside(ip)).count();
    assert!(held >= 5, "full, with {held} addresses held");
}

/// What flannel's plugin, or a torn write, left for a container.
pub(super) fn scratch(bytes: &[u8]) {
    let dir = Dir::new();
    let path = dir.file("cid", bytes);
    let scratch = Scratch::new(&dir.0, "cid");
    assert!(scratch.exists());
    let read = scratch.read(NETWORK);
    if let Some(rendered) = &read {
        let name = go_json::field(rendered, "name");
        assert_eq!(name.and_then(|name| name.as_str()), Some(NETWORK));
    }
    scratch.remove(NETWORK).expect("a removal");
    assert!(read.is_none() || !path.exists(), "our own stayed");
}

/// The backup of an interface that DEL puts back.
pub(super) fn tuning_backup(bytes: &[u8]) {
    let dir = Dir::new();
    let path = dir.file("cid_eth0.json", bytes);
    if let Some(backup) = Backup::read(&path) {
        backup.write(&path).expect("a write");
        assert_eq!(Backup::read(&path), Some(backup));
    }
}

/// The operator's list.
pub(super) fn allow_list(bytes: &[u8]) {
    let dir = Dir::new();
    let path = dir.file("allowlist.conf", bytes);
    let permit = |list: &AllowList| list.permit(["net.ipv4.ip_forward", "net/core/somaxconn"]);
    told(AllowList::read(Path::new(&path)).and_then(|list| permit(&list)));
}

fn told(outcome: Result<(), Error>) {
    if let Err(error) = outcome {
        is_reported(&error);
    }
}
