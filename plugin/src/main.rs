//! Wires the process to [`twill::run`]: arguments, environment, the three streams, the exit code,
//! and the memory that it works in.

mod arena;

use std::io;

#[global_allocator]
static MEMORY: arena::Arena = arena::Arena::new();

fn main() {
    let program = std::env::args_os().next().unwrap_or_default();
    let code = twill::run(twill::Process {
        program: &program,
        env: &|name| std::env::var_os(name),
        stdin: &mut io::stdin().lock(),
        stdout: &mut io::stdout().lock(),
        stderr: &mut io::stderr().lock(),
    });
    #[expect(clippy::disallowed_methods, reason = "main.rs ends the process")]
    std::process::exit(code)
}
