//! The extension backend's programs and the peers that leave while nobody looks.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Result;
use cni_test_harness::cluster::{Cluster, READY_DEADLINE, Spec};
use cni_test_harness::{netns, wait};
use serde_json::json;

const SOON: Duration = Duration::from_secs(15);

fn put(store: &Path, n: u8) -> Result<PathBuf> {
    let path = store.join(format!("subnets/10.244.{n}.0-24"));
    fs::create_dir_all(store.join("subnets"))?;
    let value = format!(
        r#"{{"PublicIP":"192.168.50.{n}","BackendType":"extension","BackendData":"of {n}"}}"#
    );
    fs::write(&path, value)?;
    let tomorrow = SystemTime::now() + Duration::from_secs(24 * 60 * 60);
    let file = fs::File::options().write(true).open(&path)?;
    file.set_modified(tomorrow)?;
    Ok(path)
}

#[test]
fn a_peer_that_left_while_the_daemon_was_down_is_taken_back_at_the_next_start() -> Result<()> {
    let name = netns::unique_name("extension");
    let dir = std::env::temp_dir().join(&name);
    let (hook, log) = (dir.join("hook"), dir.join("hook.log"));
    let command = |verb: &str| json!([hook, verb, "$SUBNET", "$PUBLIC_IP"]);
    let spec = Spec {
        nodes: 1,
        net_conf: json!({"Network": "10.244.0.0/16", "SubnetMax": "10.244.99.0", "Backend": {
            "Type": "extension",
            "SubnetAddCommand": command("add"), "SubnetRemoveCommand": command("remove")
        }}),
        ..Spec::default()
    };
    let mut cluster = Cluster::lay_out(&spec, &name, &dir)?;
    // One write per call: several run at once.
    let script = format!(
        "#!/bin/sh\nread data\necho \"$* $data\" >>{}\n",
        log.display()
    );
    fs::write(&hook, script)?;
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755))?;
    let store = cluster.store_dir();
    let [left, _stays] = [put(&store, 200)?, put(&store, 201)?];
    let said = || fs::read_to_string(&log).unwrap_or_default();
    let wait_for = |lines: &[&str]| {
        wait::until_true(&format!("{lines:?}"), SOON, || {
            let said = said();
            let mut told: Vec<_> = said.lines().collect();
            told.sort_unstable();
            Ok(told == lines)
        })
    };
    cluster.member_mut(0).start_daemon()?;
    cluster.member_mut(0).wait_ready(READY_DEADLINE)?;
    let both = [
        "add 10.244.200.0/24 192.168.50.200 of 200",
        "add 10.244.201.0/24 192.168.50.201 of 201",
    ];
    wait_for(&both)?;

    cluster.member_mut(0).kill_daemon();
    fs::remove_file(left)?;
    fs::remove_file(&log)?;
    cluster.member_mut(0).start_daemon()?;
    let gone = "remove 10.244.200.0/24 192.168.50.200 of 200";
    wait_for(&[both[1], gone])?;

    // Told once is enough.
    cluster.member_mut(0).stop_daemon(SOON)?;
    fs::remove_file(&log)?;
    cluster.member_mut(0).start_daemon()?;
    wait_for(&[both[1]])?;
    put(&store, 202)?;
    let new = "add 10.244.202.0/24 192.168.50.202 of 202";
    wait_for(&[both[1], new])
}
