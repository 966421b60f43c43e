//! The system calls of guest-init, lab-agent and xtask that the standard library does not offer.
//!
//! This is the only module of the lab with unsafe code; what it exports is safe to call.
#![allow(unsafe_code)]

pub mod aio;
pub mod ioctl;
pub mod memory;
pub mod ping;
pub mod terminal;
pub mod trace;
pub mod vsock;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::MsFlags;
use nix::sched::{CloneFlags, CpuSet, sched_getcpu, sched_setaffinity, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::reboot::RebootMode;
use nix::sys::signal::{self, Signal, killpg};
use nix::sys::time::TimeValLike;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::{Pid, geteuid, setsid, sync};

/// Mounts `source` of type `fstype` on `target`, as mount(2).
pub fn mount(source: &str, target: &str, fstype: &str, data: &str) -> io::Result<()> {
    let flags = MsFlags::empty();
    nix::mount::mount(Some(source), target, Some(fstype), flags, Some(data))?;
    Ok(())
}

/// Unmounts `target`, as umount(2).
pub fn unmount(target: &str) -> io::Result<()> {
    nix::mount::umount(target)?;
    Ok(())
}

/// How a machine is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// Power off.
    PowerOff,
    /// Reset, through the firmware's reset register.
    Restart,
    /// Start the kernel that [`kexec_load`] left.
    Kexec,
}

/// Leaves the machine; returns only on an error. Needs CAP_SYS_BOOT.
pub fn reboot(how: Leave) -> io::Error {
    let mode = match how {
        Leave::PowerOff => RebootMode::RB_POWER_OFF,
        Leave::Restart => RebootMode::RB_AUTOBOOT,
        Leave::Kexec => RebootMode::RB_KEXEC,
    };
    sync();
    match nix::sys::reboot::reboot(mode) {
        Ok(never) => match never {},
        Err(error) => error.into(),
    }
}

/// When a kernel that was loaded is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// On [`Leave::Kexec`].
    OnLeave,
    /// When this kernel panics.
    OnPanic,
}

/// Loads `kernel` (a bzImage) with `initrd` and `command_line` (kexec_file_load(2)).
pub fn kexec_load(
    kernel: BorrowedFd<'_>,
    initrd: BorrowedFd<'_>,
    command_line: &str,
    start: Start,
) -> io::Result<()> {
    /// KEXEC_FILE_ON_CRASH of linux/kexec.h.
    const ON_CRASH: libc::c_ulong = 2;
    let flags = match start {
        Start::OnLeave => 0,
        Start::OnPanic => ON_CRASH,
    };
    let command_line = CString::new(command_line)?;
    let length = command_line.as_bytes_with_nul().len();
    // SAFETY: the command line is `length` bytes long with its NUL, and the descriptors are open.
    let result = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            kernel.as_raw_fd(),
            initrd.as_raw_fd(),
            length,
            command_line.as_ptr(),
            flags,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Loads a kernel module from an open file (finit_module(2)); one that is loaded already is no
/// error.
pub fn load_module(file: BorrowedFd<'_>) -> io::Result<()> {
    match finit_module(file, c"", ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Lets the calling thread run on `cpu` only, and returns the CPU that it then runs on.
pub fn run_on_cpu(cpu: usize) -> io::Result<usize> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set)?;
    Ok(sched_getcpu()?)
}

/// CLOCK_MONOTONIC in nanoseconds.
pub fn monotonic_ns() -> u64 {
    let Ok(now) = clock_gettime(ClockId::CLOCK_MONOTONIC) else {
        return 0;
    };
    u64::try_from(now.tv_sec()).unwrap_or(0) * 1_000_000_000
        + u64::try_from(now.tv_nsec()).unwrap_or(0)
}

/// Whether the effective user is root.
pub fn is_root() -> bool {
    geteuid().is_root()
}

/// Waits for any child to change state, for PID 1, which inherits orphans. None when there is none.
pub fn reap() -> Option<i32> {
    let status = waitpid(None, Some(WaitPidFlag::WNOHANG)).ok()?;
    status.pid().map(Pid::as_raw)
}

/// Makes `command` lead a session of its own with its standard input as the controlling terminal.
pub fn own_terminal(command: &mut Command) {
    let before_exec = || {
        let _ = setsid();
        // SAFETY: the argument of TIOCSCTTY is a number.
        unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) };
        Ok(())
    };
    // SAFETY: the closure calls only async-signal-safe functions and allocates nothing.
    unsafe { command.pre_exec(before_exec) };
}

