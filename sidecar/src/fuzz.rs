//! The fuzz targets: every parser of this crate, fed with any bytes. Only with the feature `fuzz`.
//!
//! A target must neither panic nor overflow the stack, and holds what comes out to what the rest of
//! the crate relies on. Targets do not touch the kernel and write only below the temporary folder.
//! Those of a room whose parsers are its own are in that room (`fuzz.rs` there).
//!
//! `./dev fuzz` runs them under libFuzzer (`cni-test-harness/src/bin/fuzz.rs`); the test beside that
//! (`cni-test-harness/tests/corpora.rs`) runs the inputs in `sidecar/fuzz/<target>/`.

use std::path::PathBuf;

use crate::lease::Lease;
use crate::net_conf::NetConf;
use crate::persist::StateFile;
use crate::store::{etcd, kube};
use crate::subnet_env::previous_subnets;
use crate::subnets::Subnets;
use crate::{backend, flags, udp};

/// A target takes any bytes; it fails by panicking.
pub type Target = fn(&[u8]);

/// Every target, by the name of the folder with its inputs.
pub const TARGETS: &[(&str, Target)] = &[
    ("backend-data", backend::fuzz::data),
    ("etcd-answer", etcd::fuzz::answer),
    ("etcd-entry", etcd::fuzz::entry),
    ("extension-told", backend::fuzz::told),
    ("flags", flags),
    ("kube-node", kube::fuzz::node),
    ("kubeconfig", kube::fuzz::kubeconfig),
    ("lease", lease),
    ("lease-key", lease_key),
    ("net-conf", net_conf),
    ("state-file", state_file),
    ("twilld-subnet-env", subnet_env),
    ("udp-cut", udp::fuzz::cut),
    ("udp-merge", udp::fuzz::merge),
    ("udp-packet", udp::fuzz::packet),
];

/// The command line, an argument a line.
fn flags(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let args: Vec<String> = text.lines().map(str::to_owned).collect();
    if let Err(error) = flags::parse(&args, |_| None) {
        assert!(!error.to_string().is_empty());
    }
}

pub(crate) fn lease(bytes: &[u8]) {
    let Ok(lease) = Lease::parse(bytes) else {
        return;
    };
    let text = lease.render();
    let back = Lease::parse(text.as_bytes()).expect("what is written can be read");
    assert_eq!(back, lease, "{text}");
}

fn lease_key(bytes: &[u8]) {
    let Ok(subnets) = String::from_utf8_lossy(bytes).parse::<Subnets>() else {
        return;
    };
    let text = subnets.to_string();
    assert_eq!(text.parse(), Ok(subnets), "{text}");
}

fn net_conf(bytes: &[u8]) {
    match NetConf::parse(bytes) {
        Ok(conf) => {
            for (_, range) in conf.ranges.iter() {
                assert!(range.min <= range.max, "{range:?}");
                assert!(range.network.contains(&range.min) && range.network.contains(&range.max));
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn subnet_env(bytes: &[u8]) {
    if let Some(subnets) = previous_subnets(&String::from_utf8_lossy(bytes)) {
        for (_, net) in subnets.iter() {
            assert_eq!(net, net.trunc());
        }
    }
}

/// What the node remembers over a reboot.
fn state_file(bytes: &[u8]) {
    let dir = Dir::new();
    let file = StateFile::in_dir(&dir.0);
    std::fs::write(file.path(), bytes).expect("a file in a folder of our own");
    let Ok(remembered) = file.load() else {
        return;
    };
    std::fs::remove_file(file.path()).expect("a file of our own");
    file.save(&remembered)
        .expect("a file in a folder of our own");
    assert_eq!(
        file.load().expect("what is written can be read"),
        remembered
    );
}

/// A folder of this thread's, gone with the value.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        let thread = std::thread::current().id();
        let name = format!("twilld-fuzz-{}-{thread:?}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).expect("a folder below the temporary one");
        Self(dir)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
