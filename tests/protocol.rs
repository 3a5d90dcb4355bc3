//! The protocol of CNI 1.1.0 towards a runtime, by the real binary: environment and stdin in, exit
//! code and stdout out. What is refused is one JSON document with the code for it, and changes
//! nothing. (The names begin with the IDs of tests/requirements.md.)

use anyhow::{Context, Result, ensure};
use cni_test_harness::netns::Netns;
use cni_test_harness::pod::Pod;
use cni_test_harness::process::Output;
use cni_test_harness::runtime::{Attachment, Call};
use cni_test_harness::suite::{Plugins, Site};
use serde_json::{Value, json};

/// A node, a pod on it that is not attached, and how it would be.
struct Stage {
    site: Site,
    attachment: Attachment,
    _pod: Netns,
}

impl Stage {
    fn new(version: &str) -> Result<Self> {
        let pod = Netns::new("pod")?;
        Ok(Self {
            site: Site::with(&Plugins::twill()?, version, "10.77.0.0/24")?,
            attachment: Attachment::eth0(pod.name(), &pod.path()),
            _pod: pod,
        })
    }

    fn call(&self, verb: &str) -> Result<Call> {
        let (list, more) = (self.site.list(), []);
        (self.site.runtime()).compose(verb, list, 0, &self.attachment, &more)
    }

    fn run(&self, call: &Call) -> Result<Output> {
        self.site.runtime().call(call)
    }

    /// Runs what must succeed without a word on stdout.
    fn silent(&self, call: &Call) -> Result<()> {
        let output = self.run(call)?;
        let said = output.stdout_text();
        ensure!(output.status.success() && said.is_empty(), "{said}");
        Ok(())
    }

    /// Runs what must be refused; the code, and message with details. Nothing may be changed.
    fn refused(&self, call: &Call) -> Result<(i64, String)> {
        let output = self.run(call)?;
        let said = output.stdout_text();
        ensure!(output.code() == 1, "exit {}: {said}", output.code());
        let document: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("not one document: {said:?}"))?;
        ensure!(document["cniVersion"].is_string(), "{said}");
        let code = document["code"].as_i64().context("a code")?;
        let msg = document["msg"].as_str().context("a message")?;
        ensure!(!msg.is_empty(), "{said}");
        self.untouched()?;
        let details = document["details"].as_str().unwrap_or_default();
        Ok((code, format!("{msg} {details}")))
    }

    fn untouched(&self) -> Result<()> {
        let links = self.site.node().view().link_names()?;
        ensure!(links.is_empty(), "links were made: {links:?}");
        let reserved = std::fs::read_dir(self.site.ipam_dir().join("cbr0"));
        ensure!(reserved.is_err(), "addresses were reserved");
        Ok(())
    }
}

fn set(call: &mut Call, name: &str, value: &str) {
    unset(call, name);
    call.env.push((name.to_owned(), value.to_owned()));
}

fn unset(call: &mut Call, name: &str) {
    call.env.retain(|(key, _)| key != name);
}

fn configured(call: &mut Call, change: impl FnOnce(&mut Value)) -> Result<()> {
    let mut config: Value = serde_json::from_slice(&call.stdin)?;
    change(&mut config);
    call.stdin = config.to_string().into_bytes();
    Ok(())
}

