//! The program under the name `host-local`: IPAM alone, for a main plugin that is not twill.

use std::fs;
use std::io::Write;

use serde::Deserialize;

use crate::cni_args::CniArgs;
use crate::config::Header;
use crate::error::{Code, Error};
use crate::gc;
use crate::ipam::{self, Again, Owner, RawIpam, RawWishes, Store, resolv_conf};
use crate::result::AddResult;
use crate::version::Version;

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Raw {
    ipam: Option<RawIpam>,
    args: RawArgs,
    runtime_config: RawWishes,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct RawArgs {
    cni: RawWishes,
}

/// Reserves addresses, and returns the document for stdout.
pub(crate) fn add(header: &Header, owner: &Owner<'_>, args: &str) -> Result<String, Error> {
    let version = Version::of_config(&header.version)?;
    let config = config(header, version, args)?;
    let mut result = AddResult {
        routes: config.routes.clone(),
        ..AddResult::default()
    };
    if let Some(path) = &config.resolv_conf {
        let text = fs::read_to_string(path).map_err(|error| {
            let msg = format!("open {}: {error}", path.display());
            Error::new(Code::InvalidConfig, msg)
        })?;
        result.dns = resolv_conf::parse(&text);
    }
    let store = store(header, &config);
    result.ips = ipam::reserve(&store, &config, owner, Again::Refuse)?.ips;
    result.render(version)
}

/// Releases what the owner holds; needs no valid ranges.
pub(crate) fn del(header: &Header, owner: &Owner<'_>) -> Result<(), Error> {
    Version::of_config(&header.version)?;
    let dir = crate::config::flannel::ipam_data_dir(&header.config);
    Store::new(&dir, &header.name)
        .release(owner)
        .map_err(Error::from)
}

/// Fails if the owner holds nothing.
pub(crate) fn check(header: &Header, owner: &Owner<'_>, args: &str) -> Result<(), Error> {
    let version = Version::of_config_since(&header.version, "CHECK", Version::V0_4_0)?;
    let config = config(header, version, args)?;
    match store(header, &config).holds_any(owner)? {
        true => Ok(()),
        false => Err(Error::new(
            Code::CheckFailed,
            format!(
                "host-local: Failed to find address added by container {}",
                owner.container_id
            ),
        )),
    }
}

/// Fails with [`Code::CannotServe`] without a free address.
pub(crate) fn status(header: &Header) -> Result<(), Error> {
    let version = Version::of_config_since(&header.version, "STATUS", Version::V1_1_0)?;
    let config = config(header, version, "")?;
    ipam::has_room(&store(header, &config), &config).map_err(|error| Error {
        code: Code::CannotServe,
        ..Error::from(error)
    })
}

/// Releases what belongs to no valid attachment.
pub(crate) fn gc(header: &Header, stderr: &mut dyn Write) -> Result<(), Error> {
    match gc::valid(header, stderr)? {
        Some(valid) => gc::release(header, &valid).map(|_| ()),
        None => Ok(()),
    }
}

fn store(header: &Header, config: &ipam::Config) -> Store {
    Store::new(&config.data_dir, &header.name)
}

pub(crate) fn config(header: &Header, version: Version, args: &str) -> Result<ipam::Config, Error> {
    let args = CniArgs::parse(args)?;
    let raw: Raw = go_json::from_value(&header.config)
        .map_err(|error| Error::new(Code::Decode, error.to_string()))?;
    let Some(ipam) = raw.ipam else {
        let msg = "IPAM config missing 'ipam' key";
        return Err(Error::new(Code::InvalidConfig, msg));
    };
    let asked = RawWishes {
        ip_ranges: vec![],
        ..raw.args.cni
    };
    ipam::Config::validate(&ipam, &args, &asked, &raw.runtime_config, version).map_err(Error::from)
}
