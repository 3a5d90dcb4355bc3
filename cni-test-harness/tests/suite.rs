//! The plugin suite is right: the reference plugins keep it, but for what is written down.

use anyhow::Result;
use cni_test_harness::skip_unless;
use cni_test_harness::suite::{self, Plugins};

#[test]
fn debians_plugins_keep_the_suite() -> Result<()> {
    suite::run(&skip_unless!(Plugins::debian()))
}

#[test]
fn todays_plugins_keep_the_suite() -> Result<()> {
    suite::run(&skip_unless!(Plugins::upstream()))
}