/// Makes the kernel kill `command` with SIGKILL when the thread that starts it ends, however it
/// ends.
pub fn die_with_parent(command: &mut Command) {
    let before_exec = || {
        let _ = set_pdeathsig(Signal::SIGKILL);
        Ok(())
    };
    // SAFETY: the closure calls only prctl, which is async-signal-safe, and allocates nothing.
    unsafe { command.pre_exec(before_exec) };
}

/// Has `command` see the file at `boot_id` where the kernel says which of its starts this is, so that it takes this host
/// for another one. Both paths are short.
pub fn pretend_another_host(command: &mut Command, boot_id: &Path) {
    let boot_id = boot_id.to_owned();
    let before_exec = move || {
        let none = None::<&Path>;
        unshare(CloneFlags::CLONE_NEWNS)?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        nix::mount::mount(none, "/", none, private, none)?;
        nix::mount::mount(Some(&*boot_id), BOOT_ID, none, MsFlags::MS_BIND, none)?;
        Ok(())
    };
    // SAFETY: the closure makes system calls only, which are async-signal-safe; short paths are copied to the stack, so it
    // allocates nothing.
    unsafe { command.pre_exec(before_exec) };
}

/// Where the kernel says which of its starts this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The descriptor of this number, which this process was started with, and which nobody else uses.
pub fn inherited(number: RawFd) -> OwnedFd {
    // SAFETY: whoever has started this process has said the number, and it is asked for once.
    unsafe { OwnedFd::from_raw_fd(number) }
}

/// Leaves `file` open, under its number, in the programs that are started from now on.
pub fn inherit(file: &impl AsFd) -> io::Result<()> {
    fcntl(file, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(())
}

/// Kills every process of the group that `leader` leads.
pub fn kill_group(leader: u32) {
    if let Ok(leader) = i32::try_from(leader)
        && leader > 1
    {
        let _ = killpg(Pid::from_raw(leader), Signal::SIGKILL);
    }
}

/// Kills one process.
pub fn kill(process: u32) {
    if let Ok(process) = i32::try_from(process)
        && process > 1
    {
        let _ = signal::kill(Pid::from_raw(process), Signal::SIGKILL);
    }
}

/// Stops one process, all of its threads.
pub fn stop(process: u32) {
    if let Ok(process) = i32::try_from(process)
        && process > 1
    {
        let _ = signal::kill(Pid::from_raw(process), Signal::SIGSTOP);
    }
}

/// Processor time that a process has used in all its threads, in nanoseconds.
pub fn processor_time_ns(process: u32) -> io::Result<u64> {
    let process = i32::try_from(process).map_err(io::Error::other)?;
    let used = clock_gettime(clock_getcpuclockid(Pid::from_raw(process))?)?;
    Ok(u64::try_from(used.num_nanoseconds()).unwrap_or(0))
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn on_interrupt(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::SeqCst);
}

/// From now on SIGINT, SIGTERM and SIGHUP do not end the process but make [`interrupted`] true.
pub fn catch_interrupts() {
    let handler = on_interrupt as extern "C" fn(libc::c_int) as libc::sighandler_t;
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler only stores to an atomic, which is async-signal-safe.
        unsafe { libc::signal(signal, handler) };
    }
}

/// Whether a signal asked the process to end.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}
