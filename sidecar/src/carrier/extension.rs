//! The extension backend's programs: each runs with a deadline, in a task of its own beside the
//! loop. A peer that a program could not take is told again, later and later. After a start every
//! peer is told of, for a reboot may have taken what was made for it, and those who left meanwhile
//! are taken back ([`super::memory`]).

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::sync::watch;
use tokio::task::{AbortHandle, spawn_local};
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use super::memory::Memory;
use crate::backend::extension::{CommandLine, Environment, Options, Step, Told, steps, told};
use crate::lease::Lease;
use crate::peers::Skipped;
use crate::subnets::Subnets;
use crate::trouble::Troubles;

/// How long a program may take. flanneld waits for ever, and for everything behind it.
const DEADLINE: Duration = Duration::from_secs(60);
/// How many run at once.
const AT_ONCE: usize = 8;
/// The waits after a failure double from the first to the last.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// The task that tells the programs of peers; ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Programs {
    /// None until the peers are known for the first time.
    wanted: watch::Sender<Option<BTreeMap<Subnets, Told>>>,
    task: AbortHandle,
    skipped: Troubles,
}

impl Programs {
    /// Must run on a tokio `LocalSet`.
    pub(super) fn start(options: Options, memory: Memory) -> Self {
        let (wanted, peers) = watch::channel(None);
        Self {
            wanted,
            task: spawn_local(follow(options, memory, peers)).abort_handle(),
            skipped: Troubles::new("lease skipped"),
        }
    }

    pub(super) fn follow(&mut self, peers: &[(&Subnets, &Lease)]) {
        let (want, skipped): (_, Skipped) = told(peers);
        self.skipped.update(skipped);
        self.wanted.send_if_modified(|present| {
            let want = Some(want);
            let changed = *present != want;
            *present = want;
            changed
        });
    }
}

impl Drop for Programs {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(
    options: Options,
    memory: Memory,
    mut peers: watch::Receiver<Option<BTreeMap<Subnets, Told>>>,
) {
    let Ok(first) = peers
        .wait_for(Option::is_some)
        .await
        .map(|first| first.clone())
    else {
        return;
    };
    let mut known = memory.recall();
    known.retain(|subnets, _| {
        first
            .as_ref()
            .is_some_and(|first| !first.contains_key(subnets))
    });
    let mut failures = Troubles::new("the extension's program failed for a peer");
    let (mut wait, longest) = RETRY;
    loop {
        let want = peers.borrow_and_update().clone().unwrap_or_default();
        let steps = stream::iter(steps(&want, &known));
        let (options, memory) = (&options, &memory);
        let told = steps.map(|step| async move {
            if let Step::Add(subnets, told) = &step {
                memory.keep(subnets, told);
            }
            let outcome = tell(options, &step).await;
            if let (Step::Remove(subnets, _), Ok(())) = (&step, &outcome) {
                memory.forget(subnets);
            }
            (step, outcome)
        });
        let told: Vec<_> = told.buffer_unordered(AT_ONCE).collect().await;
        let mut failed = BTreeMap::new();
        for (step, outcome) in told {
            match (step, outcome) {
                (Step::Add(subnets, told), Ok(())) => drop(known.insert(subnets, told)),
                (Step::Remove(subnets, _), Ok(())) => drop(known.remove(&subnets)),
                (Step::Add(subnets, _) | Step::Remove(subnets, _), Err(reason)) => {
                    failed.insert(subnets.to_string(), reason);
                }
            }
        }
        let fine = failed.is_empty();
        failures.update(failed);
        let again = async {
            match fine {
                true => std::future::pending().await,
                false => sleep(wait).await,
            }
        };
        tokio::select! {
            changed = peers.changed() => match changed {
                Ok(()) => {}
                Err(_) => return,
            },
            () = again => {}
        }
        wait = match fine {
            true => RETRY.0,
            false => (wait * 2).min(longest),
        };
    }
}

async fn tell(options: &Options, step: &Step) -> Result<(), String> {
    let (command, told) = match step {
        Step::Add(_, told) => (&options.subnet_add, told),
        Step::Remove(_, told) => (&options.subnet_remove, told),
    };
    match command {
        Some(command) => run(command, &told.environment, &told.data).await.map(drop),
        None => Ok(()),
    }
}

/// Runs a program to its end with `stdin` and a newline, and returns all that it printed, trimmed.
/// Its environment is ours with `environment` on top.
pub(crate) async fn run(
    command: &CommandLine,
    environment: &Environment,
    stdin: &str,
) -> Result<String, String> {
    let lookup = |name: &str| {
        let given = environment.get(name).cloned();
        given.or_else(|| std::env::var(name).ok())
    };
    let words = command.expanded(lookup);
    let line = words.join(" ");
    let (program, arguments) = words.split_first().ok_or("an empty command")?;
    let mut child = Command::new(program)
        .args(arguments)
        .envs(environment)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("run {line}: {error}"))?;
    let pipe = child.stdin.take();
    let text = format!("{stdin}\n");
    let feed = async move {
        if let Some(mut pipe) = pipe {
            // A program need not read it.
            let _ = pipe.write_all(text.as_bytes()).await;
        }
    };
    let both = async { tokio::join!(feed, child.wait_with_output()).1 };
    let output = match timeout(DEADLINE, both).await {
        Ok(output) => output.map_err(|error| format!("run {line}: {error}"))?,
        Err(_) => {
            let seconds = DEADLINE.as_secs();
            return Err(format!("run {line}: not done within {seconds} s"));
        }
    };
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.push_str(&String::from_utf8_lossy(&output.stderr));
    let said = said.trim().to_owned();
    match output.status.success() {
        true => {
            info!(command = line, output = said, "ran a program");
            Ok(said)
        }
        false => {
            let status = output.status;
            warn!(command = line, %status, output = said, "a program failed");
            Err(format!("run {line}: {status}: {said}"))
        }
    }
}
