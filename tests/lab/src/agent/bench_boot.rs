//! Boot time: from the start of a VMM to the first line of the guest's init.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::Report;
use super::bench::{self, Candidate, MEMORY_MIB, words};
use super::log::{Log, read_lines};
use crate::protocol::GuestLine;
use crate::sys;

/// Longest boot.
const LIMIT: Duration = Duration::from_secs(60);
const COMMAND_LINE: &str =
    "console=ttyS0 quiet panic=-1 printk.devkmsg=on intel_iommu=on,sm_on lab.plan=>poweroff";

/// What is measured.
pub struct Bench {
    /// Directory with `nido`, `vmlinux`, `guest.cpio` and, if QEMU is measured too, `qemu/`.
    pub files: PathBuf,
    /// Directory for logs.
    pub output: PathBuf,
    /// Boots of each VMM.
    pub rounds: u32,
}

impl Bench {
    fn path(&self, name: &str) -> String {
        self.files.join(name).display().to_string()
    }

    fn nido(&self, name: &'static str, options: &str) -> Candidate {
        let mut arguments = words(&format!("--memory {MEMORY_MIB}M --cpus 1 {options}"));
        arguments.extend([
            "--kernel".into(),
            self.path("vmlinux"),
            "--initramfs".into(),
            self.path("guest.cpio"),
        ]);
        arguments.extend(["--cmdline".into(), COMMAND_LINE.into()]);
        Candidate {
            name,
            program: self.files.join("nido"),
            arguments,
        }
    }

    fn qemu(&self, name: &'static str, kernel: &str, options: &str) -> Candidate {
        let what = [
            self.path(kernel),
            self.path("guest.cpio"),
            COMMAND_LINE.to_owned(),
        ];
        Candidate::qemu(name, &self.files, options, what)
    }

    fn candidates(&self) -> Vec<Candidate> {
        let mut list = vec![
            self.nido("nido", "--device intel-iommu,x-flts=on"),
            self.nido("nido-no-unit", ""),
        ];
        if bench::has_qemu(&self.files) {
            let microvm = "-machine microvm,rtc=off,pit=off,pic=off,isa-serial=on";
            list.push(self.qemu("qemu-microvm", "vmlinux", microvm));
            list.push(self.qemu(
                "qemu-q35",
                "vmlinux",
                "-machine q35,kernel-irqchip=split -device intel-iommu,intremap=on",
            ));
        }
        list
    }

    /// Measures all candidates in turn, round by round.
    pub fn run(&self, report: &mut Report<'_>) -> Result<()> {
        fs::create_dir_all(&self.output)?;
        let candidates = self.candidates();
        bench::in_turn(&candidates, self.rounds, report, |candidate, name, _| {
            let (time, memory) = measure(candidate, &self.output.join(format!("{name}.log")))?;
            let time = time.as_nanos();
            Ok(vec![format!("boot_ns={time} memory_kib={memory}")])
        })?;
        bench::done(report);
        Ok(())
    }
}

/// One boot: the time, and the resident memory of the VMM beyond the guest's, in KiB.
fn measure(candidate: &Candidate, log: &Path) -> Result<(Duration, u64)> {
    let mut log = Log::create(log)?;
    let mut command = Command::new(&candidate.program);
    command
        .args(&candidate.arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    sys::die_with_parent(&mut command);
    let start = sys::monotonic_ns();
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start {}", candidate.program.display()))?;
    let (sender, lines) = mpsc::channel();
    read_lines(child.stdout.take().context("no stdout")?, sender.clone());
    read_lines(child.stderr.take().context("no stderr")?, sender);
    let waiting = Instant::now();
    let mut last = String::new();
    let result = loop {
        match lines.recv_timeout(Duration::from_millis(100)) {
            Ok(line) => {
                log.write(&line);
                if GuestLine::parse(&line.text) == Some(GuestLine::Begin(0)) {
                    let time = Duration::from_nanos(line.at.saturating_sub(start));
                    break resident_beyond_guest(child.id()).map(|memory| (time, memory));
                }
                last = line.text;
            }
            Err(RecvTimeoutError::Timeout) if waiting.elapsed() < LIMIT => {}
            Err(RecvTimeoutError::Timeout) => {
                break Err(anyhow::anyhow!("no init within {} s", LIMIT.as_secs()));
            }
            Err(RecvTimeoutError::Disconnected) => break Err(anyhow::anyhow!("it ended: {last}")),
        }
    };
    sys::kill(child.id());
    child.wait()?;
    result
}

/// Resident KiB of a process without the mappings of guest memory: those of a memfd, and one of the
/// guest's whole size.
fn resident_beyond_guest(process: u32) -> Result<u64> {
    let path = format!("/proc/{process}/smaps");
    let text = fs::read_to_string(&path).context(path)?;
    Ok(resident(&text, u64::from(MEMORY_MIB) * 1024))
}

fn resident(smaps: &str, guest_kib: u64) -> u64 {
    let mut total = 0;
    let mut guest = false;
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        let value = || {
            line.split_whitespace()
                .nth(1)
                .and_then(|value| value.parse::<u64>().ok())
                .unwrap_or(0)
        };
        match first {
            "Size:" => guest |= value() == guest_kib,
            "Rss:" if !guest => total += value(),
            _ if first.contains('-') && !first.ends_with(':') => guest = line.contains("/memfd:"),
            _ => {}
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_memory_does_not_count() {
        let smaps = "00400000-00500000 r-xp 00000000 00:02 7 /nido\nSize: 1024 kB\nRss: 700 kB\n\
            7f0000000000-7f0020000000 rw-s 00000000 00:01 9 /memfd:guest (deleted)\nSize: 100 kB\nRss: 90 kB\n\
            7f1000000000-7f1020000000 rw-p 00000000 00:00 0\nSize: 524288 kB\nRss: 90000 kB\n\
            7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0 [stack]\nSize: 132 kB\nRss: 20 kB\n";
        assert_eq!(resident(smaps, 524_288), 720);
    }
}
