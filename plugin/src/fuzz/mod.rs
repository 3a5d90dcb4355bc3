//! The fuzz targets: every parser of this crate, fed with any bytes. Only with the feature `fuzz`.
//!
//! A target must neither panic nor overflow the stack, and holds what comes out to what the rest of
//! the crate relies on: an error is one JSON document, a name is safe in a path, a file that
//! nobody can read is in nobody's way. Targets do not touch the kernel and write only below the
//! temporary folder.
//!
//! `./dev fuzz` runs them under libFuzzer (`cni-test-harness/src/bin/fuzz.rs`); the test beside that
//! (`cni-test-harness/tests/corpora.rs`) runs the inputs in `plugin/fuzz/<target>/`.

mod configs;
mod files;
mod texts;

use serde_json::Value;

use crate::error::Error;
use crate::version::Version;

/// A target takes any bytes; it fails by panicking.
pub type Target = fn(&[u8]);

/// Every target, by the name of the folder with its inputs.
pub const TARGETS: &[(&str, Target)] = &[
    ("allow-list", files::allow_list),
    ("attachments", configs::attachments),
    ("cni-args", texts::cni_args),
    ("config", configs::config),
    ("environment", texts::environment),
    ("go-json", texts::go_json),
    ("iptables", crate::xtables::fuzz),
    ("owner-index", files::owner_index),
    ("previous-result", configs::previous_result),
    ("reservations", files::reservations),
    ("resolv-conf", texts::resolv_conf),
    ("scratch", files::scratch),
    ("subnet-env", texts::subnet_env),
    ("tuning-backup", files::tuning_backup),
];

/// What a runtime needs of an error: one JSON object that says its code and why.
fn is_reported(error: &Error) {
    let document: Value =
        serde_json::from_str(&error.render(Version::LATEST)).expect("an error is one document");
    assert!(
        document["code"].as_u64().is_some_and(|code| code > 0),
        "{document}"
    );
    assert!(
        document["msg"].as_str().is_some_and(|msg| !msg.is_empty()),
        "{document}"
    );
}
