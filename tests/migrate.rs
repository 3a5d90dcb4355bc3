//! `twilld migrate`: a cluster changes its store with its pods running, and no node changes its
//! subnet.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use cni_test_harness::cluster::{Cluster, READY_DEADLINE, Spec};
use cni_test_harness::etcd::{self, Etcd, Setup};
use cni_test_harness::process::{self, Output};
use cni_test_harness::stream::Stream;
use cni_test_harness::{skip_unless, tools};

const SOON: Duration = Duration::from_secs(20);
const PREFIX: &str = "/test/network";

fn migrate(etcd: &Etcd, args: &[&str]) -> Result<Output> {
    let mut twilld = etcd.command_beside(&tools::built("twilld")?)?;
    twilld.arg("migrate").args(args);
    process::run(&mut twilld, b"", SOON)
}

#[test]
fn a_running_cluster_moves_from_a_folder_to_etcd_without_losing_a_packet() -> Result<()> {
    skip_unless!(etcd::installed());
    let mut cluster = Cluster::start(&Spec::default())?;
    let (near, far) = (cluster.pod(0)?, cluster.pod(1)?);
    let address = cluster.member(0).place().v4_gateway.into();
    let etcd = Setup::default()
        .inside(cluster.underlay().middle(), address)
        .start()?;
    let place = format!("etcd:{}{PREFIX}", etcd.endpoints());
    let from = format!("--from=file:{}", cluster.store_dir().display());
    let to = format!("--to={place}");

    // Looking costs nothing, and copying twice is copying once.
    let dry = migrate(&etcd, &["--dry-run", &from, &to])?;
    assert_eq!(
        (dry.code(), &*dry.stdout_text()),
        (
            0,
            "would be: config copied; leases: 2 copied, 0 there already\n"
        ),
        "{}",
        dry.stderr_text()
    );
    assert_eq!(etcd.entries(PREFIX)?, []);
    for said in [
        "config copied; leases: 2 copied, 0 there already\n",
        "config kept; leases: 0 copied, 2 there already\n",
    ] {
        let done = migrate(&etcd, &[&from, &to])?;
        assert_eq!((done.code(), &*done.stdout_text()), (0, said));
    }
    let subnets = |cluster: &Cluster| {
        let members = cluster.members().iter();
        members
            .map(|member| member.subnet())
            .collect::<Result<Vec<_>>>()
    };
    let before = subnets(&cluster)?;
    let stream = Stream::start(near.netns(), far.ip()?)?;
    for index in 0..cluster.members().len() {
        let member = cluster.member_mut(index);
        member.stop_daemon(SOON)?;
        member.add_twilld_args(&[
            format!("--etcd-endpoints={}", etcd.endpoints()),
            format!("--etcd-prefix={PREFIX}"),
        ]);
        member.start_daemon()?;
    }
    // The folder is of no use any more; the nodes follow etcd.
    std::fs::remove_dir_all(cluster.store_dir())?;
    cluster.wait_in_sync(READY_DEADLINE)?;
    let (key, value) = (
        format!("{PREFIX}/subnets/10.244.250.0-24"),
        r#"{"PublicIP":"192.168.50.77","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:77"}}"#,
    );
    etcd.put(&key, value, None)?;
    for member in cluster.members() {
        member.wait_for("a route to a new peer", SOON, |view| {
            let routes = view.routes(cni_test_harness::observe::Family::V4)?;
            Ok(routes.iter().any(|route| route.dst == "10.244.250.0/24"))
        })?;
    }
    let answers = stream.end()?;
    assert_eq!(answers.lost, Vec::<usize>::new());
    assert_eq!(subnets(&cluster)?, before);
    Ok(())
}

#[test]
fn what_is_left_out_is_named_and_told_by_the_exit_code() -> Result<()> {
    skip_unless!(etcd::installed());
    let etcd = Etcd::start()?;
    let value = |n: u8| format!(r#"{{"PublicIP":"192.168.50.{n}","BackendType":"vxlan"}}"#);
    let key = |name: &str| format!("{PREFIX}/subnets/{name}");
    etcd.put_all(
        &[
            (key("10.244.1.0-24"), value(1)),
            (key("10.244.2.0-24"), value(2)),
            (key("nonsense"), value(3)),
        ],
        Some(3600),
    )?;
    let dir = tempfile::tempdir()?;
    let there = dir.path().join("subnets");
    std::fs::create_dir(&there)?;
    std::fs::write(there.join("10.244.2.0-24"), value(66))?;
    // A file's time is its end: an hour from now.
    let hour = std::time::SystemTime::now() + Duration::from_secs(3600);
    let file = std::fs::File::options()
        .write(true)
        .open(there.join("10.244.2.0-24"))?;
    file.set_modified(hour)?;
    let from = format!("--from=etcd:{}{PREFIX}", etcd.endpoints());
    let to = format!("--to=file:{}", dir.path().display());
    let done = migrate(&etcd, &[&from, &to])?;
    let said = done.stdout_text();
    assert_eq!(done.code(), 1, "{said}{}", done.stderr_text());
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(
        lines[..2],
        [
            "config kept; leases: 1 copied, 0 there already",
            "left out: 10.244.2.0-24: the target has another lease under this key"
        ]
    );
    assert!(
        lines[2].starts_with("left out: nonsense: its key: "),
        "{said}"
    );
    let kept = std::fs::read_to_string(there.join("10.244.2.0-24"))?;
    assert_eq!(kept, value(66));

    // A store in which nothing is was hardly meant.
    let empty = format!("--from=etcd:{}/elsewhere", etcd.endpoints());
    let new = dir.path().join("new");
    let done = migrate(&etcd, &[&empty, &format!("--to=file:{}", new.display())])?;
    let said = done.stdout_text();
    assert_eq!(done.code(), 1);
    assert!(
        said.contains("below /elsewhere: there is neither"),
        "{said}"
    );
    assert!(!new.exists());

    // An etcd that is not there is an error that names both sides.
    let gone = migrate(&etcd, &["--from=etcd:http://127.0.0.1:1", &to])?;
    let said = gone.stderr_text();
    assert_eq!(gone.code(), 1);
    assert!(said.contains("migrate from etcd at http://127.0.0.1:1") && said.contains("folder"));
    Ok(())
}

#[test]
fn a_wrong_order_is_refused_before_anything_is_opened() -> Result<()> {
    for (args, words) in [
        (
            ["--from=etcd", "--to=kubernetes"],
            "nothing can be copied to Kubernetes",
        ),
        (["--from=file:/x", "--to=nowhere"], "want file:DIR"),
    ] {
        let mut twilld = Command::new(tools::built("twilld")?);
        twilld
            .arg("migrate")
            .args(args)
            .args(["--kube-api-url=http://127.0.0.1:1"]);
        let refused = process::run(&mut twilld, b"", SOON)?;
        assert_eq!(refused.code(), 2);
        assert!(
            refused.stderr_text().contains(words),
            "{}",
            refused.stderr_text()
        );
    }
    assert!(!Path::new("/x").exists());
    Ok(())
}
