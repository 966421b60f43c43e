//! The kernel's log.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result};

/// All messages, oldest first, without our own lines.
pub(crate) fn read() -> Result<Vec<String>> {
    let mut kmsg = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/kmsg")
        .context("/dev/kmsg")?;
    let mut lines = Vec::new();
    let mut record = [0; 8192];
    loop {
        match kmsg.read(&mut record) {
            Ok(0) => break,
            Ok(length) => {
                let text =
                    String::from_utf8_lossy(record.get(..length).unwrap_or_default()).into_owned();
                // "priority,sequence,time,flags;message", then lines of key=value.
                let message = text.split_once(';').map_or("", |(_, message)| message);
                let message = message.lines().next().unwrap_or_default();
                if !message.contains(crate::protocol::MARKER) {
                    lines.push(message.to_owned());
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            // The oldest records were overwritten: go on with what is there.
            Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
            Err(error) => return Err(error).context("/dev/kmsg"),
        }
    }
    Ok(lines)
}

/// Whether a message tells of a fault that the unit reported, or of an error of its queue.
pub(crate) fn is_fault(line: &str) -> bool {
    crate::judge::is_fault_line(line)
}
