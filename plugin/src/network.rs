//! A network on this node: of type `flannel` or `twill` the config, `subnet.env`, and the bridge that
//! comes of both, or another plugin's network; of type `bridge` the config alone. Reads one file.

use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::arrival;
use crate::cni_args::CniArgs;
use crate::config::Header;
use crate::config::bridge::BridgeNetwork;
use crate::config::flannel::{Dialect, FlannelConfig};
use crate::config::mode::Mode;
use crate::delegate;
use crate::error::{Code, Error};
use crate::scratch::Scratch;
use crate::subnet_env::SubnetEnv;
use crate::version::Version;

/// What ADD, CHECK and STATUS work from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Network {
    /// Where the rendered configs are kept; a network of type `bridge` has none.
    scratch_dir: Option<PathBuf>,
    /// The config that other plugins are given: of the main plugin, as flannel's would hand it on.
    pub(crate) rendered: Value,
    /// Who makes it.
    pub(crate) maker: Maker,
}

/// Who makes a network's attachments.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Maker {
    /// This plugin, by the rendered config.
    Here(Box<BridgeNetwork>),
    /// Another main plugin, by its type.
    Delegate(String),
}

impl Network {
    /// Reads the config and the node's `subnet.env`. Without the file the node has no subnet now:
    /// the runtime should try again, once it was waited for with `patience`.
    pub(crate) fn load(
        header: &Header,
        version: Version,
        dialect: Dialect,
        args: &CniArgs,
        patience: Duration,
    ) -> Result<Network, Error> {
        if dialect == Dialect::Bridge {
            let bridge = BridgeNetwork::parse(&header.config, version, args)?;
            return Ok(Network {
                scratch_dir: None,
                maker: Maker::Here(Box::new(bridge)),
                rendered: header.config.clone(),
            });
        }
        let config = FlannelConfig::parse(&header.config, dialect)?;
        let env = subnet_env(&config, patience)?;
        let rendered = config.render(&header.name, &header.version, &env)?;
        let mut network = Network::of_rendered(rendered, config.scratch_dir, version, args)?;
        if let Maker::Here(bridge) = &mut network.maker {
            bridge.overlay = env.networks;
        }
        Ok(network)
    }

    /// What CHECK works from. While the node has no `subnet.env`, because its subnet is being
    /// changed for another, the pods that run are what they were: then it is what the container's
    /// ADD has kept, as far as that was for this network.
    pub(crate) fn of_attached(
        header: &Header,
        version: Version,
        dialect: Dialect,
        args: &CniArgs,
        container_id: &str,
    ) -> Result<Network, Error> {
        let today = Network::load(header, version, dialect, args, Duration::ZERO);
        if !matches!(&today, Err(error) if error.code == Code::TryAgain) {
            return today;
        }
        let dir = FlannelConfig::parse(&header.config, dialect)?.scratch_dir;
        match Scratch::new(&dir, container_id).read(&header.name) {
            Some(rendered) => Network::of_rendered(rendered, dir, version, args),
            None => today,
        }
    }

    fn of_rendered(
        rendered: Value,
        scratch_dir: PathBuf,
        version: Version,
        args: &CniArgs,
    ) -> Result<Network, Error> {
        let maker = match delegate::main::kind_of(&rendered) {
            Some(kind) => Maker::Delegate(kind.to_owned()),
            None => {
                let mut bridge = BridgeNetwork::parse(&rendered, version, args)?;
                bridge.mode = Mode::of(&rendered)?;
                if bridge.mode == Mode::Routed && bridge.ipam.is_none() {
                    let msg = "mode routed: a pod without addresses cannot be routed to: ipam.type is empty";
                    return Err(Error::new(Code::InvalidConfig, msg));
                }
                Maker::Here(Box::new(bridge))
            }
        };
        Ok(Network {
            scratch_dir: Some(scratch_dir),
            rendered,
            maker,
        })
    }

    /// Keeps the rendered config for the container's DEL, where that is done.
    pub(crate) fn keep(&self, container_id: &str) -> Result<(), Error> {
        match &self.scratch_dir {
            Some(dir) => Scratch::new(dir, container_id).write(&self.rendered),
            None => Ok(()),
        }
    }
}

fn subnet_env(config: &FlannelConfig, patience: Duration) -> Result<SubnetEnv, Error> {
    let path = config.subnet_file.display();
    let fail = |reason: String| {
        let msg = format!(
            "failed to load flannel 'subnet.env' file: {reason}. Check the flannel pod log for this node."
        );
        Error::new(Code::TryAgain, msg)
    };
    let read = arrival::read(&config.subnet_file, patience);
    let bytes = read.map_err(|error| match error.kind() {
        ErrorKind::NotFound => fail(format!("open {path}: no such file or directory")),
        _ => fail(format!("open {path}: {error}")),
    })?;
    SubnetEnv::parse(&String::from_utf8_lossy(&bytes))
        .map_err(|error| fail(format!("{path}{error}")))
}
