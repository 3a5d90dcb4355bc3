//! Where the process begins, and where it ends.

use std::ffi::{CStr, OsStr, c_char, c_int};
use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{FromRawFd as _, IntoRawFd as _, RawFd};
use std::os::unix::ffi::OsStrExt as _;

use nix::libc;

/// Called by the C library.
///
/// # Safety
///
/// `argv` points to `argc` texts, as the kernel gives them to a process.
#[unsafe(no_mangle)]
unsafe extern "C" fn main(argc: c_int, argv: *const *const c_char) -> c_int {
    // SAFETY: there is a first text; it ends with a zero and stays as long as the process.
    let program = (argc > 0).then(|| unsafe { CStr::from_ptr(*argv) });
    let program = OsStr::from_bytes(program.unwrap_or_default().to_bytes());
    if open_streams().is_err() {
        return 1;
    }
    // Somebody who reads the answer no more is an error like others, and no signal.
    // SAFETY: nothing is called when the signal comes.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
    twill::run(twill::Process {
        program,
        env: &|name| std::env::var_os(name),
        stdin: &mut *stream(libc::STDIN_FILENO),
        // The answer in one write: Rust's own stdout would cut it at its last line.
        stdout: &mut *stream(libc::STDOUT_FILENO),
        stderr: &mut *stream(libc::STDERR_FILENO),
    })
}

/// A stream that was closed would be whatever file is opened next.
fn open_streams() -> io::Result<()> {
    let mut streams = [0, 1, 2].map(|fd| libc::pollfd {
        fd,
        events: 0,
        revents: 0,
    });
    // SAFETY: as many as there are, and nothing is waited for.
    unsafe { libc::poll(streams.as_mut_ptr(), streams.len() as libc::nfds_t, 0) };
    for stream in streams {
        if stream.revents & libc::POLLNVAL != 0 {
            // The kernel gives the lowest number that is free.
            let _ = File::options()
                .read(true)
                .write(true)
                .open("/dev/null")?
                .into_raw_fd();
        }
    }
    Ok(())
}

/// One of the three, which stays open.
fn stream(fd: RawFd) -> ManuallyDrop<File> {
    // SAFETY: it is open, and nobody closes it.
    ManuallyDrop::new(unsafe { File::from_raw_fd(fd) })
}
