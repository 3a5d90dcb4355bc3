//! A node for the daemon: a network namespace, a store in a folder, and what `ip`, `bridge` and
//! `nft` say of it.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(10);

/// A node: eth0 192.168.50.1/24 with a default route, nothing else.
pub(crate) struct Node {
    pub(crate) netns: String,
    dir: TempDir,
}

impl Node {
    /// `None`, having said so, where namespaces cannot be made.
    pub(crate) fn new() -> Option<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let netns = format!("twd{}-{number}", std::process::id());
        let made = Command::new("ip").args(["netns", "add", &netns]).output();
        if !made.is_ok_and(|made| made.status.success()) {
            assert_ne!(std::env::var("CI").as_deref(), Ok("true"), "ip netns add");
            eprintln!("skipped: network namespaces cannot be made here (root and iproute2 needed)");
            return None;
        }
        let node = Self {
            netns,
            dir: tempfile::tempdir().unwrap(),
        };
        node.ip("link add eth0 type veth peer name other");
        for line in [
            "link set lo up",
            "link set other up",
            "addr add 192.168.50.1/24 dev eth0",
            "addr add fd00:50::1/64 dev eth0 nodad",
            "link set eth0 up",
            "route add default via 192.168.50.254",
            "-6 route add default via fd00:50::fe dev eth0",
        ] {
            node.ip(line);
        }
        node.net_conf(r#"{"Network":"10.5.0.0/16","SubnetMin":"10.5.20.0","SubnetMax":"10.5.20.0","Backend":{"Type":"vxlan"}}"#);
        Some(node)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn net_conf(&self, text: &str) {
        fs::create_dir_all(self.path("store/subnets")).unwrap();
        fs::write(self.path("store/config"), text).unwrap();
    }

    pub(crate) fn run(&self, command: &str) -> String {
        let mut words = command.split_whitespace();
        let output = Command::new("ip")
            .args(["netns", "exec", &self.netns])
            .args(words.by_ref())
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn ip(&self, arguments: &str) -> String {
        self.run(&format!("ip {arguments}"))
    }

    /// A peer's lease, put as another daemon would put it.
    pub(crate) fn peer(&self, name: &str, value: &str) {
        let hidden = self.path("store/.new");
        fs::write(&hidden, value).unwrap();
        let file = fs::File::options().write(true).open(&hidden).unwrap();
        let tomorrow = SystemTime::now() + Duration::from_secs(24 * 60 * 60);
        file.set_modified(tomorrow).unwrap();
        fs::rename(hidden, self.path("store/subnets").join(name)).unwrap();
    }

    pub(crate) fn good_peer(&self, n: u8) {
        self.peer(
            &format!("10.5.{n}.0-24"),
            &format!(
                r#"{{"PublicIP":"192.168.50.{n}","PublicIPv6":null,"BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":"02:00:00:00:00:{n}"}}}}"#
            ),
        );
    }

    pub(crate) fn start(&self, flags: &[&str]) -> Daemon {
        let _ = fs::remove_file(self.path("log"));
        let child = Command::new("ip")
            .args(["netns", "exec", &self.netns, env!("CARGO_BIN_EXE_twilld")])
            .arg(format!("--store-dir={}", self.path("store").display()))
            .arg(format!("--state-dir={}", self.path("state").display()))
            .arg(format!(
                "--subnet-file={}",
                self.path("subnet.env").display()
            ))
            .args(flags)
            .env("NO_COLOR", "1")
            .env("NODE_NAME", "k1")
            .stderr(fs::File::create(self.path("log")).unwrap())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Daemon {
            child,
            log_path: self.path("log"),
        }
    }

    pub(crate) fn ready(&self, flags: &[&str]) -> Daemon {
        let daemon = self.start(flags);
        daemon.logs("in sync");
        daemon
    }

    /// What the daemon made, in the golden files' words.
    pub(crate) fn seen(&self) -> [String; 3] {
        let sorted = |text: String, drop: &str| {
            let mut lines: Vec<String> = text
                .lines()
                .filter(|line| line.contains("flannel") && !line.contains(drop))
                .map(|line| {
                    let line = line.trim_start_matches("1 ").replace(" scope 0", "");
                    line.split_whitespace().collect::<Vec<_>>().join(" ")
                })
                .collect();
            lines.sort();
            lines.join("\n")
        };
        [
            sorted(self.ip("-N -d -4 route show table main"), "proto 2 "),
            sorted(self.ip("neigh show nud permanent"), "\0"),
            sorted(self.run("bridge fdb show"), "33:33"),
        ]
    }

    pub(crate) fn mac(&self) -> String {
        let link = self.ip("-br link show flannel.1");
        link.split_whitespace().nth(2).unwrap().to_owned()
    }

    pub(crate) fn own_value(&self) -> String {
        fs::read_to_string(self.path("store/subnets/10.5.20.0-24")).unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = Command::new("ip")
            .args(["netns", "del", &self.netns])
            .status();
    }
}

pub(crate) struct Daemon {
    child: Child,
    log_path: PathBuf,
}

impl Daemon {
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log_path).unwrap()
    }

    pub(crate) fn logs(&self, words: &str) {
        wait(
            || self.log().contains(words),
            || format!("{words:?} in:\n{}", self.log()),
        );
    }

    /// SIGTERM; the exit code and how long it took.
    pub(crate) fn stop(mut self) -> (Option<i32>, Duration) {
        let began = Instant::now();
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM).unwrap();
        let code = self.exit_code();
        (code, began.elapsed())
    }

    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        let mut code = None;
        wait(
            || {
                code = self.child.try_wait().unwrap();
                code.is_some()
            },
            || "the daemon to end".to_owned(),
        );
        code.unwrap().code()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[expect(clippy::disallowed_methods, reason = "the one place that polls")]
pub(crate) fn wait(mut done: impl FnMut() -> bool, what: impl Fn() -> String) {
    let deadline = Instant::now() + DEADLINE;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain for {}", what());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A node, or the end of the test where there can be none.
macro_rules! node {
    () => {
        match crate::node::Node::new() {
            Some(node) => node,
            None => return,
        }
    };
}
pub(crate) use node;
