//! Requests whose calls io_uring(7) makes.
//!
//! Who is in the kernel's hands belongs to the ring: it comes back with its result, and the ring is
//! not dropped before.
#![allow(unsafe_code)] // What is submitted holds pointers, and the kernel uses them later.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use io_uring::squeue::Entry;
use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, Probe, opcode};
use log::error;

use super::call::{Call, ZEROES};
use super::request::Request;
use super::target::Target;
use crate::limit::LogLimit;

/// Of the ring of submissions; that of completions has twice as many.
const ENTRIES: u32 = 64;
/// The most requests that are in the kernel's hands: for each there is room for what cancels it, too.
const MOST: usize = ENTRIES as usize / 2;
/// Stands for what belongs to no request.
const NO_REQUEST: u64 = u64::MAX;
/// What the kernel has to know.
const OPERATIONS: [u8; 7] = [
    opcode::Nop::CODE,
    opcode::Readv::CODE,
    opcode::Writev::CODE,
    opcode::Write::CODE,
    opcode::Fsync::CODE,
    opcode::Fallocate::CODE,
    opcode::AsyncCancel::CODE,
];
/// The most threads that the kernel has for a ring, of either kind: each waits for one call.
const WORKERS: u32 = 8;
/// Between two attempts to have the kernel take something while it has no memory.
const PAUSE: Duration = Duration::from_millis(10);

/// A ring, and the requests in it.
pub(super) struct Uring {
    ring: IoUring,
    target: Arc<Target>,
    /// By the number that names them in the ring.
    flying: [Option<(Request, Call)>; MOST],
    limit: LogLimit,
}

impl Uring {
    /// A ring for calls on `target`.
    ///
    /// # Errors
    /// The kernel has none, or none for this process, or one that is too old.
    pub(super) fn new(target: &Arc<Target>) -> io::Result<Self> {
        let ring = IoUring::new(ENTRIES)?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let knows_all = OPERATIONS.iter().all(|code| probe.is_supported(*code));
        // A kernel without the second one looks at vectors after it has been handed them.
        if !knows_all || !ring.params().is_feature_submit_stable() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        // A kernel that cannot be told has as many as there are requests.
        let _ = ring
            .submitter()
            .register_iowq_max_workers(&mut [WORKERS, WORKERS]);
        let mut uring = Self {
            ring,
            target: Arc::clone(target),
            flying: Default::default(),
            limit: LogLimit::default(),
        };
        // A process may be allowed to make rings, and not to use them.
        uring.signal()?;
        uring.clear();
        Ok(uring)
    }

    /// Readable when something has [finished](Self::finished).
    pub(super) fn descriptor(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    /// How many requests more may be handed over.
    pub(super) fn room(&self) -> usize {
        self.flying.iter().filter(|place| place.is_none()).count()
    }

    /// Whether no request is in the ring.
    pub(super) fn is_empty(&self) -> bool {
        self.room() == MOST
    }

    /// Hands a request over, to have `call` made: with the next [`submit`](Self::submit). It comes
    /// back if there is no room.
    pub(super) fn hand_over(&mut self, request: Request, call: &Call) -> Option<Request> {
        let mut places = self.flying.iter_mut().zip(0..);
        let Some((place, number)) = places.find(|(place, _)| place.is_none()) else {
            return Some(request);
        };
        let (request, _) = place.insert((request, *call));
        let entry = entry(call, request, &self.target).user_data(number);
        // SAFETY: the vectors are copied when the entry is submitted, and the request is in `flying`
        // until the entry has completed. So what they point to, guest memory or `ZEROES`, stays mapped
        // and pinned; it is accessed through pointers only. The file stays open as `target` does.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        if pushed.is_err() {
            place.take().map(|(request, _)| request)
        } else {
            None
        }
    }

