//! STATUS: whether an ADD could be served now. Cheap, because runtimes poll it; changes nothing.

use std::time::Duration;

use crate::cni_args::CniArgs;
use crate::config::Header;
use crate::config::flannel::Dialect;
use crate::error::{Code, Error};
use crate::ipam::{self, Store};
use crate::network::Network;
use crate::version::Version;

/// Fails with [`Code::CannotServe`] without a subnet, or without a free address in it.
pub(crate) fn status(header: &Header, dialect: Dialect) -> Result<(), Error> {
    let version = Version::of_config_since(&header.version, "STATUS", Version::V1_1_0)?;
    let ready = || {
        let network = Network::load(
            header,
            version,
            dialect,
            &CniArgs::default(),
            Duration::ZERO,
        )?;
        let Some(ipam) = &network.bridge.ipam else {
            return Ok(());
        };
        let store = Store::new(&ipam.data_dir, &header.name);
        ipam::has_room(&store, ipam).map_err(Error::from)
    };
    ready().map_err(|error| match error.code {
        Code::TryAgain => Error {
            code: Code::CannotServe,
            ..error
        },
        _ => error,
    })
}
