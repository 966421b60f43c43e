//! Queues in the kernel's hands, as the device's thread sees them: handed over and taken back, with
//! the events that come of them.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use virtio_bindings::virtio_config::VIRTIO_F_ACCESS_PLATFORM;
use vm_memory::{GuestAddress, GuestMemory, Permissions};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::Place;
use super::backend::{Backend, Events, Miss};
use super::log::Writer;
use super::rings;
use super::shared::{Shared, host};
use crate::virtio::chain::Chain;
use crate::virtio::device::Halt as _;
use crate::virtio::error::QueueError;
use crate::virtio::feature::mask;
use crate::virtio::session::Session;

/// Misses that are read before they are answered. A queue that is notified again says again what it
/// misses, and all of that has one answer.
const MISSES: usize = 256;
/// How often the kernel is started, if it does not find its rings, which the guest may be invalidating.
const STARTS: u32 = 3;
/// Bytes of a chain that are looked at, each way, to find out why the kernel has given a queue up. A
/// packet has less.
const LOOK: u64 = 128 << 10;

/// What the device's thread waits for.
#[derive(Clone, Copy)]
enum Source {
    /// Used buffers of a queue, by the kernel's number.
    Call(usize),
    /// Disorder in a queue.
    Error(usize),
    /// A miss, or the end of who serves the device.
    Backend,
    /// It need not rest any more.
    Rested,
}

/// Queues of a device that the kernel serves as one device of its own. It numbers them from 0 on.
pub(in crate::virtio) struct Queues {
    shared: Arc<Shared>,
    /// The index of the first one in our device.
    first: usize,
    /// Those that the driver has enabled, by the kernel's number.
    enabled: Vec<usize>,
    /// One for each queue: it has used buffers.
    calls: Vec<EventFd>,
    /// One for each queue: it is in disorder.
    errors: Vec<EventFd>,
    /// What is waited for. Not the calls that have routes, of which the hypervisor hears.
    sources: Vec<Source>,
    misses: Vec<Miss>,
    /// One for each enabled queue: it has available buffers.
    kicks: Vec<EventFd>,
    /// The kernel is to start when the thread goes on.
    waits: bool,
}

impl Queues {
    /// The queues `range` of our device, for `backend`.
    pub(in crate::virtio) fn new(
        backend: impl Backend + 'static,
        place: Place,
        range: Range<usize>,
    ) -> io::Result<Self> {
        let event = |_| EventFd::new(EFD_NONBLOCK);
        let events = || range.clone().map(event).collect::<io::Result<Vec<_>>>();
        Ok(Self {
            shared: Arc::new(Shared::new(Box::new(backend), place)?),
            first: range.start,
            enabled: Vec::new(),
            calls: events()?,
            errors: events()?,
            sources: Vec::new(),
            misses: Vec::new(),
            kicks: Vec::new(),
            waits: false,
        })
    }

    /// For whoever has to stop the kernel at once.
    pub(in crate::virtio) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Whether the kernel serves queue `index`.
    pub(in crate::virtio) fn has(&self, index: usize) -> bool {
        index
            .checked_sub(self.first)
            .is_some_and(|number| number < self.calls.len())
    }

    /// For whoever follows what is written to guest memory.
    pub(in crate::virtio) fn writer(&self) -> Writer {
        Writer(Arc::downgrade(&self.shared))
    }

    /// Their calls, by the index in our device.
    pub(in crate::virtio) fn calls(&self) -> io::Result<Vec<(usize, EventFd)>> {
        let calls = (self.first..).zip(&self.calls);
        let calls = calls.map(|(index, call)| Ok((index, call.try_clone()?)));
        calls.collect()
    }

    /// Hands over those of them that the driver has enabled. `features` is what the kernel is to do
    /// of what the driver has accepted.
    pub(in crate::virtio) fn hand_over(
        &mut self,
        features: u64,
        session: &mut Session,
        kicks: &[(usize, EventFd)],
    ) -> Result<(), QueueError> {
        let shared = Arc::clone(&self.shared);
        let translated = shared.place().is_translated();
        self.enabled.clear();
        self.kicks.clear();
        self.choose_sources(session);
        shared.prepare();
        let platform = mask(&[VIRTIO_F_ACCESS_PLATFORM]);
        let features = features & !platform | if translated { platform } else { 0 };
        shared
            .backend()
            .set_features(features)
            .map_err(host("VHOST_SET_FEATURES"))?;
        for (index, kick) in kicks {
            self.set_up(*index, kick, session)?;
        }
        if translated {
            shared.listen();
        }
        // One that was restored goes on with the others.
        self.waits = session.parking() || self.shared.rests();
        if self.waits {
            return Ok(());
        }
        self.start(session)?;
        // Buffers that were made available before DRIVER_OK count as well.
        self.kick()
    }

