//! A node for a test: a thread with a network and a mount namespace of its own, where `/run` and
//! `/var/lib` are empty, and sandboxes below `/run/netns`.

use std::fs::{self, File};
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

/// Whether this process may make namespaces. Where it may not the test is skipped, which fails in
/// CI.
pub(crate) fn available(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("{test} skipped: namespaces need root");
        assert!(std::env::var_os("CI").is_none(), "skipped in CI");
    }
    root
}

/// Runs `f` in a thread that is a node of its own, with these sandboxes.
pub(crate) fn in_a_node_of_its_own<T: Send>(sandboxes: &[&str], f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let node = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
            let none = None::<&str>;
            mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
            for dir in ["/run", "/var/lib"] {
                mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), none).unwrap();
            }
            fs::create_dir("/run/netns").unwrap();
            for name in sandboxes {
                make_sandbox(&Path::new("/run/netns").join(name));
            }
            f()
        });
        node.join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn make_sandbox(path: &Path) {
    let home = File::open("/proc/thread-self/ns/net").unwrap();
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    File::create(path).unwrap();
    let none = None::<&str>;
    mount(
        Some("/proc/thread-self/ns/net"),
        path,
        none,
        MsFlags::MS_BIND,
        none,
    )
    .unwrap();
    setns(home, CloneFlags::CLONE_NEWNET).unwrap();
}
