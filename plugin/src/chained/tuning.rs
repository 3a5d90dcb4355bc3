//! The program under the name `tuning`: a hardware address that it changes is changed in the
//! result.

use std::path::Path;

use super::previous::Previous;
use super::{Call, Gone};
use crate::cni_args::CniArgs;
use crate::error::Error;
use crate::tuning::{self, ALLOW_LIST, Target, Tuning};

const NOT_CHAINED: &str = "Required prevResult missing";

pub(super) fn add(call: &Call<'_>) -> Result<String, Error> {
    let tuning = parse(call)?;
    let mut previous = Previous::required(call.header, call.version, NOT_CHAINED)?;
    tuning::add(&tuning, &target(call), Path::new(ALLOW_LIST))?;
    if let Some(mac) = tuning.mac {
        previous.set_mac(&call.request.ifname, &mac.to_string());
    }
    previous.render()
}

pub(super) fn check(call: &Call<'_>) -> Result<(), Error> {
    let tuning = parse(call)?;
    Previous::required(call.header, call.version, NOT_CHAINED)?;
    tuning::check(&tuning, &target(call))
}

pub(super) fn del(gone: &Gone<'_>) -> Result<(), Error> {
    let sandbox = gone.sandbox()?;
    tuning::del(
        &tuning::data_dir(&gone.header.config),
        &gone.request.container_id,
        &gone.request.ifname,
        sandbox.as_ref().map(|(sandbox, home)| (sandbox, home)),
    )
}

fn parse(call: &Call<'_>) -> Result<Tuning, Error> {
    let args = CniArgs::parse(&call.request.args)?;
    Tuning::parse(&call.header.config, &args, &call.request.ifname)
}

fn target<'a>(call: &'a Call<'_>) -> Target<'a> {
    Target {
        container_id: &call.request.container_id,
        ifname: &call.request.ifname,
        sandbox: &call.sandbox,
        home: &call.home,
    }
}
