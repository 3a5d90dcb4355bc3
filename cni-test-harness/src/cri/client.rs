//! A client of the Container Runtime Interface, as kubelet is one: gRPC over a unix socket.
//!
//! Each call blocks and has a deadline. It asks and passes on; it decides nothing about pods.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use k8s_cri::v1 as api;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use tonic::transport::{Channel, Endpoint};

use super::pod::PodSpec;

/// A sandbox is made in well under a second; a plugin may hang for its own timeout.
const DEADLINE: Duration = Duration::from_secs(60);

/// A connection to a container runtime.
#[derive(Debug)]
pub struct Cri {
    reactor: tokio::runtime::Runtime,
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

/// What a runtime says about a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodStatus {
    /// False once it is stopped.
    pub ready: bool,
    /// Its addresses, the first family's first; empty without a network.
    pub ips: Vec<IpAddr>,
}

/// What a program that ran in a container left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// Its exit code.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Cri {
    /// Connects to a runtime's socket.
    pub fn connect(socket_path: &Path) -> Result<Self> {
        let reactor = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("start the reactor of a CRI client")?;
        let uri = format!("unix://{}", socket_path.display());
        let endpoint = Endpoint::from_shared(uri).context("a socket's path as an address")?;
        let connected = reactor.block_on(endpoint.connect_timeout(DEADLINE).connect());
        let channel = connected
            .with_context(|| format!("connect to the CRI at {}", socket_path.display()))?;
        let runtime = RuntimeServiceClient::new(channel.clone());
        Ok(Self {
            reactor,
            runtime,
            images: ImageServiceClient::new(channel),
        })
    }

    /// One call: `what` is its name in the CRI and what it is about, for the message.
    fn call<T>(
        &self,
        what: &str,
        call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<T> {
        let answer = async { tokio::time::timeout(DEADLINE, call).await };
        match self.reactor.block_on(answer) {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(anyhow!("{what}: {:?}: {}", status.code(), status.message())),
            Err(_) => Err(anyhow!("{what}: no answer within {DEADLINE:?}")),
        }
    }

    /// The runtime's name and version, such as `containerd 1.6.20`.
    pub fn version(&self) -> Result<String> {
        let mut client = self.runtime.clone();
        let request = api::VersionRequest {
            version: "v1".to_owned(),
        };
        let version = self.call("Version", client.version(request))?;
        Ok(format!(
            "{} {}",
            version.runtime_name, version.runtime_version
        ))
    }

    /// Whether the runtime has a network for pods: a conflist it accepts, whose plugins are there.
    /// With its reason when it has not.
    pub fn network_ready(&self) -> Result<Result<(), String>> {
        let mut client = self.runtime.clone();
        let request = api::StatusRequest { verbose: false };
        let status = self
            .call("Status", client.status(request))?
            .status
            .unwrap_or_default();
        let found = status
            .conditions
            .into_iter()
            .find(|found| found.r#type == "NetworkReady");
        let condition = found.context("Status: no condition NetworkReady")?;
        Ok(if condition.status {
            Ok(())
        } else {
            Err(condition.message)
        })
    }

    /// Whether the runtime has an image, by its reference.
    pub fn has_image(&self, reference: &str) -> Result<bool> {
        let mut client = self.images.clone();
        let image = api::ImageSpec {
            image: reference.to_owned(),
            ..Default::default()
        };
        let request = api::ImageStatusRequest {
            image: Some(image),
            verbose: false,
        };
        Ok(self
            .call("ImageStatus", client.image_status(request))?
            .image
            .is_some())
    }

    /// Makes a pod's sandbox and its network (CNI ADD); its ID is the CNI container ID.
    pub fn run_pod(&self, pod: &PodSpec) -> Result<String> {
        let mut client = self.runtime.clone();
        let config = Some(pod.sandbox_config());
        let request = api::RunPodSandboxRequest {
            config,
            runtime_handler: String::new(),
        };
        Ok(self
            .call("RunPodSandbox", client.run_pod_sandbox(request))?
            .pod_sandbox_id)
    }

    /// What the runtime says about a sandbox.
    pub fn pod_status(&self, pod_id: &str) -> Result<PodStatus> {
        let mut client = self.runtime.clone();
        let request = api::PodSandboxStatusRequest {
            pod_sandbox_id: pod_id.to_owned(),
            verbose: false,
        };
        let answer = self.call("PodSandboxStatus", client.pod_sandbox_status(request))?;
        let status = answer
            .status
            .context("PodSandboxStatus: an answer without a status")?;
        let network = status.network.unwrap_or_default();
        let more = network.additional_ips.into_iter().map(|pod_ip| pod_ip.ip);
        let ips = std::iter::once(network.ip)
            .chain(more)
            .filter(|ip| !ip.is_empty());
        Ok(PodStatus {
            ready: status.state == i32::from(api::PodSandboxState::SandboxReady),
            ips: ips
                .map(|ip| ip.parse().with_context(|| ip))
                .collect::<Result<_, _>>()?,
        })
    }

    /// Stops a sandbox and takes its network away (CNI DEL).
    pub fn stop_pod(&self, pod_id: &str) -> Result<()> {
        let mut client = self.runtime.clone();
        let request = api::StopPodSandboxRequest {
            pod_sandbox_id: pod_id.to_owned(),
        };
        self.call("StopPodSandbox", client.stop_pod_sandbox(request))
            .map(drop)
    }

    /// Removes a sandbox with its containers.
    pub fn remove_pod(&self, pod_id: &str) -> Result<()> {
        let mut client = self.runtime.clone();
        let request = api::RemovePodSandboxRequest {
            pod_sandbox_id: pod_id.to_owned(),
        };
        self.call("RemovePodSandbox", client.remove_pod_sandbox(request))
            .map(drop)
    }

    /// The IDs of all sandboxes, stopped ones too.
    pub fn pods(&self) -> Result<Vec<String>> {
        let mut client = self.runtime.clone();
        let request = api::ListPodSandboxRequest { filter: None };
        let answer = self.call("ListPodSandbox", client.list_pod_sandbox(request))?;
        Ok(answer.items.into_iter().map(|item| item.id).collect())
    }

    /// Makes and starts a container in a pod; it runs `args`, or idles when there are none.
    pub fn run_container(
        &self,
        pod_id: &str,
        pod: &PodSpec,
        name: &str,
        args: &[&str],
    ) -> Result<String> {
        let mut client = self.runtime.clone();
        let request = api::CreateContainerRequest {
            pod_sandbox_id: pod_id.to_owned(),
            config: Some(pod.container_config(name, args)),
            sandbox_config: Some(pod.sandbox_config()),
        };
        let id = self
            .call("CreateContainer", client.create_container(request))?
            .container_id;
        let request = api::StartContainerRequest {
            container_id: id.clone(),
        };
        self.call("StartContainer", client.start_container(request))?;
        Ok(id)
    }

    /// Runs a program in a container to its end, whatever its exit code.
    pub fn exec(&self, container_id: &str, args: &[&str]) -> Result<ExecOutput> {
        let mut client = self.runtime.clone();
        let request = api::ExecSyncRequest {
            container_id: container_id.to_owned(),
            cmd: args.iter().map(|&arg| arg.to_owned()).collect(),
            timeout: DEADLINE
                .as_secs()
                .try_into()
                .context("a deadline in seconds")?,
        };
        let answer = self.call("ExecSync", client.exec_sync(request))?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let (stdout, stderr) = (text(answer.stdout), text(answer.stderr));
        Ok(ExecOutput {
            code: answer.exit_code,
            stdout,
            stderr,
        })
    }
}
