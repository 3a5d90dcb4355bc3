//! twill keeps the promises of the plugin suite, without exception. (That the suite is right, the
//! reference plugins show: cni-test-harness/tests/suite.rs.)

use anyhow::Result;
use cni_test_harness::suite::{self, Plugins};

#[test]
fn twill_keeps_the_plugin_suite() -> Result<()> {
    suite::run(&Plugins::twill()?)
}
