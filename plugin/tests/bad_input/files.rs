//! Each file of state: what anything may have happened to is in nobody's way, and ends in an
//! address, an answer, or both.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::calls::{ok, reserved, run, tool};
use super::scene::{self, NEW, State, refused, with_a_pod};

/// What a file may have become.
fn bad_contents() -> Vec<Vec<u8>> {
    vec![
        vec![],
        b"\0".to_vec(),
        b"\n".to_vec(),
        b"../../etc/passwd".to_vec(),
        b"\xff\xfe\x00".to_vec(),
        b"{".to_vec(),
        b"[]".to_vec(),
        br#"{"name": 5, "ipam": "x"}"#.to_vec(),
        b"\x1b[2J\r\n\x1b[2J".to_vec(),
        "9".repeat(1 << 20).into_bytes(),
        [b"[".repeat(100_000), b"]".repeat(100_000)].concat(),
    ]
}

/// Puts a bad thing into the place of a file: each of the contents, then a folder, a link to
/// itself and a link into nothing.
fn in_every_way(path: &Path, mut f: impl FnMut(&str)) {
    let clear = || {
        let _ = fs::remove_file(path);
        let _ = fs::remove_dir_all(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
    };
    let what = path.display();
    for content in bad_contents() {
        clear();
        fs::write(path, &content).unwrap();
        let shown: String = String::from_utf8_lossy(&content).chars().take(40).collect();
        f(&format!("{what} is {shown:?}"));
    }
    clear();
    fs::create_dir(path).unwrap();
    f(&format!("{what} is a folder"));
    for target in [path, Path::new("/run/nothing/there")] {
        clear();
        std::os::unix::fs::symlink(target, path).unwrap();
        f(&format!("{what} leads to {}", target.display()));
    }
    clear();
}

fn attach_and_detach(what: &str, kind: &str, config: &Value) {
    let added = run(kind, "ADD", &NEW, config);
    assert_eq!(added.exit, 0, "{what}: {}", added.stdout);
    let result = added.json();
    let ip = result["ips"][0]["address"].as_str().unwrap();
    assert!(
        ip.starts_with("10.244.1.") || ip.starts_with("10.9.0."),
        "{what}: {result}"
    );
    assert!(
        !ip.starts_with("10.244.1.2/"),
        "{what}: {ip} is the other pod's"
    );
    let deleted = run(kind, "DEL", &NEW, config);
    assert_eq!((deleted.exit, deleted.stdout.as_str()), (0, ""), "{what}");
    let own = ip.split('/').next().unwrap();
    let network = config["name"].as_str().unwrap();
    assert!(
        !reserved(network).iter().any(|ip| ip == own),
        "{what}: {own} is not given back"
    );
}

#[test]
fn a_subnet_file_that_is_none_is_named_and_changes_nothing() {
    with_a_pod(
        "a_subnet_file_that_is_none_is_named_and_changes_nothing",
        |_| {
            let path = PathBuf::from("/run/conf/subnet.env");
            let right = include_str!("../../../conf/subnet.env");
            let before = State::whole();
            for kind in ["twill", "flannel"] {
                let mut config = scene::main_config(kind);
                config["subnetFile"] = json!(path);
                let refuse = |what: &str, word: &str| {
                    let what = format!("{kind}: {what}");
                    let (code, text) = refused(&what, &run(kind, "ADD", &NEW, &config)).unwrap();
                    assert_eq!(code, 11, "{what}: {text}");
                    assert!(
                        text.contains("subnet.env") && text.contains(word),
                        "{what}: {text}"
                    );
                    assert!(text.len() < 10_000, "{what}: {} bytes of words", text.len());
                    let (code, text) = refused(&what, &run(kind, "STATUS", &[], &config)).unwrap();
                    assert_eq!(code, 50, "{what}: {text}");
                    let deleted = run(kind, "DEL", &NEW, &config);
                    assert_eq!((deleted.exit, deleted.stdout.as_str()), (0, ""), "{what}");
                };
                // Two of them are no file, for which a moment is waited.
                in_every_way(&path, |what| refuse(what, ""));
                for (key, values) in [
                    (
                        "FLANNEL_NETWORK",
                        &[
                            "",
                            "x",
                            "10.244.0.0",
                            "10.244.0.0/33",
                            "fd00::/64",
                            "10.244.0.0/16,",
                        ][..],
                    ),
                    (
                        "FLANNEL_SUBNET",
                        &["", "x", "10.244.1.1", "10.244.1.1/-1", "fd00::1/64", "../x"],
                    ),
                    (
                        "FLANNEL_MTU",
                        &[
                            "",
                            "x",
                            "-1",
                            "1e3",
                            "99999999999",
                            "1450\u{1b}[2J",
                            "67",
                            "65536",
                        ],
                    ),
                ] {
                    for value in values {
                        let lines = right.lines().map(|line| match line.split_once('=') {
                            Some((name, _)) if name == key => format!("{key}={value}\n"),
                            _ => format!("{line}\n"),
                        });
                        fs::write(&path, lines.collect::<String>()).unwrap();
                        refuse(
                            &format!("{key}={value}"),
                            key.trim_start_matches("FLANNEL_"),
                        );
                    }
                    let without = right
                        .lines()
                        .filter(|line| !line.starts_with(&format!("{key}=")));
                    fs::write(
                        &path,
                        without.map(|line| format!("{line}\n")).collect::<String>(),
                    )
                    .unwrap();
                    refuse(&format!("no {key}"), key);
                }
                let _ = fs::remove_file(&path);
            }
            before.assert_same(&State::whole(), "in the end");
        },
    );
}

#[test]
fn a_damaged_folder_of_reservations_blocks_nobody() {
    with_a_pod("a_damaged_folder_of_reservations_blocks_nobody", |_| {
        let dir = Path::new("/var/lib/cni/networks/cbr0");
        let config = scene::main_config("twill");
        // As whoever made it would leave it: the folder's own time is changed.
        let names = [
            "10.244.1.3",
            "last_reserved_ip.0",
            "boot_id",
            "10.244.1.4.tmp",
            "x",
        ];
        for name in names {
            in_every_way(&dir.join(name), |what| {
                attach_and_detach(what, "twill", &config)
            });
        }
        assert_eq!(reserved("cbr0"), ["10.244.1.2"]);
    });
}

#[test]
fn a_damaged_index_loses_no_address() {
    with_a_pod("a_damaged_index_loses_no_address", |_| {
        let config = scene::main_config("twill");
        let owners = Path::new("/run/twill/owners");
        let folder = fs::read_dir(owners)
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        in_every_way(&folder, |what| attach_and_detach(what, "twill", &config));
        // A link of an owner's that says too much, too little, or is none.
        ok("twill", "ADD", &NEW, &config);
        let links = || {
            fs::read_dir(&folder)
                .unwrap()
                .map(|entry| entry.unwrap().path())
        };
        for target in [
            "../../../etc",
            "..",
            "/",
            "10.244.1.200/../x",
            "10.244.1.2",
            "\u{1b}[2J",
        ] {
            let all: Vec<PathBuf> = links().collect();
            assert!(!all.is_empty());
            for link in all {
                fs::remove_file(&link).unwrap();
                std::os::unix::fs::symlink(target, &link).unwrap();
            }
            // The folder itself is as it was: the index counts as whole.
            let answer = run("twill", "DEL", &NEW, &config);
            assert_eq!((answer.exit, answer.stdout.as_str()), (0, ""), "{target}");
            assert!(
                reserved("cbr0").contains(&"10.244.1.2".to_owned()),
                "{target}"
            );
            let added = run("twill", "ADD", &NEW, &config);
            assert_eq!(added.exit, 0, "{target}: {}", added.stdout);
            assert!(
                !added.stdout.contains("10.244.1.2/"),
                "{target}: {}",
                added.stdout
            );
        }
    });
}

#[test]
fn a_damaged_scratch_file_or_backup_stops_no_del() {
    with_a_pod(
        "a_damaged_scratch_file_or_backup_stops_no_del",
        |previous| {
            let config = scene::main_config("flannel");
            let scratch = Path::new("/var/lib/cni/flannel/def");
            for content in bad_contents() {
                ok("flannel", "ADD", &NEW, &config);
                fs::write(scratch, &content).unwrap();
                run("flannel", "DEL", &NEW, &config).ok();
                assert_eq!(reserved("cbr0"), ["10.244.1.2"]);
                assert!(!scratch.exists());
                assert!(!tool("ip -n pod2 -o link").contains("eth0"));
            }
            let mut tuning = scene::config("tuning", previous);
            tuning["mtu"] = json!(1300);
            let backup = Path::new("/run/cni/tuning/abc_eth0.json");
            in_every_way(backup, |what| {
                let answer = run("tuning", "DEL", &[], &tuning);
                assert!(
                    answer.stdout.is_empty() || answer.json()["code"].is_u64(),
                    "{what}"
                );
                assert!(
                    tool("ip -n pod -o link show eth0").contains("mtu 1450"),
                    "{what}"
                );
            });
        },
    );
}

#[test]
fn a_file_of_name_servers_that_is_none_is_named() {
    with_a_pod("a_file_of_name_servers_that_is_none_is_named", |_| {
        let path = Path::new("/run/conf/resolv");
        let mut config = scene::main_config("host-local");
        config["ipam"]["resolvConf"] = json!(path);
        in_every_way(path, |what| {
            let answer = run("host-local", "ADD", &NEW, &config);
            match answer.exit {
                // Text with nothing in it for us is no fault.
                0 => drop(answer.json()),
                _ => {
                    let (code, text) = refused(what, &answer).unwrap();
                    assert!(
                        code == 7 && text.contains("/run/conf/resolv"),
                        "{what}: {text}"
                    );
                }
            }
            run("host-local", "DEL", &NEW, &config).ok();
        });
    });
}
