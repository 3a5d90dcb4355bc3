//! Each variable of the environment.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;

use serde_json::Value;

use super::calls::{Answer, variables};
use super::scene::{self, NEW, State, refused, with_a_pod};

/// The values that a variable must not have, the code, and the word that names it. A variable has
/// no NUL in it: the kernel's interface ends it there.
fn bad() -> Vec<(&'static str, Vec<u8>, u64, &'static str)> {
    let mut all = vec![];
    let mut add = |name, values: &[&[u8]], code, word| {
        all.extend(
            values
                .iter()
                .map(|value| (name, value.to_vec(), code, word)),
        );
    };
    let long = "a".repeat(100_000);
    let long = long.as_bytes();
    let not_utf8: &[u8] = b"a\xff";
    let ids: [&[u8]; 10] = [
        b"../../x",
        b"a/b",
        b"-a",
        b".",
        b"..",
        b"a b",
        b"a\nb",
        b"a\x1b[2J",
        "\u{202e}a".as_bytes(),
        b"a;b",
    ];
    add("CNI_CONTAINERID", &ids, 4, "containerID");
    add("CNI_CONTAINERID", &[not_utf8], 4, "CNI_CONTAINERID");
    add("CNI_CONTAINERID", &[b""], 4, "CNI_CONTAINERID");
    let names: [&[u8]; 10] = [
        b"../../x",
        b"a/b",
        b"a:b",
        b".",
        b"..",
        b"a b",
        b"a\nb",
        b"a\x1b[2J",
        b"a234567890123456",
        long,
    ];
    add("CNI_IFNAME", &names, 4, "interface name");
    add("CNI_IFNAME", &[not_utf8, b""], 4, "CNI_IFNAME");
    let args: [&[u8]; 12] = [
        b";",
        b"a",
        b"=",
        b"a=b=c",
        b"X=1",
        b"IP=",
        b"IP=x",
        b"IP=10.9.0.7\n",
        b"IP=10.9.0.7/33",
        b"IgnoreUnknown=maybe",
        b"\x1b[2J",
        long,
    ];
    add("CNI_ARGS", &args, 4, "ARGS");
    add("CNI_ARGS", &[not_utf8], 4, "CNI_ARGS");
    let commands: [&[u8]; 7] = [
        b"NOPE",
        b"add",
        b"ADD ",
        b"ADD\n",
        b"A\x1b[2J",
        b"../ADD",
        long,
    ];
    add("CNI_COMMAND", &commands, 4, "CNI_COMMAND");
    add("CNI_COMMAND", &[not_utf8], 4, "CNI_COMMAND");
    add("CNI_NETNS_OVERRIDE", &[not_utf8], 4, "CNI_NETNS_OVERRIDE");
    add("CNI_NETNS", &[b"", not_utf8], 4, "CNI_NETNS");
    all
}

fn run(kind: &str, verb: &str, name: &str, value: &[u8], config: &Value) -> Answer {
    let mut vars: BTreeMap<&str, OsString> = (variables(verb, &NEW).into_iter())
        .map(|(name, value)| (name, value.into()))
        .collect();
    let key = [name];
    vars.insert(key[0], OsStr::from_bytes(value).to_owned());
    let (mut stdout, mut stderr) = (vec![], vec![]);
    let exit = twill::run(twill::Process {
        program: OsStr::new(kind),
        env: &|key| vars.get(key).cloned(),
        stdin: &mut config.to_string().as_bytes(),
        stdout: &mut stdout,
        stderr: &mut stderr,
    });
    Answer {
        exit,
        stdout: String::from_utf8(stdout).unwrap(),
        stderr: String::from_utf8(stderr).unwrap(),
    }
}

#[test]
fn every_variable_is_refused_by_name_and_changes_nothing() {
    with_a_pod(
        "every_variable_is_refused_by_name_and_changes_nothing",
        |_| {
            let before = State::whole();
            for kind in ["twill", "flannel", "bridge", "host-local"] {
                let config = scene::main_config(kind);
                for (name, value, code, word) in bad() {
                    let shown: String = String::from_utf8_lossy(&value).chars().take(60).collect();
                    let what = format!("{kind} {name}={shown:?}");
                    let answer = run(kind, "ADD", name, &value, &config);
                    let (got, text) = refused(&what, &answer).unwrap();
                    assert_eq!(got, code, "{what}: {text}");
                    assert!(text.contains(word), "{what}: {text}");
                    assert!(
                        answer.stdout.len() < 1 << 14,
                        "{what}: {} bytes",
                        answer.stdout.len()
                    );
                }
            }
            before.assert_same(&State::whole(), "in the end");
        },
    );
}

#[test]
fn a_sandbox_that_is_none_is_named_and_changes_nothing() {
    with_a_pod(
        "a_sandbox_that_is_none_is_named_and_changes_nothing",
        |_| {
            let before = State::whole();
            let long = format!("/{}", "n/".repeat(50_000));
            for value in [
                "/run/netns/none",
                "../../x",
                "/run/netns/pod2/x",
                "/etc/passwd",
                "/dev/null",
                "/",
                " ",
                "\n",
                "/run/netns/pod2\n",
                "/run/netns/\u{1b}[2J",
                "/proc/4194304/ns/net",
                "/proc/thread-self/ns/mnt",
                &long,
            ] {
                for kind in ["twill", "flannel", "bridge"] {
                    let config = scene::main_config(kind);
                    let answer = run(kind, "ADD", "CNI_NETNS", value.as_bytes(), &config);
                    let shown: String = value.chars().take(40).collect();
                    let what = format!("{kind} CNI_NETNS={shown:?}");
                    let (_, text) = refused(&what, &answer).unwrap();
                    let names = text.contains("namespace") || text.contains("CNI_NETNS");
                    assert!(
                        names && answer.stdout.len() < 1 << 14,
                        "{what}: {}",
                        answer.stdout
                    );
                    let del = run(kind, "DEL", "CNI_NETNS", value.as_bytes(), &config);
                    assert_eq!((del.exit, del.stdout.as_str()), (0, ""), "{what}");
                }
            }
            before.assert_same(&State::whole(), "in the end");
        },
    );
}

#[test]
fn del_takes_arguments_that_are_none() {
    with_a_pod("del_takes_arguments_that_are_none", |_| {
        let before = State::whole();
        for kind in ["twill", "flannel", "bridge", "host-local"] {
            let config = scene::main_config(kind);
            for args in ["a=b=c", ";", "IP=x", "\n", "\u{1b}[2J"] {
                let answer = run(kind, "DEL", "CNI_ARGS", args.as_bytes(), &config);
                assert_eq!(
                    (answer.exit, answer.stdout.as_str()),
                    (0, ""),
                    "{kind} {args:?}"
                );
            }
        }
        before.assert_same(&State::whole(), "in the end");
    });
}
