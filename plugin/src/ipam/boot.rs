//! Which boot of the machine this is.

use std::io;

use nix::time::{ClockId, clock_gettime};

/// A boot of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Boot {
    /// The kernel's random ID.
    pub(crate) id: String,
    /// When it began, in seconds since the epoch, by today's clock.
    pub(crate) started: i64,
}

impl Boot {
    /// The one that is running.
    pub(crate) fn current() -> io::Result<Boot> {
        Ok(Boot {
            id: kernel::sysctl::read("kernel/random/boot_id")?,
            started: Boot::began()?,
        })
    }

    /// When this one began, in seconds since the epoch, by today's clock.
    pub(crate) fn began() -> io::Result<i64> {
        let now = clock_gettime(ClockId::CLOCK_REALTIME)?;
        let since = clock_gettime(ClockId::CLOCK_BOOTTIME)?;
        Ok(now.tv_sec() - since.tv_sec())
    }
}