#[test]
fn p1_a_bad_variable_is_code_4_and_names_its_fault() -> Result<()> {
    let stage = Stage::new("1.1.0")?;
    let long = "e".repeat(16);
    let huge = "a".repeat(60_000);
    let ids = [
        "../x", "a/b", "-a", ".a", "a b", "a\nb", "a\u{7}b", "ä", "a;b",
    ];
    let id = ids.map(|id| ("CNI_CONTAINERID", id, "invalid characters in containerID"));
    let separators = ["a/b", "a:b", "a b", "a\tb", "a\nb", "a\u{a0}b", "/"];
    let shape = "interface name contains / or : or whitespace";
    let ifname = separators.map(|name| ("CNI_IFNAME", name, shape));
    let others = [
        ("CNI_IFNAME", long.as_str(), "interface name is too long"),
        ("CNI_IFNAME", huge.as_str(), "interface name is too long"),
        ("CNI_IFNAME", ".", "interface name is . or .."),
        ("CNI_IFNAME", "..", "interface name is . or .."),
    ];
    for (name, value, said) in id.into_iter().chain(ifname).chain(others) {
        for verb in ["ADD", "CHECK", "DEL"] {
            let mut call = stage.call(verb)?;
            set(&mut call, name, value);
            let (code, text) = stage.refused(&call)?;
            ensure!(
                code == 4 && text.contains(said),
                "{verb} {name}={value:?}: {code} {text}"
            );
        }
    }
    Ok(())
}

#[test]
fn p1_missing_variables_are_named_all_at_once() -> Result<()> {
    let stage = Stage::new("1.1.0")?;
    let all = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"];
    for (verb, needed) in [("ADD", &all[..]), ("CHECK", &all[..])] {
        let mut call = stage.call(verb)?;
        needed.iter().for_each(|name| unset(&mut call, name));
        let (code, text) = stage.refused(&call)?;
        let expected = format!("required env variables [{}] missing", needed.join(","));
        ensure!(
            code == 4 && text.contains(&expected),
            "{verb}: {code} {text}"
        );
    }
    let mut call = stage.call("DEL")?;
    all.iter().for_each(|name| set(&mut call, name, ""));
    let (code, text) = stage.refused(&call)?;
    let expected = "required env variables [CNI_CONTAINERID,CNI_IFNAME] missing";
    ensure!(code == 4 && text.contains(expected), "DEL: {code} {text}");
    Ok(())
}

#[test]
fn p1_names_at_the_limits_are_taken() -> Result<()> {
    let mut stage = Stage::new("1.1.0")?;
    stage.attachment.ifname = "e".repeat(15);
    stage.attachment.container_id = format!("0{}", "A_.-".repeat(16));
    let (site, attachment) = (&stage.site, &stage.attachment);
    site.runtime().add(site.list(), attachment)?;
    site.runtime().check(site.list(), attachment)?;
    site.runtime().del(site.list(), attachment)
}

#[test]
fn p2_cni_path_may_be_absent_but_for_gc() -> Result<()> {
    let stage = Stage::new("1.1.0")?;
    let without = |verb: &str| -> Result<Call> {
        let mut call = stage.call(verb)?;
        unset(&mut call, "CNI_PATH");
        Ok(call)
    };
    let (code, text) = stage.refused(&without("GC")?)?;
    ensure!(
        code == 4 && text.contains("[CNI_PATH]"),
        "GC: {code} {text}"
    );
    stage.silent(&without("STATUS")?)?;
    let added = stage.run(&without("ADD")?)?;
    ensure!(added.status.success(), "{}", added.stdout_text());
    let mut check = without("CHECK")?;
    let result: Value = serde_json::from_slice(&added.stdout)?;
    configured(&mut check, |config| config["prevResult"] = result)?;
    stage.silent(&check)?;
    stage.silent(&without("DEL")?)
}

#[test]
fn p3_without_a_command_it_says_what_it_is_and_an_unknown_one_is_code_4() -> Result<()> {
    let stage = Stage::new("1.1.0")?;
    for command in [None, Some("")] {
        let mut call = stage.call("ADD")?;
        unset(&mut call, "CNI_COMMAND");
        command
            .into_iter()
            .for_each(|it| set(&mut call, "CNI_COMMAND", it));
        let output = stage.run(&call)?;
        ensure!(output.status.success() && output.stdout.is_empty());
        let said = output.stderr_text();
        ensure!(
            said.starts_with("CNI twill plugin v") && said.contains("0.3.1, 0.4.0, 1.0.0, 1.1.0"),
            "{said}"
        );
    }
    for unknown in ["NOPE", "add", "ADD ", "A\u{7}D"] {
        let mut call = stage.call("ADD")?;
        set(&mut call, "CNI_COMMAND", unknown);
        let (code, text) = stage.refused(&call)?;
        ensure!(
            code == 4 && text.contains("unknown CNI_COMMAND"),
            "{code} {text}"
        );
    }
    Ok(())
}

