//! The fuzz targets of every crate with the inputs in its folder `fuzz`: what was found once, what
//! is like real input, and what no mutator finds in minutes. `./dev fuzz` looks for more.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

type Target = fn(&[u8]);

const CRATES: [(&str, &[(&str, Target)]); 3] = [
    ("kernel", kernel::fuzz::TARGETS),
    ("plugin", twill::fuzz::TARGETS),
    ("sidecar", twilld::fuzz::TARGETS),
];

fn inputs(krate: &str) -> PathBuf {
    let workspace = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    [workspace, krate, "fuzz"].iter().collect()
}

#[test]
fn every_input_of_the_corpora_is_taken() {
    for (krate, targets) in CRATES {
        for (name, target) in targets {
            let dir = inputs(krate).join(name);
            let found = fs::read_dir(&dir).expect("every target has a folder of inputs");
            let mut found: Vec<_> = found.map(|entry| entry.unwrap().path()).collect();
            found.sort();
            assert!(!found.is_empty(), "{} is empty", dir.display());
            for path in found {
                let bytes = fs::read(&path).unwrap();
                // The name comes out with the panic's own words.
                println!("{}", path.display());
                target(&bytes);
            }
        }
    }
}

#[test]
fn every_folder_of_inputs_has_a_target() {
    for (krate, targets) in CRATES {
        let folders = fs::read_dir(inputs(krate)).unwrap();
        let folders: BTreeSet<_> = (folders.map(|entry| entry.unwrap()))
            .filter(|entry| entry.path().is_dir())
            .map(|entry| entry.file_name().into_string().unwrap())
            .collect();
        let targets = targets.iter().map(|(name, _)| (*name).to_owned());
        assert_eq!(folders, targets.collect(), "{krate}");
    }
}

/// What a mutator does not find in minutes: documents far larger and deeper than real ones.
#[test]
fn depth_and_size_end_in_an_answer() {
    let deep = |open: &str, close: &str, around: &str| {
        let inside = [open.repeat(100_000), close.repeat(100_000)].concat();
        around.replace("INSIDE", &inside)
    };
    let config = r#"{"cniVersion":"1.0.0","name":"n","ipam":INSIDE}"#;
    let net_conf = r#"{"Network":"10.0.0.0/8","Backend":INSIDE}"#;
    let lease = r#"{"PublicIP":"192.168.50.2","BackendData":INSIDE}"#;
    let wide = format!(
        r#"{{"name":"n","ipam":{{"routes":[{}{{}}]}}}}"#,
        "{},".repeat(50_000)
    );
    let (digits, letters) = ("9".repeat(100_000), "n".repeat(1 << 20));
    let mut texts = vec![
        wide,
        "(".repeat(50_000),
        "- ".repeat(10_000),
        format!(r#"{{"name":"{letters}"}}"#),
        format!(r#"{{"Network":"{letters}"}}"#),
        format!(r#"{{"name":"n","mtu":{digits}}}"#),
        format!(r#"{{"Network":"10.0.0.0/8","SubnetLen":{digits}}}"#),
    ];
    for around in [config, net_conf, lease] {
        texts.push(deep("[", "]", around));
        texts.push(deep("{\"a\":", "}", around));
    }
    for (_, target) in CRATES.iter().flat_map(|(_, targets)| *targets) {
        texts.iter().for_each(|text| target(text.as_bytes()));
    }
}
