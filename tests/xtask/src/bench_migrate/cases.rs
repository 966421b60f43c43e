//! What the guests do.

use std::time::Duration;

/// MiB of a guest's memory that hold something.
pub(super) const FILL: u64 = 256;

/// A guest, and how it is to go.
pub(super) struct Case {
    /// For `--only`, and in tables.
    pub(super) name: &'static str,
    /// MiB that it writes to again and again.
    set: u64,
    /// MiB in a second; 0 is as fast as it can.
    rate: u64,
    /// How long it may stand still.
    pub(super) pause: Duration,
    /// Whether snapshots are measured with it, too.
    pub(super) snapshot: bool,
}

/// All of them.
pub(super) const CASES: &[Case] = &[
    Case {
        name: "idle",
        set: 0,
        rate: 0,
        pause: Duration::from_millis(100),
        snapshot: false,
    },
    Case {
        name: "16-mib-at-100",
        set: 16,
        rate: 100,
        pause: Duration::from_millis(100),
        snapshot: true,
    },
    Case {
        name: "128-mib",
        set: 128,
        rate: 0,
        pause: Duration::from_millis(100),
        snapshot: false,
    },
    Case {
        name: "128-mib-within-5-ms",
        set: 128,
        rate: 0,
        pause: Duration::from_millis(5),
        snapshot: false,
    },
];

impl Case {
    /// The command line of the payload.
    pub(super) fn command_line(&self) -> String {
        format!("load {FILL} {} {}", self.set, self.rate)
    }

    /// Whether it writes at all.
    pub(super) fn writes(&self) -> bool {
        self.set > 0
    }
}