    fn start(&self, session: &mut Session) -> Result<(), QueueError> {
        if self.shared.place().is_translated() {
            return self.start_translated(session);
        }
        // Nothing is translated, but the device's gate may be closed.
        let transaction = session.begin()?;
        transaction
            .grant(0, Permissions::Read)
            .ok_or(QueueError::Stopped)?;
        self.shared.start(&self.enabled)
    }

    /// Sets queue `index` of our device up, if it is one of these and enabled.
    fn set_up(
        &mut self,
        index: usize,
        kick: &EventFd,
        session: &mut Session,
    ) -> Result<(), QueueError> {
        let Some(number) = index.checked_sub(self.first) else {
            return Ok(());
        };
        let events = self.calls.get(number).zip(self.errors.get(number));
        let (Some((call, error)), Some(queue)) = (events, session.queue(index)) else {
            return Ok(());
        };
        let rings = match self.shared.place() {
            Place::Direct(memory) => rings::direct(queue, memory)?,
            Place::Behind { .. } => rings::translated(queue)?,
        };
        // What an earlier driver has left says nothing of this one.
        let _ = (call.read(), error.read());
        let events = Events { kick, call, error };
        self.shared
            .backend()
            .set_queue(number, &rings, &events)
            .map_err(host("setting a queue up in vhost"))?;
        let kick = kick.try_clone().map_err(host("a notification"))?;
        self.kicks.push(kick);
        self.enabled.push(number);
        Ok(())
    }

    /// The kernel does not start unless it can reach the used rings.
    fn start_translated(&self, session: &mut Session) -> Result<(), QueueError> {
        let mut rings = Vec::new();
        for number in &self.enabled {
            let queue = session.queue(self.first + number);
            rings.extend(rings::rings_of(queue.ok_or(QueueError::Disabled)?)?);
        }
        for _ in 0..STARTS {
            let transaction = session.begin()?;
            for ring in &rings {
                self.shared.give_ring(&transaction, *ring)?;
            }
            match self.shared.start(&self.enabled) {
                // The guest may have invalidated them in between.
                Err(QueueError::Host { error, .. })
                    if error.raw_os_error() == Some(libc::EFAULT) =>
                {
                    self.shared.pause()?;
                }
                outcome => return outcome,
            }
        }
        let error = io::Error::from_raw_os_error(libc::EFAULT);
        Err(host("starting vhost")(error))
    }

