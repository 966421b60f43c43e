//! The edu device (docs/specs/edu.rst of QEMU): DMA both ways, MSI, INTx, and DMA to where nothing
//! is mapped.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Guest;
use super::interrupts::Interrupt;
use super::vfio::{self, Access, Bar, Function, Space};
use crate::sys::memory::{self, Buffer};
use crate::{kernel_log, pci};

const VENDOR: u16 = 0x1234;
const DEVICE: u16 = 0x11E8;

// Registers in BAR 0.
const IDENTIFICATION: u64 = 0x00;
const LIVENESS: u64 = 0x04;
const FACTORIAL: u64 = 0x08;
const STATUS: u64 = 0x20;
const INTERRUPT_STATUS: u64 = 0x24;
pub(super) const INTERRUPT_RAISE: u64 = 0x60;
pub(super) const INTERRUPT_ACKNOWLEDGE: u64 = 0x64;
pub(super) const DMA_SOURCE: u64 = 0x80;
pub(super) const DMA_DESTINATION: u64 = 0x88;
pub(super) const DMA_COUNT: u64 = 0x90;
pub(super) const DMA_COMMAND: u64 = 0x98;

// Registers of nido's extension, and bits of the control register.
pub(super) const CONTROL: u64 = 0x104;
pub(super) const OUTCOME: u64 = 0x108;
pub(super) const WITH_PASID: u32 = 1 << 31;
pub(super) const TRANSLATE: u32 = 1 << 30;
/// Outcome: the transfer has reached what it was to reach.
pub(super) const DONE: u32 = 0;

const COMPUTING: u32 = 1;
pub(super) const START: u64 = 1;
pub(super) const FROM_DEVICE: u64 = 2;
const INTERRUPT_WHEN_DONE: u64 = 4;
const DMA_DONE: u32 = 0x100;
/// The device's own memory, as DMA addresses it.
pub(super) const INTERNAL: u64 = 0x4_0000;
/// Bytes of a transfer. The device has 4096, but QEMU before 8.0 refuses a transfer that reaches
/// its last byte.
pub(super) const INTERNAL_SIZE: usize = 4088;
/// An I/O virtual address below 2^28, which is all that the device can reach, and where nothing
/// else is mapped.
pub(super) const IOVA: u64 = 0x0123_0000;
const PATIENCE: Duration = Duration::from_secs(10);

/// How the device interrupts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wire {
    Message,
    Pin,
    /// Nobody is told.
    Nowhere,
}

/// All of them.
pub(super) fn find_all() -> Result<Vec<String>> {
    pci::find_all(VENDOR, DEVICE)
}

/// The function's address.
pub(super) fn find() -> Result<String> {
    pci::find(VENDOR, DEVICE)
}

pub(super) struct Edu {
    pub(super) function: Function,
    registers: Bar,
    interrupt: Option<OwnedFd>,
    wire: Wire,
}

impl Edu {
    fn open() -> Result<Self> {
        Self::open_with(Wire::Message)
    }

    fn open_with(wire: Wire) -> Result<Self> {
        Self::of(Function::open(&find()?)?, wire)
    }

    /// The device at `address`, with the addresses of `space`.
    pub(super) fn open_in(address: &str, space: Rc<Space>) -> Result<Self> {
        Self::of(Function::open_in(address, Some(space))?, Wire::Message)
    }

    /// The same without an interrupt: transfers can only be polled.
    pub(super) fn open_polled(address: &str, space: Rc<Space>) -> Result<Self> {
        Self::of(Function::open_in(address, Some(space))?, Wire::Nowhere)
    }

    fn of(function: Function, wire: Wire) -> Result<Self> {
        let registers = function.bar(0)?;
        let interrupt = match wire {
            Wire::Message => Some(function.msi()?),
            Wire::Pin => Some(function.intx()?),
            Wire::Nowhere => None,
        };
        let edu = Self {
            function,
            registers,
            interrupt,
            wire,
        };
        let id = edu.registers.read_u32(IDENTIFICATION)?;
        ensure!(id & 0xFFFF == 0x00ED, "identification is {id:#x}");
        Ok(edu)
    }

    pub(super) fn start(
        &self,
        source: u64,
        destination: u64,
        count: usize,
        command: u64,
    ) -> Result<()> {
        self.registers.write_u64(DMA_SOURCE, source)?;
        self.registers.write_u64(DMA_DESTINATION, destination)?;
        self.registers.write_u64(DMA_COUNT, count as u64)?;
        self.registers.write_u64(DMA_COMMAND, START | command)
    }

