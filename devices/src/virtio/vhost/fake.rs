//! A kernel for tests, which obeys the rules of vhost's IOTLB: one mutex stands for those of all
//! queues, a queue that misses a translation stops until it is there, and misses take memory until
//! they are answered. Its queues have a turn when the test says so.

use std::collections::VecDeque;
use std::io;
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Barrier, Mutex};

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion, Permissions};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::backend::{Backend, Events, Miss, Rings, Update};
use super::log::Bits;
use crate::Memory;

/// ACCESS_PLATFORM.
const PLATFORM: u64 = 1 << 33;

#[derive(Default)]
pub(in crate::virtio) struct State {
    pub(in crate::virtio) features: u64,
    pub(in crate::virtio) iotlb: Vec<Update>,
    queues: Vec<Option<Queue>>,
    pub(in crate::virtio) running: bool,
    /// The queues that were started.
    started: Vec<usize>,
    /// Not read yet.
    misses: VecDeque<Miss>,
    /// Read, and not answered.
    pending: Vec<Miss>,
    pub(in crate::virtio) updates: usize,
    pub(in crate::virtio) can_log: bool,
    pub(in crate::virtio) log: Option<Arc<Bits>>,
}

struct Queue {
    rings: Rings,
    call: EventFd,
    error: EventFd,
    /// Of the next chain.
    next: u16,
}

pub(in crate::virtio) struct Fake {
    memory: Memory,
    pub(in crate::virtio) state: Mutex<State>,
    /// Counts misses that are to be read.
    readable: EventFd,
    /// Where the next update waits twice, before it is made.
    pub(in crate::virtio) pause: Mutex<Option<Arc<Barrier>>>,
}

/// Why a turn ended early.
enum Stop {
    Miss(Miss),
    Denied,
}

impl Fake {
    pub(in crate::virtio) fn new(memory: &Memory) -> Arc<Self> {
        Arc::new(Self {
            memory: Arc::clone(memory),
            state: Mutex::default(),
            readable: EventFd::new(EFD_NONBLOCK).unwrap(),
            pause: Mutex::default(),
        })
    }

    /// Serves `queue` as far as there are buffers and translations: fills what is writable with
    /// `byte`.
    pub(in crate::virtio) fn turn(&self, queue: usize, byte: u8) {
        let mut state = self.state.lock().unwrap();
        let stop = self.serve(&mut state, queue, byte);
        let queue = state.queues.get(queue).and_then(Option::as_ref);
        match (stop, queue) {
            (Err(Stop::Miss(miss)), _) => self.miss(&mut state, miss),
            (Err(Stop::Denied), Some(queue)) => queue.error.write(1).unwrap(),
            (Ok(true), Some(queue)) => queue.call.write(1).unwrap(),
            _ => {}
        }
    }

    pub(in crate::virtio) fn miss(&self, state: &mut State, miss: Miss) {
        state.misses.push_back(miss);
        self.readable.write(1).unwrap();
    }

    /// Misses that take memory.
    pub(in crate::virtio) fn misses(&self) -> usize {
        let state = self.state.lock().unwrap();
        state.misses.len() + state.pending.len()
    }

    pub(in crate::virtio) fn running(&self) -> bool {
        self.state.lock().unwrap().running
    }

    /// Whether the IOTLB has anything for the device address.
    pub(in crate::virtio) fn holds(&self, address: u64) -> bool {
        let state = self.state.lock().unwrap();
        let mut entries = state.iotlb.iter();
        entries.any(|entry| (entry.first..entry.first + entry.size).contains(&address))
    }

    /// Where the descriptors of a queue are, which the device gave as an address of this process.
    pub(in crate::virtio) fn ring_in_guest(&self, index: usize) -> u64 {
        let state = self.state.lock().unwrap();
        let queue = state.queues[index].as_ref().unwrap();
        self.guest(queue.rings.descriptors)
    }

