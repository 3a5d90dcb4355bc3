//! twilld: flags in, signals out; everything else stands in the library.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};
use tokio::task::LocalSet;
use tracing::error;
use tracing_subscriber::filter::LevelFilter;
use twilld::flags::{self, Command, Flags};

/// What a wrong command line ends with. flanneld ends with 0, which supervisors take for success.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match flags::parse(&args, |name| std::env::var(name).ok()) {
        Ok(Command::Run(flags, warnings)) => start(*flags, &warnings),
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
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let ended = match runtime {
        Ok(runtime) => LocalSet::new().block_on(&runtime, run(flags)),
        Err(error) => Err(error.into()),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
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