    /// Has the kernel begin with what was handed over.
    ///
    /// # Errors
    /// It has no memory for that: to be tried again.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        // An entry that the kernel refuses ends with that error, and keeps those behind it waiting.
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// A request whose call has been made, the call, and its result.
    pub(super) fn finished(&mut self) -> Option<(Request, Call, io::Result<usize>)> {
        loop {
            let completion = self.ring.completion().next()?;
            let number = usize::try_from(completion.user_data()).unwrap_or(usize::MAX);
            let Some((request, call)) = self.flying.get_mut(number).and_then(Option::take) else {
                continue;
            };
            let result = completion.result();
            let result = usize::try_from(result)
                .map_err(|_| io::Error::from_raw_os_error(result.saturating_neg()));
            return Some((request, call, result));
        }
    }

    /// Has [`descriptor`](Self::descriptor) become readable.
    pub(super) fn signal(&mut self) -> io::Result<()> {
        self.push(&opcode::Nop::new().build());
        self.submit()
    }

    /// Cancels what can be cancelled, waits for the rest, and gives up all requests.
    pub(super) fn clear(&mut self) {
        for number in 0..MOST {
            if self.flying.get(number).is_some_and(Option::is_some) {
                self.push(&opcode::AsyncCancel::new(number as u64).build());
            }
        }
        loop {
            let wanted = usize::from(!self.is_empty());
            match self.ring.submit_and_wait(wanted) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => self.pause(&error),
                _ => {}
            }
            // What is of no request goes as well: it is to wake nobody later.
            while self.finished().is_some() {}
            if self.is_empty() {
                return;
            }
        }
    }

    /// Waits a bit, if there is something to be waited for.
    fn pause(&mut self, error: &io::Error) {
        if let Some(held_back) = self.limit.pass() {
            error!(
                "virtio-blk: cannot wait for io_uring: {error} ({held_back} messages held back)"
            );
        }
        if !self.is_empty() {
            std::thread::sleep(PAUSE);
        }
    }

    /// Queues an entry of no request, if there is room: there is, but for what was not submitted.
    fn push(&mut self, entry: &Entry) {
        let entry = entry.clone().user_data(NO_REQUEST);
        // SAFETY: it holds no pointers.
        let _ = unsafe { self.ring.submission().push(&entry) };
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        self.clear();
    }
}

fn entry(call: &Call, request: &Request, target: &Target) -> Entry {
    let file = Fd(target.file.as_raw_fd());
    let vectors = request.pages().vectors();
    // `DmaPin::MOST_PIECES` at the most.
    let count = u32::try_from(vectors.len()).unwrap_or(u32::MAX);
    match *call {
        Call::Read { offset } => opcode::Readv::new(file, vectors.as_ptr(), count)
            .offset(offset)
            .build(),
        Call::Write { offset } => opcode::Writev::new(file, vectors.as_ptr(), count)
            .offset(offset)
            .build(),
        Call::WriteZeroes { offset, length } => {
            let length = u32::try_from(length.min(ZEROES.len())).unwrap_or(0);
            opcode::Write::new(file, ZEROES.as_ptr(), length)
                .offset(offset)
                .build()
        }
        Call::Sync => opcode::Fsync::new(file).flags(FsyncFlags::DATASYNC).build(),
        Call::Allocate(range) => opcode::Fallocate::new(file, range.length)
            .offset(range.offset)
            .mode(range.flags().bits().cast_signed())
            .build(),
    }
}

#[cfg(test)]
mod tests {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::BorrowedFd;
    use vmm_sys_util::tempfile::TempFile;

    use super::*;

    fn is_readable(uring: &Uring) -> bool {
        // SAFETY: the ring keeps it open.
        let descriptor = unsafe { BorrowedFd::borrow_raw(uring.descriptor()) };
        let mut polled = [PollFd::new(descriptor, PollFlags::POLLIN)];
        poll(&mut polled, PollTimeout::ZERO).unwrap() == 1
    }

    #[test]
    fn a_ring_that_is_cleared_wakes_nobody_and_a_signal_does() {
        let target = Arc::new(Target {
            file: TempFile::new().unwrap().into_file(),
            path: std::path::PathBuf::new(),
            sectors: 1,
            readonly: false,
            id: [0; 20],
        });
        let mut uring = Uring::new(&target).unwrap();
        assert!(!is_readable(&uring));
        uring.signal().unwrap();
        assert!(is_readable(&uring));
        uring.clear();
        assert!(!is_readable(&uring));
    }
}
