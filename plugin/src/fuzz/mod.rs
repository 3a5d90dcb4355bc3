//! The fuzz targets: every parser of this crate, fed with any bytes. Only in tests and with the
//! feature `fuzz`.
//!
//! A target must neither panic nor overflow the stack, and holds what comes out to what the rest of
//! the crate relies on: an error is one JSON document, a name is safe in a path, a file that
//! nobody can read is in nobody's way. Targets do not touch the kernel and write only below the
//! temporary folder.
//!
//! `./dev fuzz` runs them under libFuzzer (`cni-test-harness/src/bin/fuzz.rs`); the tests run the
//! inputs in `plugin/fuzz/<target>/`.

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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    const INPUTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz");

    #[test]
    fn every_input_of_the_corpora_is_taken() {
        for (name, target) in TARGETS {
            let dir = Path::new(INPUTS).join(name);
            let inputs = fs::read_dir(&dir).expect("every target has a folder of inputs");
            let mut inputs: Vec<_> = inputs.map(|entry| entry.unwrap().path()).collect();
            inputs.sort();
            assert!(!inputs.is_empty(), "{} is empty", dir.display());
            for path in inputs {
                let bytes = fs::read(&path).unwrap();
                // The name comes out with the panic's own words.
                println!("{}", path.display());
                target(&bytes);
            }
        }
    }

    #[test]
    fn every_folder_of_inputs_has_a_target() {
        let folders = fs::read_dir(INPUTS).unwrap().map(|entry| entry.unwrap());
        let folders: BTreeSet<_> = (folders.filter(|entry| entry.path().is_dir()))
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect();
        let targets: BTreeSet<_> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(folders, targets);
    }

    /// What a mutator does not find in minutes: documents far larger and deeper than real ones.
    #[test]
    fn depth_and_size_end_in_an_answer() {
        let deep = |open: &str, close: &str| {
            let inside = [open.repeat(100_000), close.repeat(100_000)].concat();
            format!(r#"{{"cniVersion":"1.0.0","name":"n","ipam":{inside}}}"#)
        };
        let nest = "(".repeat(50_000);
        let wide = format!(
            r#"{{"name":"n","ipam":{{"routes":[{}{{}}]}}}}"#,
            "{},".repeat(50_000)
        );
        let long = format!(r#"{{"name":"{}"}}"#, "n".repeat(1 << 20));
        let number = format!(r#"{{"name":"n","mtu":{}}}"#, "9".repeat(100_000));
        for text in [
            deep("[", "]"),
            deep("{\"a\":", "}"),
            nest,
            wide,
            long,
            number,
        ] {
            for (_, target) in TARGETS {
                target(text.as_bytes());
            }
        }
    }
}