    /// One transfer, completed by an interrupt.
    pub(super) fn transfer(
        &self,
        source: u64,
        destination: u64,
        count: usize,
        command: u64,
    ) -> Result<()> {
        self.start(source, destination, count, command | INTERRUPT_WHEN_DONE)?;
        self.wait_interrupt(DMA_DONE)
            .with_context(|| format!("DMA {source:#x} -> {destination:#x}"))
    }

    /// One transfer, of which the device is asked whether it is over: many levels below this one an
    /// interrupt costs more.
    pub(super) fn transfer_quietly(
        &self,
        source: u64,
        destination: u64,
        count: usize,
        command: u64,
    ) -> Result<()> {
        self.start(source, destination, count, command)?;
        self.poll_idle()
    }

    /// The transfer before this one once more.
    pub(super) fn transfer_again(&self, command: u64) -> Result<()> {
        self.registers.write_u64(DMA_COMMAND, START | command)?;
        self.poll_idle()
    }

    /// Has the transfers that start from now on travel in this manner (see nido's `edu`).
    pub(super) fn set_manner(&self, control: u32) -> Result<()> {
        self.registers.write_u32(CONTROL, control)
    }

    /// What came of the last transfer.
    pub(super) fn outcome(&self) -> Result<u32> {
        self.registers.read_u32(OUTCOME)
    }

    fn poll_idle(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.registers.read_u64(DMA_COMMAND)? & START != 0 {
            ensure!(Instant::now() < deadline, "the transfer never ended");
            std::thread::yield_now();
        }
        Ok(())
    }

    fn wait_interrupt(&self, expected: u32) -> Result<()> {
        let milliseconds = i32::try_from(PATIENCE.as_millis())?;
        let interrupt = self.interrupt.as_ref().context("it was opened without")?;
        ensure!(
            memory::wait_readable(interrupt.as_fd(), milliseconds)?,
            "no interrupt"
        );
        let mut count = [0; 8];
        File::from(interrupt.try_clone()?).read_exact(&mut count)?;
        let status = self.registers.read_u32(INTERRUPT_STATUS)?;
        self.registers.write_u32(INTERRUPT_ACKNOWLEDGE, status)?;
        if self.wire == Wire::Pin {
            self.function.unmask_intx()?;
        }
        ensure!(
            status & expected != 0,
            "interrupt status is {status:#x}, not {expected:#x}"
        );
        Ok(())
    }

