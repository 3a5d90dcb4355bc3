//! Wires the process to [`twill::run`]: arguments, environment, the three streams, the exit code,
//! and the memory that it works in.
//!
//! It begins where C does. What Rust's own beginning does for programs that live longer (a guard
//! below the stack with a handler that names it) takes a fiftieth of an ADD.

#![cfg_attr(not(test), no_main)]

mod arena;
#[cfg(not(test))]
mod start;

#[global_allocator]
static MEMORY: arena::Arena = arena::Arena::new();
