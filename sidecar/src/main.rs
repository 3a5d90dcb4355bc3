//! twilld: flags in, signals out; everything else stands in the library.

use std::future::Future;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;
use tracing::error;
use tracing_subscriber::filter::LevelFilter;
use twilld::flags::{self, Command, Flags, Move};

/// What a wrong command line ends with. flanneld ends with 0, which supervisors take for success.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match flags::parse(&args, |name| std::env::var(name).ok()) {
        Ok(Command::Run(flags, warnings)) => start(*flags, &warnings),
        Ok(Command::Migrate(order)) => migrate(&order),
        Ok(Command::Version) => say(concat!(env!("CARGO_PKG_VERSION"), "\n"), 0),
        Ok(Command::Help) => say(&flags::usage(), 0),
        Err(error) => {
            let note = "(ends with code 2; flanneld would have ended with 0)";
            say(
                &format!("twilld: {error} {note}\n\n{}", flags::usage()),
                USAGE,
            )
        }
    }
}

/// Says on stdout what came of it; code 1 if anything was left out.
fn migrate(order: &Move) -> ExitCode {
    log(order.verbosity);
    match on_one_thread(twilld::migrate(order)) {
        Ok(report) => {
            // Nobody is left to tell if stdout is closed.
            let _ = write!(io::stdout(), "{report}");
            match report.refused.is_empty() {
                true => ExitCode::SUCCESS,
                false => ExitCode::FAILURE,
            }
        }
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// On stderr, as flanneld does.
fn say(text: &str, code: u8) -> ExitCode {
    // Nobody is left to tell if stderr is closed.
    let _ = io::stderr().write_all(text.as_bytes());
    ExitCode::from(code)
}

fn start(flags: Flags, warnings: &[String]) -> ExitCode {
    log(flags.verbosity);
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    match on_one_thread(run(flags)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn on_one_thread<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    LocalSet::new().block_on(&runtime, future)
}

async fn run(flags: Flags) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let shutdown = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    twilld::run(flags, shutdown).await
}

fn log(verbosity: u32) {
    let level = match verbosity {
        0 | 1 => LevelFilter::INFO,
        2..=5 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    tracing_subscriber::fmt()
        .with_writer(io::stderr)
        // Colours are for people at a terminal, not for journals and files.
        .with_ansi(io::stderr().is_terminal())
        .with_max_level(level)
        .with_target(false)
        .init();
}
