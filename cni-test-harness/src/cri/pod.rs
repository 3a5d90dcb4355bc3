//! What a pod is asked for with, in the words of the CRI (kubelet's side of it).

use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, ImageSpec, LinuxContainerConfig,
    LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext,
    NamespaceMode, NamespaceOption, PodSandboxConfig, PodSandboxMetadata, PortMapping, Protocol,
};

use super::image;

/// A port of the node that leads to a port of the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// TCP, UDP or SCTP.
    pub protocol: Protocol,
    /// The node's port; 0 for none.
    pub host_port: u16,
    /// The pod's port.
    pub container_port: u16,
    /// The node's address; empty for all of them.
    pub host_ip: String,
}

/// A pod to be made; its sandbox has a network namespace of its own.
#[derive(Debug, Clone)]
pub struct PodSpec {
    name: String,
    cgroup: String,
    annotations: Vec<(String, String)>,
    labels: Vec<(String, String)>,
    ports: Vec<HostPort>,
}

impl PodSpec {
    pub(super) fn new(name: &str, cgroup: &str) -> Self {
        let (name, cgroup) = (name.to_owned(), cgroup.to_owned());
        Self {
            name,
            cgroup,
            annotations: Vec::new(),
            labels: Vec::new(),
            ports: Vec::new(),
        }
    }

    /// Adds an annotation: `kubernetes.io/ingress-bandwidth` and the like reach plugins.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Adds a host port: the capability `portMappings`.
    #[must_use]
    pub fn port(mut self, port: HostPort) -> Self {
        self.ports.push(port);
        self
    }

    pub(super) fn sandbox_config(&self) -> PodSandboxConfig {
        let port = |port: &HostPort| PortMapping {
            protocol: port.protocol.into(),
            container_port: port.container_port.into(),
            host_port: port.host_port.into(),
            host_ip: port.host_ip.clone(),
        };
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: self.name.clone(),
                uid: format!("uid-of-{}", self.name),
                namespace: "default".to_owned(),
                attempt: 0,
            }),
            hostname: self.name.clone(),
            port_mappings: self.ports.iter().map(port).collect(),
            labels: self.labels.iter().cloned().collect(),
            annotations: self.annotations.iter().cloned().collect(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("/{}", self.cgroup),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// A container of the pod that runs `args`, or idles when there are none.
    pub(super) fn container_config(&self, name: &str, args: &[&str]) -> ContainerConfig {
        ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: name.to_owned(),
                attempt: 0,
            }),
            image: Some(ImageSpec {
                image: image::REFERENCE.to_owned(),
                // As kubelet does; CRI-O asks its policy about this one.
                user_specified_image: image::REFERENCE.to_owned(),
                ..Default::default()
            }),
            command: args.iter().map(|&arg| arg.to_owned()).collect(),
            linux: Some(LinuxContainerConfig {
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: Some(namespaces()),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }
}

/// As kubelet asks by default: the pod shares network and IPC, each container has its own pids.
fn namespaces() -> NamespaceOption {
    NamespaceOption {
        network: NamespaceMode::Pod.into(),
        pid: NamespaceMode::Container.into(),
        ipc: NamespaceMode::Pod.into(),
        ..Default::default()
    }
}
