//! Wires the process to [`twill::run`]: arguments, environment, the three streams, the exit code,
//! and the memory that it works in.

mod arena;

use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;

#[global_allocator]
static MEMORY: arena::Arena = arena::Arena::new();

fn main() {
    let program = std::env::args_os().next().unwrap_or_default();
    // The answer in one write: Rust's own stdout would cut it at its last line.
    let Ok(stdout) = io::stdout().as_fd().try_clone_to_owned() else {
        #[expect(clippy::disallowed_methods, reason = "main.rs ends the process")]
        std::process::exit(1)
    };
    let code = twill::run(twill::Process {
        program: &program,
        env: &|name| std::env::var_os(name),
        stdin: &mut io::stdin().lock(),
        stdout: &mut File::from(stdout),
        stderr: &mut io::stderr().lock(),
    });
    #[expect(clippy::disallowed_methods, reason = "main.rs ends the process")]
    std::process::exit(code)
}
