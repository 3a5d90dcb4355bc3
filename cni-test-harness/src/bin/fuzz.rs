//! Runs one fuzz target of a crate's under libFuzzer: what `./dev fuzz` builds and starts.
//!
//! Which one is in the environment, `FUZZ_TARGET`, for the arguments are libFuzzer's. Without it,
//! every target is named with the folder of its inputs, a line each. What the targets are, and what
//! they hold, stands in the crates (`fuzz`).
#![no_main]

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

type Target = fn(&[u8]);

static CHOSEN: OnceLock<Target> = OnceLock::new();

fuzz_target!(init: choose(), |bytes: &[u8]| {
    if let Some(target) = CHOSEN.get() {
        target(bytes);
    }
});

fn choose() {
    let crates = [
        ("kernel", kernel::fuzz::TARGETS),
        ("plugin", twill::fuzz::TARGETS),
        ("sidecar", twilld::fuzz::TARGETS),
    ];
    let wanted = std::env::var("FUZZ_TARGET").unwrap_or_default();
    for (folder, targets) in crates {
        for (name, target) in targets {
            if wanted.is_empty() {
                println!("{name} {folder}/fuzz/{name}");
            } else if *name == wanted {
                let _ = CHOSEN.set(*target);
            }
        }
    }
    match CHOSEN.get() {
        Some(_) => {}
        None if wanted.is_empty() => leave(0),
        None => {
            eprintln!("fuzz: there is no target {wanted}");
            leave(2)
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the main function is libFuzzer's, which has no other way out"
)]
fn leave(code: i32) -> ! {
    std::process::exit(code)
}
