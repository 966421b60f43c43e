//! Which queues of a tap get packets (section 5.1.6.5.6).

use std::fs::File;
use std::io;

use super::sys;

/// Gives what is received to queues.
pub(super) trait Steering: Send {
    /// Has the first `pairs` pairs get packets, at least one, and no others. What waits for those is
    /// lost.
    fn steer(&mut self, pairs: u16) -> io::Result<()>;
}

/// The queues of a tap but for the first, which is always in use. The kernel gives a packet to the
/// queue in which the guest has last sent one of the same flow.
pub(super) struct TapQueues(Vec<TapQueue>);

struct TapQueue {
    file: File,
    /// `None` if it is not known.
    attached: Option<bool>,
}

impl TapQueues {
    /// Of attached queues, which are not used from here on.
    pub(super) fn new(others: Vec<File>) -> io::Result<Self> {
        let queues = others.into_iter().map(|file| TapQueue {
            file,
            attached: Some(true),
        });
        let mut queues = Self(queues.collect());
        queues.steer(1)?;
        Ok(queues)
    }

    /// Of queues that another process has in use, or not: they stay so for now.
    pub(super) fn of_others(others: Vec<File>) -> Self {
        let attached = None;
        let queues = others.into_iter();
        Self(queues.map(|file| TapQueue { file, attached }).collect())
    }
}

impl Steering for TapQueues {
    fn steer(&mut self, pairs: u16) -> io::Result<()> {
        let used = usize::from(pairs).saturating_sub(1);
        for (index, queue) in self.0.iter_mut().enumerate() {
            let wanted = index < used;
            if queue.attached != Some(wanted) {
                match sys::attach_tap_queue(&queue.file, wanted) {
                    // It is so already.
                    Err(error)
                        if queue.attached.is_none()
                            && error.raw_os_error() == Some(libc::EINVAL) => {}
                    outcome => outcome?,
                }
                queue.attached = Some(wanted);
            }
        }
        Ok(())
    }
}
