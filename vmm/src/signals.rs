//! Signals: the one that makes a vCPU leave the guest, and those that end the process.

#![allow(unsafe_code)] // A signal handler that writes into the page that a vCPU shares with KVM; and sigwait.

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::ptr;

use kvm_ioctls::VcpuFd;
use libc::{c_int, c_void, siginfo_t};
use vmm_sys_util::signal::{SIGRTMIN, block_signal, create_sigset, register_signal_handler};

/// Signals that end the process in an orderly way.
const ENDING: [c_int; 3] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP];

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

/// Makes the next (or current) KVM_RUN of this thread return: the signal alone would be lost just before it.
extern "C" fn on_kick(_signal: c_int, _info: *mut siginfo_t, _context: *mut c_void) {
    IMMEDIATE_EXIT.with(|pointer| {
        let pointer = pointer.get();
        if !pointer.is_null() {
            // SAFETY: only `Kickable` stores a pointer that is not null: it points into the page that a live `VcpuFd` of
            // this very thread maps. KVM reads the byte whenever it likes, hence the volatile write.
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

/// Keeps the ending signals from interrupting any thread; to be called before the first thread is started.
pub(crate) fn block_ending() {
    for signal in ENDING {
        // Failure means that the number is no signal's, which these are.
        let _ = block_signal(signal);
    }
}

/// Waits for one of the ending signals and returns its number.
pub(crate) fn wait_ending() -> io::Result<c_int> {
    let set =
        create_sigset(&ENDING).map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
    let mut signal = 0;
    // SAFETY: both pointers are to live values of the right types.
    match unsafe { libc::sigwait(&raw const set, &raw mut signal) } {
        0 => Ok(signal),
        error => Err(io::Error::from_raw_os_error(error)),
    }
}