    fn serve(&self, state: &mut State, index: usize, byte: u8) -> Result<bool, Stop> {
        let State {
            features,
            iotlb,
            queues,
            running,
            started,
            log,
            ..
        } = state;
        let wrote = |address: u64, bytes: u64| {
            let pages = address >> 12..=(address + bytes - 1) >> 12;
            log.iter()
                .for_each(|log| pages.clone().for_each(|page| log.set(page << 12)));
        };
        let Some(queue) = queues.get_mut(index).and_then(Option::as_mut) else {
            return Ok(false);
        };
        if !*running || !started.contains(&index) {
            return Ok(false);
        }
        let place = |address: u64, access: Permissions| -> Result<u64, Stop> {
            if *features & PLATFORM == 0 {
                return Ok(address);
            }
            self.translate(iotlb, address, access)
        };
        let rings = queue.rings;
        // What is denied of a ring goes unnoticed.
        let ring = |address, access| match place(address, access) {
            Err(Stop::Denied) => Ok(None),
            found => found.map(|host| Some(self.guest(host))),
        };
        let (Some(descriptors), Some(available), Some(used)) = (
            ring(rings.descriptors, Permissions::Read)?,
            ring(rings.available, Permissions::Read)?,
            ring(rings.used, Permissions::Write)?,
        ) else {
            return Ok(false);
        };
        let index: u16 = self.memory.read_obj(GuestAddress(available + 2)).unwrap();
        let mut any = false;
        while queue.next != index {
            let slot = u64::from(queue.next % rings.size);
            let entry = GuestAddress(available + 4 + 2 * slot);
            let head: u16 = self.memory.read_obj(entry).unwrap();
            let at = descriptors + 16 * u64::from(head);
            let address: u64 = self.memory.read_obj(GuestAddress(at)).unwrap();
            let length: u32 = self.memory.read_obj(GuestAddress(at + 8)).unwrap();
            let flags: u16 = self.memory.read_obj(GuestAddress(at + 12)).unwrap();
            let writes = flags & 2 != 0;
            let address = match *features & PLATFORM {
                0 => address,
                _ if writes => self.guest(place(address, Permissions::Write)?),
                _ => self.guest(place(address, Permissions::Read)?),
            };
            if writes {
                let bytes = vec![byte; usize::try_from(length).unwrap()];
                self.memory
                    .write_slice(&bytes, GuestAddress(address))
                    .unwrap();
                wrote(address, length.into());
            }
            let element = u64::from(head) | u64::from(length) << 32;
            let entry = GuestAddress(used + 4 + 8 * slot);
            self.memory.write_obj(element, entry).unwrap();
            queue.next = queue.next.wrapping_add(1);
            self.memory
                .write_obj(queue.next, GuestAddress(used + 2))
                .unwrap();
            wrote(used, 6 + 8 * u64::from(rings.size));
            any = true;
        }
        Ok(any)
    }

    fn translate(&self, iotlb: &[Update], address: u64, access: Permissions) -> Result<u64, Stop> {
        let mut entries = iotlb.iter();
        let found =
            entries.find(|entry| (entry.first..entry.first + entry.size).contains(&address));
        match found {
            None => Err(Stop::Miss(Miss { address, access })),
            Some(entry) if entry.access == access || entry.access == Permissions::ReadWrite => {
                Ok(entry.host + (address - entry.first))
            }
            Some(_) => Err(Stop::Denied),
        }
    }

    /// The guest-physical address of an address of this process.
    fn guest(&self, host: u64) -> u64 {
        let region = self.memory.iter().next().unwrap();
        let offset = host - region.as_ptr().expose_provenance() as u64;
        assert!(offset < region.len(), "{host:#x} is no guest memory");
        offset
    }
}

impl Backend for Arc<Fake> {
    fn set_features(&self, features: u64) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        state.features = features;
        state.iotlb.clear();
        Ok(())
    }

    fn set_queue(&self, index: usize, rings: &Rings, events: &Events<'_>) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        assert!(!state.running, "EBUSY");
        state.queues.resize_with(2, || None);
        state.queues[index] = Some(Queue {
            rings: *rings,
            call: events.call.try_clone()?,
            error: events.error.try_clone()?,
            next: rings.next,
        });
        Ok(())
    }

    fn start(&self, queues: &[usize]) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        if state.features & PLATFORM != 0 {
            for queue in queues {
                let queue = state.queues[*queue].as_ref().unwrap();
                let used = self.translate(&state.iotlb, queue.rings.used, Permissions::Write);
                used.map_err(|_| io::Error::from_raw_os_error(libc::EFAULT))?;
            }
        }
        state.started = queues.to_vec();
        state.running = true;
        Ok(())
    }

    fn stop(&self) -> io::Result<()> {
        self.state.lock().unwrap().running = false;
        Ok(())
    }

    fn position(&self, index: usize) -> io::Result<u16> {
        let state = self.state.lock().unwrap();
        Ok(state.queues[index].as_ref().map_or(0, |queue| queue.next))
    }

    fn next_miss(&self) -> io::Result<Option<Miss>> {
        let mut state = self.state.lock().unwrap();
        let miss = state.misses.pop_front();
        state.pending.extend(miss);
        if state.misses.is_empty() {
            let _ = self.readable.read();
        }
        Ok(miss)
    }

    fn update(&self, update: &Update) -> io::Result<()> {
        let pause = self.pause.lock().unwrap().take();
        if let Some(pause) = pause {
            pause.wait();
            pause.wait();
        }
        let mut state = self.state.lock().unwrap();
        if state.features & PLATFORM == 0 || update.size == 0 {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let range = update.first..=update.first + (update.size - 1);
        state.pending.retain(|miss| !range.contains(&miss.address));
        state.iotlb.push(*update);
        state.updates += 1;
        Ok(())
    }

    fn invalidate(&self, range: RangeInclusive<u64>) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        state.iotlb.retain(|entry| {
            entry.first > *range.end() || entry.first + (entry.size - 1) < *range.start()
        });
        Ok(())
    }

    fn can_log(&self) -> bool {
        self.state.lock().unwrap().can_log
    }

    fn set_log(&self, log: Option<&Arc<Bits>>) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        assert!(log.is_none() || !state.running, "some writes are missed");
        state.log = log.cloned();
        Ok(())
    }

    fn fd(&self) -> RawFd {
        self.readable.as_raw_fd()
    }
}
