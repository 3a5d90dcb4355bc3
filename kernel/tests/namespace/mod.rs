//! A network namespace of a test's own, and other people's tools inside it.

use std::process::Command;

use nix::sched::{CloneFlags, unshare};

/// Runs `test` on a thread with a fresh network namespace, which ends with it.
pub(crate) fn in_a_namespace(test: impl FnOnce() + Send + 'static) {
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("the tests run as root");
        test();
    })
    .join()
    .unwrap();
}

/// What a command prints. A child of this thread is in this thread's namespace.
pub(crate) fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap())
        .args(words)
        .output()
        .unwrap();
    assert!(output.status.success(), "{command}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}