    /// Has the kernel look at all queues that are enabled.
    fn kick(&self) -> Result<(), QueueError> {
        for kick in &self.kicks {
            match kick.write(1) {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    return Err(host("a notification")(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Has the kernel stop for a while. Its IOTLB stays; what it has asked for it may have forgotten by then (vhost-net
    /// since Linux 6.2), and asks for once more as all queues are kicked when it goes on. Interrupts that
    /// the hypervisor does not send are sent, and queues are where the kernel has left them.
    pub(in crate::virtio) fn suspend(&mut self, session: &mut Session) -> Result<(), QueueError> {
        self.waits |= unless_halted(self.shared.pause())?;
        for number in &self.enabled {
            let position = self.position(*number)?;
            let queue = session.queue(self.first + number);
            queue.ok_or(QueueError::Disabled)?.go_on_at(position)?;
        }
        for source in &self.sources {
            if let Source::Call(number) = source
                && is_signalled(&self.calls, *number)
            {
                session.interrupt(self.first + number);
            }
        }
        Ok(())
    }

    /// Has it go on where it was.
    pub(in crate::virtio) fn go_on(&mut self, session: &mut Session) -> Result<(), QueueError> {
        if !self.waits || self.shared.rests() {
            return Ok(());
        }
        self.waits = false;
        unless_halted(self.start(session))?;
        self.kick()
    }

    /// Where the kernel goes on in queue `number`, which it has stopped.
    fn position(&self, number: usize) -> Result<u16, QueueError> {
        let position = self.shared.backend().position(number);
        position.map_err(host("VHOST_GET_VRING_BASE"))
    }

    /// Takes the queues back. The kernel accesses nothing of the guest when this returns.
    pub(in crate::virtio) fn take_back(&mut self) {
        self.waits = false;
        self.shared.halt();
        self.shared.leave(&self.misses);
        self.misses.clear();
    }

    fn choose_sources(&mut self, session: &Session) {
        let numbers = 0..self.calls.len();
        let unrouted = |number: &usize| !session.has_route(self.first + number);
        let calls = numbers.clone().filter(unrouted).map(Source::Call);
        let mut sources: Vec<_> = calls.chain(numbers.map(Source::Error)).collect();
        if self.shared.place().is_translated() || self.shared.backend().may_go() {
            sources.push(Source::Backend);
        }
        sources.extend(self.shared.rested().map(|_| Source::Rested));
        self.sources = sources;
    }

    /// What to wait for, once the queues are handed over.
    pub(in crate::virtio) fn sources(&self) -> Vec<RawFd> {
        let fd = |source: &Source| match source {
            Source::Call(number) => self.calls.get(*number).map(AsRawFd::as_raw_fd),
            Source::Error(number) => self.errors.get(*number).map(AsRawFd::as_raw_fd),
            Source::Backend => Some(self.shared.backend().fd()),
            Source::Rested => self.shared.rested().map(AsRawFd::as_raw_fd),
        };
        self.sources.iter().filter_map(fd).collect()
    }

    /// One of the [`sources`](Self::sources) is ready.
    pub(in crate::virtio) fn source_ready(
        &mut self,
        source: usize,
        session: &mut Session,
    ) -> Result<(), QueueError> {
        match self.sources.get(source) {
            Some(Source::Call(number)) if is_signalled(&self.calls, *number) => {
                session.interrupt(self.first + number);
                Ok(())
            }
            Some(Source::Error(number)) if is_signalled(&self.errors, *number) => {
                Err(self.find_out(*number, session))
            }
            Some(Source::Backend) if self.shared.backend().is_gone() => Err(QueueError::Gone),
            Some(Source::Backend) => self.answer_misses(session),
            Some(Source::Rested) => {
                let _ = self.shared.rested().map(EventFd::read);
                self.go_on(session)
            }
            _ => Ok(()),
        }
    }

    fn answer_misses(&mut self, session: &mut Session) -> Result<(), QueueError> {
        self.misses.clear();
        for _ in 0..MISSES {
            let next = self.shared.backend().next_miss();
            let Some(miss) = next.map_err(host("reading what vhost misses"))? else {
                break;
            };
            if !self.misses.contains(&miss) {
                self.misses.push(miss);
            }
        }
        // What is not answered stays, for `take_back`.
        while let Some(miss) = self.misses.last() {
            let transaction = session.begin()?;
            if !transaction.check_range(GuestAddress(miss.address), 1, miss.access) {
                drop(transaction);
                return self.restart(session);
            }
            self.shared.answer(&transaction, *miss)?;
            self.misses.pop();
        }
        Ok(())
    }

    /// The kernel misses what the guest does not permit. It may have said so twice, have got an answer
    /// to the first, and be done with the buffer, which the guest has unmapped since: that is no fault.
    /// Whatever is in the queues by now and is blocked is one; if nothing is, the kernel starts again
    /// without an answer.
    fn restart(&mut self, session: &mut Session) -> Result<(), QueueError> {
        self.shared.pause()?;
        for number in &self.enabled {
            self.retrace(*number, session)?;
        }
        self.shared
            .forget(&self.misses)
            .map_err(host("answering what vhost misses"))?;
        self.misses.clear();
        if self.shared.rests() {
            self.waits = true;
            return Ok(());
        }
        self.start_translated(session)?;
        self.kick()
    }

    /// Why the kernel has given queue `number` up, as far as that can be seen: by doing what it has
    /// tried. To the guest that is the access that was blocked.
    fn find_out(&self, number: usize, session: &mut Session) -> QueueError {
        self.shared.halt();
        self.retrace(number, session)
            .err()
            .unwrap_or(QueueError::GivenUp(self.first + number))
    }

    fn retrace(&self, number: usize, session: &mut Session) -> Result<(), QueueError> {
        let position = self.position(number)?;
        let index = self.first + number;
        let mut chain = Chain::default();
        let queue = session.queue(index).ok_or(QueueError::Disabled)?;
        queue.go_on_at(position)?;
        for _ in 0..session.queue_size(index) {
            if !session.pop(index, &mut chain)? {
                break;
            }
            let transaction = session.begin()?;
            let reads = chain.readable_ranges(0, LOOK);
            let writes = chain.writable_ranges(0, LOOK);
            let reads = reads.map(|range| (range, Permissions::Read));
            for ((address, length), access) in
                reads.chain(writes.map(|range| (range, Permissions::Write)))
            {
                for slice in transaction.get_slices(address, length, access)? {
                    slice?;
                }
            }
        }
        Ok(())
    }
}

/// Whether the event of that number was signalled; asking clears it.
fn is_signalled(events: &[EventFd], number: usize) -> bool {
    let event = events.get(number);
    event.is_some_and(|event| event.read().is_ok())
}

/// What was stopped by somebody else stays so.
fn unless_halted<T: Default>(outcome: Result<T, QueueError>) -> Result<T, QueueError> {
    match outcome {
        Err(QueueError::Stopped) => Ok(T::default()),
        outcome => outcome,
    }
}

impl Drop for Queues {
    /// A thread that ends without its device's consent leaves nothing to the kernel, either.
    fn drop(&mut self) {
        self.take_back();
    }
}
