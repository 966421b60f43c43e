//! Counts the ioctls of a process by ptrace(2), and has one of them fail.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// ioctl numbers, and how often each was issued.
pub type Counts = BTreeMap<u64, u64>;

/// A process whose ioctls are being counted, which slows it down a lot.
pub struct IoctlCount {
    process: i32,
    stop: Arc<AtomicBool>,
    tracer: JoinHandle<io::Result<Counts>>,
}

impl IoctlCount {
    /// Counts from now on.
    pub fn start(process: u32) -> io::Result<Self> {
        Self::start_refusing(process, None)
    }

    /// The same, and whenever the process issues the ioctl with the number `refused`, it is told
    /// that there is no such ioctl (`ENOTTY`), as an older kernel does.
    pub fn start_refusing(process: u32, refused: Option<u64>) -> io::Result<Self> {
        let process = i32::try_from(process).map_err(io::Error::other)?;
        let stop = Arc::new(AtomicBool::new(false));
        let (ready, began) = mpsc::channel();
        let flag = Arc::clone(&stop);
        // The thread that attaches is the one that must wait; when it ends, the kernel detaches.
        let tracer = thread::spawn(move || {
            let attached = attach(process);
            let failed = attached.is_err();
            let _ = ready.send(attached);
            if failed {
                return Ok(Counts::new());
            }
            count(process, refused, &flag)
        });
        began.recv().map_err(io::Error::other)??;
        Ok(Self {
            process,
            stop,
            tracer,
        })
    }

    /// Ends the counting.
    pub fn stop(self) -> io::Result<Counts> {
        self.stop.store(true, Ordering::SeqCst);
        // Nothing heeds this signal, but the tracer is told of it.
        let _ = kill(Pid::from_raw(self.process), Signal::SIGURG);
        self.tracer
            .join()
            .map_err(|_| io::Error::other("the tracer failed"))?
    }
}

fn ptrace(request: u32, thread: i32, address: usize, data: usize) -> io::Result<i64> {
    // SAFETY: the callers pass numbers, and for PTRACE_GET_SYSCALL_INFO a buffer with its size.
    let result = unsafe { libc::ptrace(request, thread, address, data) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn attach(process: i32) -> io::Result<()> {
    let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE;
    for entry in fs::read_dir(format!("/proc/{process}/task"))? {
        let name = entry?.file_name();
        let thread: i32 = name.to_string_lossy().parse().map_err(io::Error::other)?;
        let options = usize::try_from(options).map_err(io::Error::other)?;
        ptrace(libc::PTRACE_SEIZE, thread, 0, options)?;
        ptrace(libc::PTRACE_INTERRUPT, thread, 0, 0)?;
    }
    Ok(())
}

fn count(process: i32, refused: Option<u64>, stop: &AtomicBool) -> io::Result<Counts> {
    let mut counts = Counts::new();
    while !stop.load(Ordering::SeqCst) {
        let thread = match next_event() {
            // The end of the process is for its parent to learn.
            Ok(thread) if thread.ended && thread.id == process => break,
            Ok(thread) => thread.id,
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => break,
            Err(error) if error.raw_os_error() == Some(libc::EINTR) => continue,
            Err(error) => return Err(error),
        };
        let mut status = 0;
        // SAFETY: status is valid for writing.
        unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL) };
        if !libc::WIFSTOPPED(status) {
            continue;
        }
        let signal = libc::WSTOPSIG(status);
        let event = status >> 16;
        let mut deliver = 0;
        if signal == libc::SIGTRAP | 0x80 {
            if let Some(request) = ioctl_at_entry(thread)? {
                *counts.entry(request).or_default() += 1;
                if refused == Some(request) {
                    refuse(thread)?;
                }
            }
        } else if event == 0 {
            deliver = usize::try_from(signal).unwrap_or(0);
        }
        match ptrace(libc::PTRACE_SYSCALL, thread, 0, deliver) {
            // It was killed meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            Err(error) => return Err(error),
            Ok(_) => {}
        }
    }
    Ok(counts)
}

