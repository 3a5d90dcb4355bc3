//! `cni-test-harness demo`, `bench`, `lab` and `image`: arguments in, exit code out.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, anyhow};
use cni_test_harness::cri::image;
use cni_test_harness::{bench, demo, lab};
use lexopt::prelude::*;
use nix::sys::signal::{SigSet, Signal};

const USAGE: &str = "\
usage: cni-test-harness demo [--nodes 3] [--pods 2] [--keep]   a cluster on this machine, shown
       cni-test-harness demo --kubernetes [--keep]             the same with all of Kubernetes
       cni-test-harness demo --down                            removes a demo that was kept
       cni-test-harness image [FILE]                           the image of twill, for a container runtime
       cni-test-harness lab list | run NAME | run all         overlays built by hand, explained
       cni-test-harness bench [--only pods|peers|nodes|tables|demand|data] [--out bench]
                              [--rounds 50] [--at-once-rounds 5] [--pods 100]
                              [--peers 10,1000,5000,10000] [--peer-rounds 3] [--nodes 5000]
                              [--data-rounds 15] [--slice-ms 500]";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cni-test-harness: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut args = lexopt::Parser::from_env();
    match args.next()? {
        Some(Value(verb)) if verb == "demo" => run_demo(&mut args),
        Some(Value(verb)) if verb == "bench" => run_bench(&mut args),
        Some(Value(verb)) if verb == "lab" => run_lab(&mut args),
        Some(Value(verb)) if verb == "image" => run_image(&mut args),
        Some(Long("help") | Short('h')) | None => {
            println!("{USAGE}");
            Ok(())
        }
        Some(other) => Err(unexpected(other)),
    }
}

fn unexpected(arg: lexopt::Arg<'_>) -> anyhow::Error {
    anyhow!("{}\n{USAGE}", arg.unexpected())
}

fn run_demo(args: &mut lexopt::Parser) -> Result<()> {
    let (mut options, mut down, mut kubernetes) = (demo::Options::default(), false, false);
    while let Some(arg) = args.next()? {
        match arg {
            Long("keep") => options.keep = true,
            Long("down") => down = true,
            Long("kubernetes") => kubernetes = true,
            Long("nodes") => options.nodes = args.value()?.parse()?,
            Long("pods") => options.pods = args.value()?.parse()?,
            Long("help") | Short('h') => {
                println!("{USAGE}");
                return Ok(());
            }
            other => return Err(unexpected(other)),
        }
    }
    if down {
        let said = if demo::stands() {
            "the demo is removed"
        } else {
            "no demo stands here"
        };
        demo::down()?;
        println!("{said}");
        return Ok(());
    }
    take_down_when_interrupted()?;
    match kubernetes {
        true => demo::kubernetes::run(options.keep),
        false => demo::run(options),
    }
}

fn run_image(args: &mut lexopt::Parser) -> Result<()> {
    let path = match args.next()? {
        None => PathBuf::from(concat!("twill-", env!("CARGO_PKG_VERSION"), ".tar")),
        Some(Value(path)) => path.into(),
        Some(other) => return Err(unexpected(other)),
    };
    image::write_twill(&path)?;
    println!(
        "{} is in {}; on a node: ctr --namespace k8s.io images import {}",
        image::TWILL,
        path.display(),
        path.display()
    );
    Ok(())
}

/// Ctrl-C in the middle leaves nothing behind. The signals are blocked in every thread and waited
/// for in one; children start with an empty mask (std sees to that).
fn take_down_when_interrupted() -> Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    std::thread::spawn(move || {
        if signals.wait().is_ok() {
            eprintln!("\ninterrupted: taking the demo down");
            let _ = demo::down();
            leave(130);
        }
    });
    Ok(())
}

#[expect(
    clippy::disallowed_methods,
    reason = "the main thread may be inside a child's wait; this is main.rs"
)]
fn leave(code: i32) -> ! {
    std::process::exit(code)
}

fn run_lab(args: &mut lexopt::Parser) -> Result<()> {
    let words: Vec<String> = args
        .raw_args()?
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    lab::command(&words, &mut std::io::stdout())
}

fn run_bench(args: &mut lexopt::Parser) -> Result<()> {
    let (mut pods, mut peers) = (bench::Options::default(), bench::peers::Options::default());
    let mut tables = bench::tables::Options::default();
    let mut data = bench::data::Options::default();
    let mut demand = bench::demand::Options::default();
    let (mut nodes, mut only) = (bench::nodes::Options::default(), None);
    while let Some(arg) = args.next()? {
        match arg {
            Long("only") => only = Some(args.value()?.string()?),
            Long("rounds") => pods.rounds = args.value()?.parse()?,
            Long("at-once-rounds") => pods.at_once_rounds = args.value()?.parse()?,
            Long("pods") => pods.pods = args.value()?.parse()?,
            Long("peers") => {
                let list = args.value()?.string()?;
                peers.peers = list.split(',').map(str::parse).collect::<Result<_, _>>()?;
                tables.peers.clone_from(&peers.peers);
            }
            Long("peer-rounds") => {
                peers.rounds = args.value()?.parse()?;
                tables.rounds = peers.rounds;
            }
            Long("data-rounds") => data.rounds = args.value()?.parse()?,
            Long("slice-ms") => data.slice = Duration::from_millis(args.value()?.parse()?),
            Long("nodes") => nodes.nodes = args.value()?.parse()?,
            Long("out") => {
                pods.out = args.value()?.into();
                peers.out.clone_from(&pods.out);
                tables.out.clone_from(&pods.out);
                demand.out.clone_from(&pods.out);
                data.out.clone_from(&pods.out);
                nodes.out.clone_from(&pods.out);
            }
            Long("help") | Short('h') => {
                println!("{USAGE}");
                return Ok(());
            }
            other => return Err(unexpected(other)),
        }
    }
    let command = command_line();
    match only.as_deref() {
        None => {
            bench::run(&pods, &command)?;
            bench::peers::run(&peers, &command)?;
            bench::tables::run(&tables, &command)?;
            bench::demand::run(&demand, &command)?;
            bench::data::run(&data, &command)?;
            bench::nodes::run(&nodes, &command)
        }
        Some("pods") => bench::run(&pods, &command),
        Some("peers") => bench::peers::run(&peers, &command),
        Some("tables") => bench::tables::run(&tables, &command),
        Some("demand") => bench::demand::run(&demand, &command),
        Some("data") => bench::data::run(&data, &command),
        Some("nodes") => bench::nodes::run(&nodes, &command),
        Some(other) => Err(anyhow!(
            "--only {other}: pods, peers, tables, demand, data or nodes\n{USAGE}"
        )),
    }
}

/// The command as it is written into the report: what a reader types to repeat it.
fn command_line() -> String {
    let args = std::env::args_os()
        .skip(1)
        .map(|arg: OsString| arg.to_string_lossy().into_owned());
    std::iter::once("./dev".to_owned())
        .chain(args)
        .collect::<Vec<_>>()
        .join(" ")
}
