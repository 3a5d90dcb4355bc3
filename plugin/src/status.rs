//! STATUS: whether an ADD could be served now. Cheap, because runtimes poll it; changes nothing.

use std::time::Duration;

use crate::cni_args::CniArgs;
use crate::config::Header;
use crate::config::bridge::Ipam;
use crate::config::flannel::Dialect;
use crate::delegate::Delegates;
use crate::error::{Code, Error};
use crate::ipam::{self, Store};
use crate::network::{Maker, Network};
use crate::version::Version;

/// Fails with [`Code::CannotServe`] without a subnet, or without a free address in it.
/// Another plugin's answer is passed on.
pub(crate) fn status(
    header: &Header,
    dialect: Dialect,
    delegates: Delegates<'_>,
) -> Result<(), Error> {
    let version = Version::of_config_since(&header.version, "STATUS", Version::V1_1_0)?;
    let ready = || {
        let network = Network::load(
            header,
            version,
            dialect,
            &CniArgs::default(),
            Duration::ZERO,
        )?;
        let config = &network.rendered;
        let bridge = match &network.maker {
            Maker::Here(bridge) => bridge,
            Maker::Delegate(kind) => {
                let main = delegates.plugin(kind, config);
                return main.status();
            }
        };
        match &bridge.ipam {
            None => Ok(()),
            Some(Ipam::HostLocal(ipam)) => {
                let store = Store::new(&ipam.data_dir, &header.name);
                ipam::has_room(&store, ipam).map_err(Error::from)
            }
            Some(Ipam::Other(kind)) => delegates.plugin(kind, config).status(),
        }
    };
    ready().map_err(|error| match error.code {
        // Of the second kind is a plugin that is not installed.
        Code::TryAgain | Code::InvalidEnvironment => Error {
            code: Code::CannotServe,
            ..error
        },
        _ => error,
    })
}
