//! The same for a whole Kubernetes cluster, whose network is what `kubectl apply` of the manifest in
//! conf/ makes it: nodes become ready, pods answer each other over TCP and UDP.

use std::path::Path;

use anyhow::{Result, ensure};

use super::show::table;
use super::{DIR, NAME, down, stands};
use crate::containerd::Programs;
use crate::kubernetes::cluster::{Cluster, Network, Spec};
use crate::kubernetes::workload::Answer;
use crate::progress::Progress;

/// Builds the cluster, shows it, and takes it down unless it is kept.
pub fn run(keep: bool) -> Result<()> {
    let progress = Progress::new();
    if stands() {
        progress.step("an earlier demo is removed", down)?;
    }
    let cluster = match build(&progress) {
        Ok(cluster) => cluster,
        Err(error) => {
            down()?;
            return Err(error);
        }
    };
    let verdict = show(&cluster, &progress);
    if keep {
        progress.heading("How to look around");
        look_around(&cluster)
            .iter()
            .for_each(|line| progress.line(line));
        cluster.keep();
    } else {
        progress.heading("Taken down");
        drop(cluster);
        progress.step("nodes removed", down)?;
    }
    verdict
}

fn build(progress: &Progress) -> Result<Cluster> {
    progress.heading("A Kubernetes cluster of two nodes, on this machine");
    let spec = Spec {
        nodes: 2,
        containerd: Programs::of_the_distribution()?,
        dual_stack: false,
    };
    let what = "etcd, API server, controller manager, scheduler; containerd and kubelet per node";
    let mut cluster = progress.step(what, || Cluster::lay_out(&spec, NAME, Path::new(DIR)))?;
    progress.step("kubectl apply -f conf/kube-twill.yaml", || {
        cluster.install_network(Network::Manifest)
    })?;
    progress.step("both nodes are ready", || cluster.wait_ready())?;
    progress.step("two DaemonSets and a Deployment are rolled out", || {
        cluster.deploy(4)
    })?;
    Ok(cluster)
}

fn show(cluster: &Cluster, progress: &Progress) -> Result<()> {
    let kubectl = |args: &[&str]| -> Result<()> {
        progress.heading(&format!("kubectl {}", args.join(" ")));
        let said = cluster.kubectl(args)?;
        said.lines()
            .for_each(|line| progress.line(&format!("  {line}")));
        Ok(())
    };
    kubectl(&["get", "nodes", "-o", "wide"])?;
    kubectl(&["get", "pods", "--all-namespaces", "-o", "wide"])?;
    let annotations = "jsonpath={range .items[*]}{.metadata.name} {.spec.podCIDR} {.metadata.annotations}{\"\\n\"}{end}";
    kubectl(&["get", "nodes", "-o", annotations])?;
    for worker in cluster.workers() {
        progress.heading(worker.name());
        for command in [
            "ip route",
            "ip neigh show dev flannel.1",
            "bridge fdb show dev flannel.1",
        ] {
            progress.line(&format!("  $ {command}"));
            let words: Vec<&str> = command.split(' ').collect();
            let said = worker.node().exec(words[0], &words[1..])?.stdout_text();
            said.lines()
                .for_each(|line| progress.line(&format!("    {}", line.trim_end())));
        }
    }
    progress.heading("Who answers whom (row asks column), over TCP and UDP");
    // Whoever has just started may not listen yet.
    let _ = cluster.wait_all_reached();
    let answers = cluster.ask_all()?;
    table(&matrix(&answers))
        .iter()
        .for_each(|line| progress.line(line));
    let (all, lost) = (
        answers.len(),
        answers.iter().filter(|answer| !answer.right()).count(),
    );
    ensure!(
        all > 0 && lost == 0,
        "{lost} of {all} questions were not answered"
    );
    progress.line(&format!(
        "\nAll {all} questions answered: every pod reaches every pod, and the nodes' own network."
    ));
    Ok(())
}

fn matrix(answers: &[Answer]) -> Vec<Vec<String>> {
    let mut names: Vec<&str> = answers.iter().map(|answer| &*answer.from).collect();
    names.dedup();
    let cell = |from: &str, to: &str| {
        let of = answers
            .iter()
            .filter(|answer| answer.from == from && answer.to == to);
        let lost: Vec<&str> = of
            .filter(|answer| !answer.right())
            .map(|answer| &*answer.protocol)
            .collect();
        match lost.is_empty() {
            true => "ok".to_owned(),
            false => format!("LOST {}", lost.join(" ")),
        }
    };
    let heading = std::iter::once(String::new()).chain(names.iter().map(|name| (*name).to_owned()));
    let row = |from: &&str| {
        let cells = names.iter().map(|to| cell(from, to));
        std::iter::once((*from).to_owned()).chain(cells).collect()
    };
    std::iter::once(heading.collect())
        .chain(names.iter().map(row))
        .collect()
}

/// Commands that work while the demo stands, with what each shows.
fn look_around(cluster: &Cluster) -> Vec<String> {
    let kubectl = cluster.server().kubectl_line();
    let commands = [
        (format!("alias k='{kubectl}'"), "kubectl of this cluster"),
        (
            "k get pods --all-namespaces -o wide".to_owned(),
            "everything that runs",
        ),
        (
            "k -n kube-twill logs daemonset/kube-twill-ds".to_owned(),
            "what twilld says",
        ),
        (
            "k exec -it daemonset/each -- sh".to_owned(),
            "a shell in a pod",
        ),
        (
            format!("ip netns exec {NAME}-node1 ip route"),
            "node 1's routes",
        ),
        (
            format!("tail {DIR}/node1/log/kubelet.log"),
            "what its kubelet says",
        ),
        ("./dev demo --down".to_owned(), "take it down"),
    ];
    let width = commands
        .iter()
        .map(|(command, _)| command.len())
        .filter(|width| *width < 60);
    let width = width.max().unwrap_or_default();
    let line = |(command, what): &(String, &str)| format!("  {command:<width$}  # {what}");
    commands.iter().map(line).collect()
}
