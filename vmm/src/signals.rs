//! Signals: the one that makes a vCPU leave the guest, and those that end the process.

#![allow(unsafe_code)] // A signal handler that writes into the page that a vCPU shares with KVM.

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::ptr;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use kvm_ioctls::VcpuFd;
use libc::{c_int, c_void, siginfo_t};
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::event_loop::{Handle, Subscription};

/// Signals that end the process in an orderly way.
const ENDING: [Signal; 3] = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];

thread_local! {
    /// `kvm_run.immediate_exit` of the vCPU that this thread runs, or null.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// The signal that kicks a vCPU thread.
pub(crate) fn kick_signal() -> c_int {
    SIGRTMIN()
}

/// Installs the handler of [`kick_signal`].
pub(crate) fn install_kick() -> io::Result<()> {
    register_signal_handler(kick_signal(), on_kick)
        .map_err(|error| io::Error::from_raw_os_error(error.errno()))
}

/// Has a file that may become no larger be an error of whoever writes to it, and not the end of the
/// process; and has the end of a child be waited for, whatever this process was started with.
pub(crate) fn reset() -> io::Result<()> {
    for (which, handler) in [
        (Signal::SIGXFSZ, SigHandler::SigIgn),
        (Signal::SIGCHLD, SigHandler::SigDfl),
    ] {
        // SAFETY: neither is a function of ours that could do what a signal handler may not.
        unsafe { signal(which, handler) }?;
    }
    Ok(())
}

/// Makes the next (or current) KVM_RUN of this thread return: the signal alone would be lost just
/// before it.
extern "C" fn on_kick(_signal: c_int, _info: *mut siginfo_t, _context: *mut c_void) {
    IMMEDIATE_EXIT.with(|pointer| {
        let pointer = pointer.get();
        if !pointer.is_null() {
            // SAFETY: only `Kickable` stores a pointer that is not null: it points into the page
            // that a live `VcpuFd` of this very thread maps. KVM reads the byte whenever it likes,
            // hence the volatile write.
            unsafe { pointer.write_volatile(1) };
        }
    });
}

/// While it exists, a kick of this thread interrupts the vCPU that it was made from.
pub(crate) struct Kickable<'a> {
    vcpu: &'a mut VcpuFd,
    /// Bound to the thread: the pointer is in its local storage.
    _thread: PhantomData<*const ()>,
}

impl<'a> Kickable<'a> {
    /// Makes kicks of this thread reach `vcpu`.
    pub(crate) fn new(vcpu: &'a mut VcpuFd) -> Self {
        let pointer = &raw mut vcpu.get_kvm_run().immediate_exit;
        IMMEDIATE_EXIT.with(|slot| slot.set(pointer));
        Self {
            vcpu,
            _thread: PhantomData,
        }
    }

    /// The vCPU.
    pub(crate) fn vcpu(&mut self) -> &mut VcpuFd {
        self.vcpu
    }
}

impl Drop for Kickable<'_> {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.with(|slot| slot.set(ptr::null_mut()));
    }
}

/// Keeps the ending signals from interrupting any thread; to be called before the first thread is
/// started.
pub(crate) fn block_ending() -> io::Result<()> {
    Ok(ending().thread_block()?)
}

/// Calls `arrived` with the number of each ending signal, which are blocked, on the loop's thread.
///
/// # Errors
/// When the host has no descriptor left.
pub(crate) fn watch_ending(
    event_loop: &Handle,
    arrived: impl FnMut(i32) + Send + 'static,
) -> io::Result<Subscription> {
    let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
    let signals = SignalFd::with_flags(&ending(), flags)?;
    let sources = [Events::new(&signals, EventSet::IN)];
    event_loop.subscribe(Watcher { signals, arrived }, &sources)
}

/// Those that end the process.
pub(crate) fn ending() -> SigSet {
    ENDING.into_iter().collect()
}

struct Watcher<F> {
    signals: SignalFd,
    arrived: F,
}

impl<F: FnMut(i32)> MutEventSubscriber for Watcher<F> {
    fn process(&mut self, _events: Events, _ops: &mut EventOps<'_>) {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            (self.arrived)(i32::try_from(signal.ssi_signo).unwrap_or(0));
        }
    }

    fn init(&mut self, _ops: &mut EventOps<'_>) {}
}