    pub(super) fn wait_idle(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.registers.read_u64(DMA_COMMAND)? & START != 0 {
            ensure!(Instant::now() < deadline, "the transfer never ended");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

pub(super) fn fill(buffer: &mut Buffer, seed: u64) {
    let mut data = vec![0; buffer.len()];
    super::disk::transform(seed, &mut data);
    buffer.write(0, &data);
}

/// Memory that edu reaches: its IOVA where DMA is translated, else a buffer that lies low enough.
fn reachable(function: &Function, length: usize) -> Result<(Buffer, u64)> {
    if function.translated() {
        let buffer = Buffer::new(length)?;
        function.space()?.map(&buffer, IOVA, Access::ReadWrite)?;
        return Ok((buffer, IOVA));
    }
    // Without a unit the address is physical; the parts of a buffer need not be adjacent, so it is
    // one page.
    ensure!(length == 4096, "{length} bytes without a unit");
    let mut rejected = Vec::new();
    for _ in 0..16384 {
        let buffer = Buffer::new(length)?;
        let address = vfio::physical(buffer.address())?;
        if address + length as u64 <= 1 << 28 {
            return Ok((buffer, address));
        }
        rejected.push(buffer);
    }
    Err(anyhow::anyhow!("no page below 2^28"))
}

/// Registers answer, DMA carries bytes to the device and back, and MSI tells of both.
pub(super) fn dma_and_msi(_guest: &Guest, _argument: &str) -> Result<String> {
    let edu = Edu::open()?;
    let registers = &edu.registers;
    registers.write_u32(LIVENESS, 0x1234_5678)?;
    let inverted = registers.read_u32(LIVENESS)?;
    ensure!(inverted == !0x1234_5678, "liveness answers {inverted:#x}");
    registers.write_u32(FACTORIAL, 10)?;
    let deadline = Instant::now() + PATIENCE;
    while registers.read_u32(STATUS)? & COMPUTING != 0 {
        ensure!(Instant::now() < deadline, "the factorial is never computed");
    }
    let factorial = registers.read_u32(FACTORIAL)?;
    ensure!(factorial == 3_628_800, "10! is said to be {factorial}");
    registers.write_u32(INTERRUPT_RAISE, 0x40)?;
    edu.wait_interrupt(0x40).context("raised interrupt")?;

    let (mut buffer, address) = reachable(&edu.function, 4096)?;
    let rounds = 16;
    for round in 0..rounds {
        fill(&mut buffer, round);
        let sent = buffer.read(0, INTERNAL_SIZE);
        edu.transfer(address, INTERNAL, INTERNAL_SIZE, 0)
            .context("to the device")?;
        fill(&mut buffer, round + 1000);
        edu.transfer(INTERNAL, address, INTERNAL_SIZE, FROM_DEVICE)
            .context("from the device")?;
        ensure!(
            buffer.read(0, INTERNAL_SIZE) == sent,
            "round {round}: what came back is not what was sent"
        );
    }
    let part_before = buffer.read(0, 4096);
    edu.transfer(INTERNAL, address + 1003, 77, FROM_DEVICE)?;
    let part = buffer.read(0, 4096);
    ensure!(
        part[1003..1080] == part_before[..77],
        "an odd part came back changed"
    );
    ensure!(
        part[..1003] == part_before[..1003] && part[1080..] == part_before[1080..],
        "DMA wrote beside its range"
    );
    if edu.function.translated() {
        edu.function.space()?.unmap(IOVA, 4096)?;
    }
    let kind = if edu.function.translated() {
        "iommufd"
    } else {
        "no unit"
    };
    Ok(format!(
        "{} by {kind}, {rounds} rounds of {INTERNAL_SIZE} bytes both ways, MSI after each",
        edu.function.address
    ))
}

/// The most interrupts after which one that was moved comes where it is led to.
const MOVING: u32 = 100;

/// The same device by its INTx pin: each processor in turn takes the level-triggered interrupt,
/// which the IOAPIC sends again only after it was told of the end of the one before. The argument
/// `remapped` or `plain` says whose interrupt it is.
pub(super) fn intx(_guest: &Guest, argument: &str) -> Result<String> {
    let edu = Edu::open_with(Wire::Pin)?;
    let (mut buffer, address) = reachable(&edu.function, 4096)?;
    let rounds = 8;
    let mut kind = String::new();
    let processors = Interrupt::find("vfio-intx(")?.counts.len();
    for processor in 0..processors {
        Interrupt::find("vfio-intx(")?.route_to(processor)?;
        // A move takes effect at the end of an interrupt, unless the next one is there by then: this program may be
        // faster than the processor that is at it.
        let mut before = Interrupt::find("vfio-intx(")?;
        for moving in 0.. {
            edu.registers.write_u32(INTERRUPT_RAISE, 0x10)?;
            edu.wait_interrupt(0x10).context("after the move")?;
            let last = std::mem::replace(&mut before, Interrupt::find("vfio-intx(")?);
            let count = |of: &Interrupt| of.counts.get(processor).copied();
            if count(&before) > count(&last) {
                break;
            }
            ensure!(
                moving < MOVING,
                "the interrupt is not led to processor {processor}"
            );
        }
        for round in 0..rounds {
            edu.registers.write_u32(INTERRUPT_RAISE, 0x40)?;
            edu.wait_interrupt(0x40)
                .with_context(|| format!("processor {processor}, interrupt {round}"))?;
        }
        fill(&mut buffer, 40 + processor as u64);
        edu.transfer(address, INTERNAL, INTERNAL_SIZE, 0)?;
        edu.transfer(INTERNAL, address, INTERNAL_SIZE, FROM_DEVICE)?;
        let after = Interrupt::find("vfio-intx(")?;
        let remapped = after.kind.starts_with("IR-IO-APIC ");
        ensure!(
            after.kind.contains("-fasteoi ") && remapped == (argument == "remapped"),
            "the interrupt is '{}'",
            after.kind
        );
        for (taker, (after, before)) in after.counts.iter().zip(&before.counts).enumerate() {
            let expected = if taker == processor { rounds + 2 } else { 0 };
            ensure!(
                after - before == expected,
                "with the interrupt led to processor {processor}, {taker} took {} of {}",
                after - before,
                rounds + 2
            );
        }
        kind = after.kind;
    }
    Ok(format!(
        "{kind}: {} interrupts on each of {processors} processors",
        rounds + 2
    ))
}

/// One transfer both ways, after which the device and its mapping at [`IOVA`] stay as they are
/// until the guest ends.
pub(super) fn stay_mapped(_guest: &Guest, _argument: &str) -> Result<String> {
    let edu = Edu::open()?;
    let (mut buffer, address) = reachable(&edu.function, 4096)?;
    fill(&mut buffer, 3);
    edu.transfer(address, INTERNAL, INTERNAL_SIZE, 0)?;
    edu.transfer(INTERNAL, address, INTERNAL_SIZE, FROM_DEVICE)?;
    let detail = format!("{} at {address:#x}", edu.function.address);
    // What they own is given back when this process ends, which is when the guest does.
    std::mem::forget((edu, buffer));
    Ok(detail)
}

/// DMA to an address without a mapping is reported with the right source, address and reason, and
/// changes no byte: the address is the physical address of memory that the test watches. The
/// argument is the reason as the kernel prints it, or two, for writes and for reads: `0x05/0x06`.
pub(super) fn fault(_guest: &Guest, argument: &str) -> Result<String> {
    let (write_reason, read_reason) = argument.split_once('/').unwrap_or((argument, argument));
    let edu = Edu::open()?;
    ensure!(edu.function.translated(), "there is no remapping unit");
    // Something must be mapped, so that there are tables; but not at the address of the fault.
    let (mut mapped, address) = reachable(&edu.function, 4096)?;
    fill(&mut mapped, 5);
    edu.transfer(address, INTERNAL, INTERNAL_SIZE, 0)?;

    let mut watched = Buffer::new(32 << 20)?;
    fill(&mut watched, 6);
    let mut target = None;
    for page in 0..watched.len() / 4096 {
        let physical = vfio::physical(watched.address() + page as u64 * 4096)?;
        if physical + 4096 <= 1 << 28 && physical != IOVA {
            target = Some((page, physical));
            break;
        }
    }
    let (page, target) = target.context("no watched page below 2^28")?;
    let mut reports = Vec::new();
    for (offset, count, direction) in [(0, 64, FROM_DEVICE), (0x10, 64, FROM_DEVICE), (0x40, 64, 0)]
    {
        let iova = target + offset;
        let seen = faults()?.len();
        match direction {
            FROM_DEVICE => edu.start(INTERNAL, iova, count, FROM_DEVICE),
            _ => edu.start(iova, INTERNAL, count, 0),
        }?;
        edu.wait_idle()?;
        let write = direction == FROM_DEVICE;
        let reason = if write { write_reason } else { read_reason };
        reports.push(wait_report(
            seen,
            &edu.function.address,
            iova,
            write,
            reason,
        )?);
    }
    let mut expected = vec![0; watched.len()];
    super::disk::transform(6, &mut expected);
    let found = watched.read(0, watched.len());
    if let Some(place) = found
        .iter()
        .zip(&expected)
        .position(|(found, expected)| found != expected)
    {
        anyhow::bail!(
            "byte {place:#x} of the watched memory changed (the fault was in page {page})"
        );
    }
    // The device works again afterwards.
    fill(&mut mapped, 7);
    let sent = mapped.read(0, INTERNAL_SIZE);
    edu.transfer(address, INTERNAL, INTERNAL_SIZE, 0)
        .context("after the fault")?;
    fill(&mut mapped, 8);
    edu.transfer(INTERNAL, address, INTERNAL_SIZE, FROM_DEVICE)
        .context("after the fault")?;
    ensure!(
        mapped.read(0, INTERNAL_SIZE) == sent,
        "after the fault DMA carries wrong bytes"
    );
    Ok(format!(
        "{} reports, 32 MiB unchanged: {}",
        reports.len(),
        reports.first().map_or("", String::as_str)
    ))
}

fn faults() -> Result<Vec<String>> {
    Ok(kernel_log::read()?
        .into_iter()
        .filter(|line| line.contains("Request device ["))
        .collect())
}

fn wait_report(
    seen: usize,
    function: &str,
    iova: u64,
    write: bool,
    reason: &str,
) -> Result<String> {
    let deadline = Instant::now() + Duration::from_secs(5);
    let line = loop {
        if let Some(line) = faults()?.get(seen..).and_then(|new| new.first().cloned()) {
            break line;
        }
        ensure!(
            Instant::now() < deadline,
            "no fault report for DMA to {iova:#x}"
        );
        std::thread::sleep(Duration::from_millis(20));
    };
    let direction = if write { "DMA Write" } else { "DMA Read" };
    let page = iova & !0xFFF;
    ensure!(
        line.contains(&format!("[{direction} NO_PASID]")),
        "not a '{direction} NO_PASID': {line}"
    );
    ensure!(
        line.contains(&format!("Request device [{function}]")),
        "not from {function}: {line}"
    );
    ensure!(
        line.contains(&format!("fault addr {page:#x} ")),
        "not at {page:#x}: {line}"
    );
    ensure!(
        line.contains(&format!("[fault reason {reason}]")),
        "not for reason {reason}: {line}"
    );
    Ok(line)
}
