//! What a cluster is for: pods that answer over TCP and UDP with their own names, on all their
//! addresses, on the pods' network and on the nodes', and who reaches whom.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::cluster::Cluster;
use crate::cri::image;
use crate::wait::Look;

/// The ports at which pods answer: on their own network, and on the node's.
const PORTS: [(&str, bool, u16); 3] = [
    ("each", false, 5000),
    ("some", false, 5000),
    ("host", true, 5001),
];

/// A pod that answers.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Answering {
    /// Its name, which is its answer.
    pub name: String,
    /// The node on which it runs.
    pub node: String,
    /// Where it answers.
    pub ips: Vec<IpAddr>,
    /// At which port, TCP and UDP.
    pub port: u16,
}

/// A question and who answered it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Answer {
    /// The pod that asked.
    pub from: String,
    /// `tcp4`, `udp6` and so on.
    pub protocol: String,
    /// The pod that was asked.
    pub to: String,
    /// The name that came back, or nothing.
    pub answer: String,
}

impl Answer {
    /// Whether the pod that was asked has answered.
    pub fn right(&self) -> bool {
        self.answer == self.to
    }
}

impl Cluster {
    /// A DaemonSet `each` and a Deployment `some` of `replicas` pods on the pods' network, and a
    /// DaemonSet `host` on the nodes'. Waits until all of them run.
    pub fn deploy(&self, replicas: u8) -> Result<()> {
        let objects = PORTS.map(|(name, on_host, port)| match name {
            "some" => workload("Deployment", name, Some(replicas), on_host, port),
            _ => workload("DaemonSet", name, None, on_host, port),
        });
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.apply(&list.to_string())?;
        self.wait_deployed()
    }

    /// Waits until the pods of [`Self::deploy`] run, on all the nodes that there are now.
    pub fn wait_deployed(&self) -> Result<()> {
        for what in ["daemonset/each", "daemonset/host", "deployment/some"] {
            self.kubectl(&["rollout", "status", what, "--timeout=300s"])?;
        }
        Ok(())
    }

    /// The pods of [`Self::deploy`] that run now and are to stay.
    pub fn answering(&self) -> Result<Vec<Answering>> {
        let pods = self.server().get_json(&["pods", "-l", "reach"])?;
        let items = pods["items"].as_array().context("a list of pods")?;
        let staying = items.iter().filter(|pod| {
            pod["metadata"]["deletionTimestamp"].is_null() && pod["status"]["phase"] == "Running"
        });
        staying.map(answering).collect()
    }

    /// Everybody asks everybody, over TCP and UDP.
    pub fn ask_all(&self) -> Result<Vec<Answer>> {
        let pods = self.answering()?;
        let mut answers = Vec::new();
        for from in &pods {
            let output =
                self.kubectl(&["exec", &from.name, "--", "sh", "-c", &questions(&pods)])?;
            answers.extend(parse(from, &pods, &output));
        }
        answers.sort();
        Ok(answers)
    }

    /// Waits until everybody reaches everybody, and says how many questions were answered.
    pub fn wait_all_reached(&self) -> Result<usize> {
        self.wait("every pod to reach every pod", || {
            let answers = self.ask_all()?;
            let wrong: Vec<_> = answers.iter().filter(|answer| !answer.right()).collect();
            Ok(match wrong.is_empty() && !answers.is_empty() {
                true => Look::Done(answers.len()),
                false => Look::NotYet(format!("{wrong:#?}")),
            })
        })
    }

    /// How many pods run on each node, by [`Self::answering`].
    pub fn spread(&self) -> Result<BTreeMap<String, BTreeSet<String>>> {
        let mut spread: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for pod in self.answering()? {
            spread.entry(pod.node).or_default().insert(pod.name);
        }
        Ok(spread)
    }
}

fn answering(pod: &Value) -> Result<Answering> {
    let text = |value: &Value, what: &str| {
        let text = value.as_str().map(str::to_owned);
        text.with_context(|| format!("a pod without {what}: {pod}"))
    };
    let kind = text(&pod["metadata"]["labels"]["reach"], "our label")?;
    let port = PORTS.iter().find(|(name, ..)| *name == kind);
    let ips = pod["status"]["podIPs"].as_array().into_iter().flatten();
    let ips = ips.map(|ip| Ok(text(&ip["ip"], "an address")?.parse()?));
    Ok(Answering {
        name: text(&pod["metadata"]["name"], "a name")?,
        node: text(&pod["spec"]["nodeName"], "a node")?,
        ips: ips.collect::<Result<_>>()?,
        port: port.context("a pod of a workload of ours")?.2,
    })
}

