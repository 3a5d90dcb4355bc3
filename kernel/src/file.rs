//! Small files, with no more system calls than they need. A plugin that lives for a millisecond
//! opens a dozen: musl's `open` asks twice for what the kernel did at once, and `std` asks for a
//! file's size before and whether there is more after.

use std::fs::File;
use std::io::{self, ErrorKind, Read as _};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat};
use nix::sys::stat::Mode;

/// More than the files have that are read here, most times.
const PIECE: usize = 2048;

/// Opens a file, with `mode` if that makes it. It is closed when another program is started.
pub fn open(path: &Path, flags: OFlag, mode: u32) -> io::Result<File> {
    let mode = Mode::from_bits_truncate(mode);
    loop {
        match openat(AT_FDCWD, path, flags | OFlag::O_CLOEXEC, mode) {
            Ok(fd) => return Ok(File::from(fd)),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Reads a file as a whole: of a disk's or the kernel's own, whose end a read that is not filled is.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = open(path, OFlag::O_RDONLY, 0)?;
    let (mut content, mut piece) = (Vec::new(), [0; PIECE]);
    loop {
        match file.read(&mut piece) {
            Ok(count) => {
                content.extend_from_slice(&piece[..count]);
                if count < PIECE {
                    return Ok(content);
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// The same of a text.
pub fn read_text(path: &Path) -> io::Result<String> {
    String::from_utf8(read(path)?).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn a_file_of_any_length_is_read_whole() {
        let path = PathBuf::from(format!("/tmp/twill-file-{}", std::process::id()));
        for length in [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE] {
            let text = "x".repeat(length);
            std::fs::write(&path, &text).unwrap();
            assert_eq!(read_text(&path).unwrap(), text);
        }
        std::fs::remove_file(&path).unwrap();
        let error = read(&path).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert!(read(Path::new("/")).is_err(), "a folder has no content");
    }
}