struct Thread {
    id: i32,
    ended: bool,
}

/// Waits until something has happened to a thread that this one traces, and leaves it to be asked
/// for.
fn next_event() -> io::Result<Thread> {
    let flags = libc::WEXITED | libc::WSTOPPED | libc::WNOWAIT | libc::__WALL | libc::__WNOTHREAD;
    // SAFETY: siginfo_t is plain data, for which zero is a valid value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: info is valid for writing.
    if unsafe { libc::waitid(libc::P_ALL, 0, &raw mut info, flags) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Thread {
        // SAFETY: waitid has filled in the fields of a SIGCHLD.
        id: unsafe { info.si_pid() },
        ended: matches!(
            info.si_code,
            libc::CLD_EXITED | libc::CLD_KILLED | libc::CLD_DUMPED
        ),
    })
}

/// The number of the ioctl that a thread is about to issue, if it is about to.
fn ioctl_at_entry(thread: i32) -> io::Result<Option<u64>> {
    const ENTRY: u64 = 1;
    const IOCTL: u64 = 16;
    // struct ptrace_syscall_info: kind, instruction and stack pointer, then number and six
    // arguments.
    let mut words = [0_u64; 16];
    let buffer = words.as_mut_ptr() as usize;
    match ptrace(
        libc::PTRACE_GET_SYSCALL_INFO,
        thread,
        size_of_val(&words),
        buffer,
    ) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
        Err(error) => return Err(error),
        Ok(_) => {}
    }
    let [kind, _, _, number, _, request, ..] = words;
    Ok((kind & 0xFF == ENTRY && number == IOCTL).then_some(request & 0xFFFF_FFFF))
}

/// Has the system call that a thread is about to issue fail.
fn refuse(thread: i32) -> io::Result<()> {
    // SAFETY: user_regs_struct is plain data, for which zero is a valid value.
    let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
    let buffer = (&raw mut registers).expose_provenance();
    ptrace(libc::PTRACE_GETREGS, thread, 0, buffer)?;
    // There is no such call, and the kernel leaves the result as it is.
    registers.orig_rax = u64::MAX;
    registers.rax = i64::from(-libc::ENOTTY).cast_unsigned();
    let buffer = (&raw const registers).expose_provenance();
    ptrace(libc::PTRACE_SETREGS, thread, 0, buffer)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_process_that_waits_is_let_go_again() {
        let mut child = Command::new("sleep").arg("1").spawn().unwrap();
        let count = IoctlCount::start(child.id()).unwrap();
        thread::sleep(Duration::from_millis(50));
        assert!(count.stop().unwrap().is_empty());
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn an_ioctl_that_is_refused_fails_as_one_that_does_not_exist() {
        const TCGETS: u64 = 0x5401;
        // The master of a pseudoterminal has settings, unless there is no such ioctl.
        for refused in [None, Some(TCGETS)] {
            let mut child = Command::new("sh")
                .args(["-c", "read line; exec stty -F /dev/ptmx"])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let count = IoctlCount::start_refusing(child.id(), refused).unwrap();
            child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
            thread::sleep(Duration::from_millis(500));
            assert!(count.stop().unwrap()[&TCGETS] >= 1);
            assert_eq!(child.wait().unwrap().success(), refused.is_none());
        }
    }

    #[test]
    fn ioctls_are_counted_by_number() {
        // The shell waits for a line, and stty then asks for the settings of what is no terminal.
        let mut child = Command::new("sh")
            .args(["-c", "read line; exec stty"])
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let count = IoctlCount::start(child.id()).unwrap();
        child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        thread::sleep(Duration::from_millis(500));
        const TCGETS: u64 = 0x5401;
        assert!(count.stop().unwrap()[&TCGETS] >= 1);
        child.wait().unwrap();
    }
}