/// What is asked of a pod: by which protocol, and where, in socat's words.
fn targets(pod: &Answering) -> Vec<(&'static str, String)> {
    let of = |ip: &IpAddr| {
        let at = SocketAddr::new(*ip, pod.port).to_string();
        match ip {
            IpAddr::V4(_) => [("tcp4", at.clone()), ("udp4", at)],
            IpAddr::V6(_) => [("tcp6", at.clone()), ("udp6", at)],
        }
    };
    pod.ips.iter().flat_map(of).collect()
}

/// One line `PROTOCOL TARGET ANSWER` for each question; all are asked at once.
fn questions(pods: &[Answering]) -> String {
    let questions = pods.iter().flat_map(targets);
    let lines: String = questions
        .map(|(protocol, target)| format!("ask {protocol} '{target}' &\n"))
        .collect();
    format!(
        r#"
ask() {{
    for try in 1 2 3; do
        answer=$(echo who | timeout 5 socat -t 2 - "$1:$2" 2>/dev/null)
        [ -z "$answer" ] || break
    done
    echo "$1 $2 $answer"
}}
{lines}wait
"#
    )
}

fn parse(from: &Answering, pods: &[Answering], output: &str) -> Vec<Answer> {
    let said = |protocol: &str, target: &str| {
        let question = format!("{protocol} {target} ");
        let line = output.lines().find_map(|line| line.strip_prefix(&question));
        line.unwrap_or_default().to_owned()
    };
    let mut answers = Vec::new();
    for to in pods {
        for (protocol, target) in targets(to) {
            answers.push(Answer {
                from: from.name.clone(),
                protocol: protocol.to_owned(),
                to: to.name.clone(),
                answer: said(protocol, &target),
            });
        }
    }
    answers
}

fn workload(kind: &str, name: &str, replicas: Option<u8>, on_host: bool, port: u16) -> Value {
    // Bound to the address at which it is asked: on the node's network an answer would else leave
    // from the bridge's.
    let serve = format!(
        r#"
for ip in $(echo "$POD_IPS" | tr , ' '); do
    case $ip in
        *:*) listen="TCP6-LISTEN:{port},bind=[$ip]" ;;
        *) listen="TCP4-LISTEN:{port},bind=$ip" ;;
    esac
    socat "$listen,fork,reuseaddr" SYSTEM:'read who; echo $POD_NAME' &
    perl /{} "$ip" {port} &
done
wait
"#,
        image::ANSWER_UDP
    );
    let of_pod = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let labels = json!({"reach": name});
    let mut object = json!({
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "hostNetwork": on_host,
                    // A shell as pid 1 ignores SIGTERM.
                    "terminationGracePeriodSeconds": 0,
                    "containers": [{
                        "name": "main",
                        "image": image::REFERENCE,
                        "imagePullPolicy": "Never",
                        "command": ["/bin/sh", "-c", serve],
                        "env": [
                            of_pod("POD_NAME", "metadata.name"),
                            of_pod("POD_IPS", "status.podIPs"),
                        ],
                    }],
                    // So that the Deployment is on all nodes.
                    "topologySpreadConstraints": [{
                        "maxSkew": 1,
                        "topologyKey": "kubernetes.io/hostname",
                        "whenUnsatisfiable": "ScheduleAnyway",
                        "labelSelector": {"matchLabels": labels},
                    }],
                },
            },
        },
    });
    if let Some(replicas) = replicas {
        object["spec"]["replicas"] = replicas.into();
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_did_not_come_or_came_from_another_pod_is_not_right() {
        let pod = |name: &str, ips: &[&str]| Answering {
            name: name.to_owned(),
            node: "node1".to_owned(),
            ips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            port: 5000,
        };
        let pods = [
            pod("a", &["10.244.0.2"]),
            pod("b", &["10.244.0.20", "fd00::2"]),
        ];
        let output = "udp4 10.244.0.2:5000 a\ntcp4 10.244.0.20:5000 a\ntcp4 10.244.0.2:5000 \n\
                      udp6 [fd00::2]:5000 b\n";
        let answers = parse(&pods[0], &pods, output);
        let right: Vec<_> = answers
            .iter()
            .map(|answer| (&*answer.to, &*answer.protocol, answer.right()))
            .collect();
        assert_eq!(
            right,
            [
                ("a", "tcp4", false),
                ("a", "udp4", true),
                ("b", "tcp4", false),
                ("b", "udp4", false),
                ("b", "tcp6", false),
                ("b", "udp6", true)
            ]
        );
    }
}
