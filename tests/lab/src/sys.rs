//! The system calls of guest-init, lab-agent and xtask that the standard library does not offer.
//!
//! This is the only module of the lab with unsafe code; what it exports is safe to call.
#![allow(unsafe_code)]

pub mod ioctl;
pub mod memory;
pub mod terminal;
pub mod trace;

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

fn c_string(text: &str) -> io::Result<CString> {
    CString::new(text)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "string with a NUL byte"))
}

fn checked(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Mounts `source` of type `fstype` on `target`, as mount(2).
pub fn mount(source: &str, target: &str, fstype: &str, data: &str) -> io::Result<()> {
    let (source, target) = (c_string(source)?, c_string(target)?);
    let (fstype, data) = (c_string(fstype)?, c_string(data)?);
    // SAFETY: all four are NUL-terminated strings that live until the call returns.
    checked(unsafe {
        libc::mount(
            source.as_ptr(),
            target.as_ptr(),
            fstype.as_ptr(),
            0,
            data.as_ptr().cast(),
        )
    })?;
    Ok(())
}

/// Unmounts `target`, as umount(2).
pub fn unmount(target: &str) -> io::Result<()> {
    let target = c_string(target)?;
    // SAFETY: the string is NUL-terminated and lives until the call returns.
    checked(unsafe { libc::umount(target.as_ptr()) })?;
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
    let command = match how {
        Leave::PowerOff => libc::LINUX_REBOOT_CMD_POWER_OFF,
        Leave::Restart => libc::LINUX_REBOOT_CMD_RESTART,
        Leave::Kexec => libc::LINUX_REBOOT_CMD_KEXEC,
    };
    // SAFETY: takes no pointer.
    unsafe { libc::sync() };
    // SAFETY: takes no pointer for these commands.
    unsafe { libc::reboot(command) };
    io::Error::last_os_error()
}

/// Loads `kernel` (a bzImage) with `initrd` and `command_line` for [`Leave::Kexec`]
/// (kexec_file_load(2)).
pub fn kexec_load(
    kernel: BorrowedFd<'_>,
    initrd: BorrowedFd<'_>,
    command_line: &str,
) -> io::Result<()> {
    let command_line = c_string(command_line)?;
    let length = command_line.as_bytes_with_nul().len();
    // SAFETY: the command line is `length` bytes long with its NUL, and the descriptors are open.
    let result = unsafe {
        libc::syscall(
            libc::SYS_kexec_file_load,
            kernel.as_raw_fd(),
            initrd.as_raw_fd(),
            length,
            command_line.as_ptr(),
            0,
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
    // SAFETY: the parameter string is a static NUL-terminated string.
    let result =
        unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    if result < 0 {
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EEXIST) {
            return Err(error);
        }
    }
    Ok(())
}

/// Lets the calling thread run on `cpu` only, and returns the CPU that it then runs on.
pub fn run_on_cpu(cpu: usize) -> io::Result<usize> {
    // SAFETY: cpu_set_t is a plain bit array, for which zero is a valid value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    if cpu >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: cpu is inside the set, as checked above.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: set is valid and its size is given.
    checked(unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) })?;
    // SAFETY: takes no pointer.
    let now = checked(unsafe { libc::sched_getcpu() })?;
    usize::try_from(now).map_err(io::Error::other)
}

/// CLOCK_MONOTONIC in nanoseconds.
pub fn monotonic_ns() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: now is valid for writing.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Whether the effective user is root.
pub fn is_root() -> bool {
    // SAFETY: takes no pointer and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Waits for any child to change state, for PID 1, which inherits orphans. None when there is none.
pub fn reap() -> Option<i32> {
    let mut status = 0;
    // SAFETY: status is valid for writing.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    (pid > 0).then_some(pid)
}

/// Makes `command` lead a session of its own with its standard input as the controlling terminal.
pub fn own_terminal(command: &mut Command) {
    let before_exec = || {
        // SAFETY: takes no pointer.
        unsafe { libc::setsid() };
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
        // SAFETY: the argument of PR_SET_PDEATHSIG is a number.
        unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
        Ok(())
    };
    // SAFETY: the closure calls only prctl, which is async-signal-safe, and allocates nothing.
    unsafe { command.pre_exec(before_exec) };
}

/// Leaves `file` open, under its number, in the programs that are started from now on.
pub fn inherit(file: &File) -> io::Result<()> {
    // SAFETY: takes a descriptor that is open, and no pointer.
    checked(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFD, 0) })?;
    Ok(())
}

/// Sends `signal` to every process of the group that `leader` leads.
pub fn kill_group(leader: u32, signal: i32) {
    if let Ok(leader) = i32::try_from(leader)
        && leader > 1
    {
        // SAFETY: takes no pointer.
        unsafe { libc::kill(-leader, signal) };
    }
}

/// Sends `signal` to one process.
pub fn kill(process: u32, signal: i32) {
    if let Ok(process) = i32::try_from(process)
        && process > 1
    {
        // SAFETY: takes no pointer.
        unsafe { libc::kill(process, signal) };
    }
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