#[test]
fn p4_v1_version_needs_nothing_and_reads_nothing() -> Result<()> {
    let stage = Stage::new("1.1.0")?;
    for stdin in [
        &b""[..],
        b"{\"cniVersion\":\"9.9.9\"}",
        b"no JSON",
        b"\xff\xfe",
    ] {
        let call = Call {
            program: stage.call("ADD")?.program,
            env: vec![("CNI_COMMAND".into(), "VERSION".into())],
            stdin: stdin.to_vec(),
        };
        let output = stage.run(&call)?;
        ensure!(output.status.success());
        let versions = [
            "0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0",
        ];
        let expected = json!({"cniVersion": "1.1.0", "supportedVersions": versions});
        ensure!(output.stdout_text() == format!("{expected}\n"));
    }
    Ok(())
}

#[test]
fn p5_a_version_is_matched_letter_for_letter() -> Result<()> {
    let stage = Stage::new("1.1.0")?;
    for version in [
        "9.9.9", "1.0", "v1.0.0", "1.0.0 ", "asdf", "1.0.0\n", "../1.0.0",
    ] {
        for verb in ["ADD", "DEL"] {
            let mut call = stage.call(verb)?;
            configured(&mut call, |config| config["cniVersion"] = version.into())?;
            let (code, text) = stage.refused(&call)?;
            let named = text.contains(&format!("{version:?}"));
            ensure!(code == 1 && named, "{verb} {version:?}: {code} {text}");
        }
    }
    for (version, wanted) in [("9.9.9", 1), ("asdf", 6), ("1.2.3.4.5", 6), ("1.", 6)] {
        for verb in ["CHECK", "GC", "STATUS"] {
            let mut call = stage.call(verb)?;
            configured(&mut call, |config| config["cniVersion"] = version.into())?;
            let (code, text) = stage.refused(&call)?;
            ensure!(code == wanted, "{verb} {version:?}: {code} {text}");
        }
    }
    Ok(())
}

#[test]
fn p5_an_absent_version_is_0_1_0() -> Result<()> {
    let stage = Stage::new("1.1.0")?;
    let mut call = stage.call("ADD")?;
    configured(&mut call, |config| {
        config
            .as_object_mut()
            .map(|config| config.remove("cniVersion"));
    })?;
    let output = stage.run(&call)?;
    let result: Value = serde_json::from_slice(&output.stdout)?;
    ensure!(
        result["cniVersion"] == "0.1.0" && result["ip4"]["ip"] == "10.77.0.2/24",
        "{result}"
    );
    stage.silent(&stage.call("DEL")?)
}

#[test]
fn a_pod_is_what_it_was_while_its_node_has_no_subnet() -> Result<()> {
    let site = Site::with(&Plugins::twill()?, "1.1.0", "10.77.0.0/24")?;
    let pod = || Pod::new(site.runtime(), site.list());
    let (whole, hurt) = (pod()?, pod()?);
    let env = std::fs::read(site.subnet_file())?;
    std::fs::remove_file(site.subnet_file())?;
    for pod in [&whole, &hurt] {
        pod.check()?;
    }
    // It is looked at as closely as ever.
    hurt.netns().ip(&["addr", "flush", "dev", "eth0"])?;
    whole.check()?;
    ensure!(hurt.check().is_err());
    // Nor is it another pod after the node was given another subnet.
    let env = String::from_utf8(env)?.replace("10.77.0.", "10.77.9.");
    std::fs::write(site.subnet_file(), env)?;
    whole.check()?;
    ensure!(hurt.check().is_err());
    Ok(())
}

