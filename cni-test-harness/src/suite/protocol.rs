//! Versions, results and errors as the specification wants them.

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::site::{Site, failure};
use super::{Plugins, Promise};
use crate::netns::Netns;
use crate::runtime::{Attachment, Call};

pub(super) const RESULT_IN_1_1_0_IS_RIGHT: &str = "result_in_1_1_0_is_right";

pub(super) const PROMISES: &[Promise] = &[
    Promise {
        name: "result_in_every_version_up_to_1_0_0_is_right",
        run: results,
    },
    Promise {
        name: RESULT_IN_1_1_0_IS_RIGHT,
        run: result_1_1_0,
    },
    Promise {
        name: "version_lists_what_it_speaks",
        run: version,
    },
    Promise {
        name: "unknown_version_is_code_1",
        run: unknown_version,
    },
    Promise {
        name: "missing_variables_are_code_4",
        run: missing_variables,
    },
    Promise {
        name: "what_is_no_json_is_code_6",
        run: no_json,
    },
    Promise {
        name: "missing_network_name_is_code_7",
        run: no_name,
    },
];

const UP_TO_1_0_0: [&str; 6] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0"];

fn results(plugins: &Plugins) -> Result<()> {
    let check =
        |version: &&str| result_in(plugins, version).with_context(|| format!("in {version}"));
    UP_TO_1_0_0.iter().try_for_each(check)
}

fn result_1_1_0(plugins: &Plugins) -> Result<()> {
    result_in(plugins, "1.1.0")
}

fn result_in(plugins: &Plugins, version: &str) -> Result<()> {
    let site = Site::with(plugins, version, "10.77.0.0/24")?;
    let pod = site.pod()?;
    // What was printed, for the runtime fills in a missing version.
    let result: Value = serde_json::from_slice(&pod.added().raw).context("one JSON document")?;
    ensure!(
        result["cniVersion"] == version,
        "cniVersion is {}",
        result["cniVersion"]
    );
    let (address, gateway) = (
        format!("{}/24", site.address(2)),
        site.gateway().to_string(),
    );
    if matches!(version, "0.1.0" | "0.2.0") {
        let ip4 = &result["ip4"];
        ensure!(
            ip4["ip"] == address.as_str() && ip4["gateway"] == gateway.as_str(),
            "ip4 is {ip4}"
        );
        ensure!(
            ip4["routes"].as_array().is_some_and(|all| all.len() == 2),
            "ip4 is {ip4}"
        );
        ensure!(
            result.get("ips").is_none() && result.get("interfaces").is_none(),
            "{result}"
        );
    } else {
        let ip = &result["ips"][0];
        ensure!(
            ip["address"] == address.as_str() && ip["gateway"] == gateway.as_str(),
            "{ip}"
        );
        let family = (!version.starts_with('1')).then_some("4");
        ensure!(
            ip["version"].as_str() == family,
            "ips[0].version is {}",
            ip["version"]
        );
        ensure!(
            ip["interface"] == 2,
            "ips[0].interface is {}",
            ip["interface"]
        );
        ensure!(
            result["interfaces"]
                .as_array()
                .is_some_and(|all| all.len() == 3),
            "{result}"
        );
        ensure!(result.get("ip4").is_none(), "{result}");
    }
    if !version.starts_with('1') {
        ensure!(result["dns"].is_object(), "dns is {}", result["dns"]);
    }
    pod.delete()
}

fn version(plugins: &Plugins) -> Result<()> {
    let site = Site::new(plugins)?;
    let kind = site.list().plugins[0]["type"]
        .as_str()
        .context("type")?
        .to_owned();
    let versions = site.runtime().supported_versions(&kind)?;
    let missing: Vec<_> = UP_TO_1_0_0
        .iter()
        .filter(|version| !versions.contains(&(**version).to_owned()))
        .collect();
    ensure!(missing.is_empty(), "{missing:?} are not in {versions:?}");
    Ok(())
}

fn unknown_version(plugins: &Plugins) -> Result<()> {
    for unknown in ["9.9.9", "1.0", "v1.0.0"] {
        let site = Site::with(plugins, unknown, "10.77.0.0/24")?;
        let refused = failure(&format!("ADD in version {unknown}"), site.pod().map(drop))?;
        ensure!(refused.code == Some(1), "{unknown}: not code 1: {refused}");
        ensure!(
            site.node().view().link_names()?.is_empty(),
            "{unknown}: a link was made"
        );
    }
    Ok(())
}

/// A raw ADD for a namespace of its own, changed by `change`; its error code.
fn code_of(plugins: &Plugins, change: impl FnOnce(&mut Call) -> Result<()>) -> Result<i64> {
    let (site, pod) = (Site::new(plugins)?, Netns::new("pod")?);
    let attachment = Attachment::eth0("cid", &pod.path());
    let mut call = site
        .runtime()
        .compose("ADD", site.list(), 0, &attachment, &[])?;
    change(&mut call)?;
    let output = site.runtime().call(&call)?;
    ensure!(
        output.code() == 1,
        "exit {}: {}",
        output.code(),
        output.stdout_text()
    );
    ensure!(
        site.node().view().link_names()?.is_empty(),
        "a link was made"
    );
    ensure!(site.reserved()?.is_empty(), "an address was reserved");
    let error: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("not one error object: {}", output.stdout_text()))?;
    ensure!(
        error["msg"].as_str().is_some_and(|msg| !msg.is_empty()),
        "no msg: {error}"
    );
    error["code"]
        .as_i64()
        .with_context(|| format!("no code: {error}"))
}

fn missing_variables(plugins: &Plugins) -> Result<()> {
    for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"] {
        let code = code_of(plugins, |call| {
            call.env.retain(|(key, _)| key != name);
            Ok(())
        })?;
        ensure!(code == 4, "without {name}: code {code}");
    }
    Ok(())
}

fn no_json(plugins: &Plugins) -> Result<()> {
    for stdin in ["", "{", "[]", "{\"name\":7}"] {
        let code = code_of(plugins, |call| {
            call.stdin = stdin.into();
            Ok(())
        })?;
        ensure!(code == 6, "{stdin:?}: code {code}");
    }
    Ok(())
}

fn no_name(plugins: &Plugins) -> Result<()> {
    for name in ["", "a/b", "-a"] {
        let code = code_of(plugins, |call| {
            let mut conf: Value = serde_json::from_slice(&call.stdin)?;
            conf["name"] = name.into();
            call.stdin = conf.to_string().into_bytes();
            Ok(())
        })?;
        ensure!(code == 7, "{name:?}: code {code}");
    }
    Ok(())
}
