//! A network of type `flannel` or `twill` on this node: the config, `subnet.env`, and the bridge
//! that comes of both. Reads one file.

use std::fs;
use std::io::ErrorKind;

use serde_json::Value;

use crate::cni_args::CniArgs;
use crate::config::Header;
use crate::config::bridge::BridgeNetwork;
use crate::config::flannel::{Dialect, FlannelConfig};
use crate::error::{Code, Error};
use crate::scratch::Scratch;
use crate::subnet_env::SubnetEnv;
use crate::version::Version;

/// What ADD, CHECK and STATUS work from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Network {
    /// The keys of the config itself.
    pub(crate) config: FlannelConfig,
    /// The bridge plugin's config, as flannel's plugin would hand it on.
    pub(crate) rendered: Value,
    /// The same, checked.
    pub(crate) bridge: BridgeNetwork,
}

impl Network {
    /// Reads the config and the node's `subnet.env`. Without the file the node has no subnet yet:
    /// the runtime should try again.
    pub(crate) fn load(
        header: &Header,
        version: Version,
        dialect: Dialect,
        args: &CniArgs,
    ) -> Result<Network, Error> {
        let config = FlannelConfig::parse(&header.config, dialect)?;
        let env = subnet_env(&config)?;
        let rendered = config.render(&header.name, &header.version, &env)?;
        let bridge = BridgeNetwork::parse(rendered.clone(), version, args)?;
        Ok(Network {
            config,
            rendered,
            bridge,
        })
    }

    /// The file that the rendered config is kept in.
    pub(crate) fn scratch(&self, container_id: &str) -> Scratch {
        Scratch::new(&self.config.scratch_dir, container_id)
    }
}

fn subnet_env(config: &FlannelConfig) -> Result<SubnetEnv, Error> {
    let path = config.subnet_file.display();
    let fail = |reason: String| {
        let msg = format!(
            "failed to load flannel 'subnet.env' file: {reason}. Check the flannel pod log for this node."
        );
        Error::new(Code::TryAgain, msg)
    };
    let bytes = fs::read(&config.subnet_file).map_err(|error| match error.kind() {
        ErrorKind::NotFound => fail(format!("open {path}: no such file or directory")),
        _ => fail(format!("open {path}: {error}")),
    })?;
    SubnetEnv::parse(&String::from_utf8_lossy(&bytes))
        .map_err(|error| fail(format!("{path}{error}")))
}