#[test]
fn p8_a_verb_that_the_configs_version_has_not_is_code_1() -> Result<()> {
    for version in ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
        let stage = Stage::new(version)?;
        let mut verbs = vec!["GC", "STATUS"];
        verbs.extend((version < "0.4.0").then_some("CHECK"));
        for verb in verbs {
            let (code, text) = stage.refused(&stage.call(verb)?)?;
            let said = format!("config version does not allow {verb}");
            ensure!(
                code == 1 && text.contains(&said),
                "{version}: {code} {text}"
            );
        }
    }
    Ok(())
}

#[test]
fn p7_g1_g2_g3_success_says_nothing_but_the_result() -> Result<()> {
    let stage = Stage::new("1.1.0")?;
    let added = stage.run(&stage.call("ADD")?)?;
    let result: Value = serde_json::from_slice(&added.stdout).context("one document")?;
    ensure!(added.status.success() && result["cniVersion"] == "1.1.0");
    let with_result = |verb: &str| -> Result<Call> {
        let mut call = stage.call(verb)?;
        configured(&mut call, |config| config["prevResult"] = result.clone())?;
        Ok(call)
    };
    stage.silent(&with_result("CHECK")?)?;
    stage.silent(&stage.call("STATUS")?)?;
    let mut gc = stage.call("GC")?;
    let valid = json!([{"containerID": stage.attachment.container_id, "ifname": "eth0"}]);
    configured(&mut gc, |config| {
        config["cni.dev/valid-attachments"] = valid
    })?;
    stage.silent(&gc)?;
    stage.silent(&with_result("CHECK")?)?;
    stage.silent(&with_result("DEL")?)?;
    stage.silent(&with_result("DEL")?)
}

#[test]
fn g5_unknown_keys_and_capabilities_pass() -> Result<()> {
    let stage = Stage::new("1.1.0")?;
    let mut call = stage.call("ADD")?;
    configured(&mut call, |config| {
        config["capabilities"] = json!({"portMappings": true, "x": 1});
        config["example.com/anything"] = json!({"a": [1, null, {"b": "\u{0}"}]});
        config["disableGC"] = json!("true");
    })?;
    let output = stage.run(&call)?;
    ensure!(output.status.success(), "{}", output.stdout_text());
    stage.silent(&stage.call("DEL")?)
}

#[test]
fn p7_what_is_enormous_deep_or_torn_is_code_6() -> Result<()> {
    let stage = Stage::new("1.1.0")?;
    let whole = stage.call("ADD")?.stdin;
    let deep = |open: &str| format!("{{\"name\":\"n\",\"x\":{}", open.repeat(200_000));
    let mut inputs = vec![
        deep("[").into_bytes(),
        deep("{\"a\":").into_bytes(),
        [&whole[..], b"{}"].concat(),
        [&b"\xef\xbb\xbf"[..], &whole].concat(),
        b"\x00".to_vec(),
        b"{\"name\":\"\xff\"}".to_vec(),
        format!("{{\"name\":\"n\",\"mtu\":{}}}", "9".repeat(1 << 20)).into_bytes(),
    ];
    inputs.extend(
        (1..whole.len())
            .step_by(whole.len() / 16)
            .map(|at| whole[..at].to_vec()),
    );
    for stdin in inputs {
        let mut call = stage.call("ADD")?;
        let shown = String::from_utf8_lossy(&stdin[..stdin.len().min(80)]).into_owned();
        call.stdin = stdin;
        let (code, text) = stage.refused(&call)?;
        ensure!(code == 6, "{shown}: {code} {text}");
    }
    Ok(())
}

#[test]
fn g6_pods_are_deleted_while_status_says_no() -> Result<()> {
    let stage = Stage::new("1.1.0")?;
    let added = stage.run(&stage.call("ADD")?)?;
    ensure!(added.status.success(), "{}", added.stdout_text());
    std::fs::remove_file(stage.site.subnet_file())?;
    let status = stage.run(&stage.call("STATUS")?)?;
    let said: Value = serde_json::from_slice(&status.stdout)?;
    ensure!(said["code"] == 50, "{said}");
    stage.silent(&stage.call("DEL")?)
}
