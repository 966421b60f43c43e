//! Shared virtual addressing: edu's extension (see nido's `edu`) works on this process's own
//! addresses, by PASID, address translation requests and page requests, as the kernel's uio_pci_sva
//! driver sets them up.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::edu::{
    self, CONTROL, DMA_COMMAND, DMA_COUNT, DMA_DESTINATION, DMA_SOURCE, DONE, FROM_DEVICE,
    INTERNAL, OUTCOME, START, TRANSLATE, WITH_PASID,
};
use super::{Guest, disk, vfio};
use crate::pci;
use crate::sys::memory::{Buffer, Window};

const DRIVER: &str = "uio_pci_sva";
const BAR_SIZE: usize = 1 << 20;

const FEATURES: u64 = 0x100;
const CACHED: u64 = 0x10c;
const INVALIDATIONS: u64 = 0x110;
const PAGE_REQUESTS: u64 = 0x114;
const PAGE_RESPONSES: u64 = 0x118;

const PAGE: usize = 4096;
/// ATS and PASID.
const WITHOUT_PAGE_REQUESTS: u32 = 3;
/// These and PRI.
const ALL: u32 = 7;
const PAGES: u32 = 1 << 29;

const DENIED: u32 = 2;
const PAGE_INVALID: u32 = 5;

const PATIENCE: Duration = Duration::from_secs(20);

struct Edu {
    registers: Window,
    pasid: u32,
    /// Keeps this process's address space bound.
    _bound: File,
}

impl Edu {
    fn open(address: &str) -> Result<Self> {
        let directory = PathBuf::from("/sys/bus/pci/devices").join(address);
        pci::bind(address, DRIVER)?;
        let name = vfio::single_entry(&directory.join("uio"))
            .with_context(|| format!("{DRIVER} made no uio device"))?;
        // The driver binds the address space of whoever opens it.
        let bound = vfio::open_node(&Path::new("/dev").join(name))?;
        let pasid = fs::read_to_string(directory.join("pasid")).context("pasid")?;
        let pasid = pasid.trim().parse().context("pasid")?;
        let registers = Window::map(bound.as_fd(), BAR_SIZE).context("registers")?;
        Ok(Self {
            registers,
            pasid,
            _bound: bound,
        })
    }

    fn count(&self, register: u64) -> u32 {
        self.registers.read_u32(register)
    }

    /// One command with this process's PASID; its outcome.
    fn copy(&self, manner: u32, memory: u64, to_memory: bool) -> Result<u32> {
        let registers = &self.registers;
        registers.write_u32(CONTROL, WITH_PASID | self.pasid | manner);
        let (source, destination, command) = if to_memory {
            (INTERNAL, memory, START | FROM_DEVICE)
        } else {
            (memory, INTERNAL, START)
        };
        registers.write_u64(DMA_SOURCE, source);
        registers.write_u64(DMA_DESTINATION, destination);
        registers.write_u64(DMA_COUNT, PAGE as u64);
        registers.write_u64(DMA_COMMAND, command);
        let deadline = Instant::now() + PATIENCE;
        while registers.read_u64(DMA_COMMAND) & START != 0 {
            ensure!(Instant::now() < deadline, "the command never ended");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(registers.read_u32(OUTCOME))
    }

    fn expect(
        &self,
        outcome: u32,
        manner: u32,
        memory: u64,
        to_memory: bool,
        what: &str,
    ) -> Result<()> {
        let found = self.copy(manner, memory, to_memory)?;
        ensure!(
            found == outcome,
            "{what}: outcome {found} instead of {outcome}"
        );
        Ok(())
    }
}

fn pattern(seed: u64) -> Vec<u8> {
    let mut data = vec![0; PAGE];
    disk::transform(seed, &mut data);
    data
}

/// Present pages, by untranslated requests with PASID, and by translated ones through the
/// device-TLB. Returns the page that was written.
fn present_pages(edu: &Edu) -> Result<Buffer> {
    let mut source = Buffer::new(PAGE)?;
    let target = Buffer::new(PAGE)?;
    source.write(0, &pattern(1));
    edu.expect(DONE, 0, source.address(), false, "untranslated read")?;
    edu.expect(DONE, 0, target.address(), true, "untranslated write")?;
    ensure!(
        target.read(0, PAGE) == pattern(1),
        "untranslated: wrong bytes"
    );

    // The same through the device-TLB.
    source.write(0, &pattern(2));
    edu.expect(DONE, TRANSLATE, source.address(), false, "translated read")?;
    edu.expect(DONE, TRANSLATE, target.address(), true, "translated write")?;
    ensure!(
        target.read(0, PAGE) == pattern(2),
        "translated: wrong bytes"
    );
    ensure!(
        edu.count(CACHED) >= 2,
        "the device-TLB holds {} entries",
        edu.count(CACHED)
    );
    Ok(target)
}

/// Plain requests with PASID, translated requests through a device-TLB, page requests for absent
/// pages and for forbidden ones, and invalidations that reach the device-TLB.
pub(super) fn check(_guest: &Guest, _argument: &str) -> Result<String> {
    let edu = Edu::open(&edu::find()?)?;
    ensure!(
        edu.count(FEATURES) == ALL,
        "edu has features {:#x} only",
        edu.count(FEATURES)
    );

    let target = present_pages(&edu)?;

    // Absent pages are denied, and come by page request.
    let mut absent = Buffer::absent(16 * PAGE)?;
    edu.expect(DENIED, TRANSLATE, absent.address(), true, "absent page")?;
    let before = (edu.count(PAGE_REQUESTS), edu.count(PAGE_RESPONSES));
    for page in 0..16 {
        let address = absent.address() + page * PAGE as u64;
        edu.expect(
            DONE,
            TRANSLATE | PAGES,
            address,
            true,
            "write to an absent page",
        )?;
    }
    for page in 0..16 {
        ensure!(
            absent.read(page * PAGE, PAGE) == pattern(2),
            "absent page {page}: wrong bytes"
        );
    }
    let (requests, responses) = (
        edu.count(PAGE_REQUESTS) - before.0,
        edu.count(PAGE_RESPONSES) - before.1,
    );
    ensure!(
        requests >= 16 && responses == requests,
        "{requests} page requests, {responses} responses"
    );

    // What the kernel takes away leaves the device-TLB before the call returns.
    let invalidations = edu.count(INVALIDATIONS);
    absent.discard().context("madvise")?;
    ensure!(
        edu.count(INVALIDATIONS) > invalidations,
        "no invalidation reached the device"
    );
    edu.expect(DENIED, TRANSLATE, absent.address(), true, "discarded page")?;
    edu.expect(
        DONE,
        TRANSLATE | PAGES,
        absent.address(),
        false,
        "read of a discarded page",
    )?;
    edu.expect(DONE, TRANSLATE, target.address(), true, "zeros")?;
    ensure!(
        target.read(0, PAGE) == vec![0; PAGE],
        "a discarded page is not read as zeros"
    );

    // Nothing is there, so no page can come.
    let gone = {
        let gone = Buffer::new(PAGE)?;
        gone.address()
    };
    edu.expect(PAGE_INVALID, TRANSLATE | PAGES, gone, true, "unmapped page")?;
    Ok(format!(
        "PASID {}, {requests} page requests, {} invalidations",
        edu.pasid,
        edu.count(INVALIDATIONS)
    ))
}

/// Pages that the device asks for until it is known to go on.
const UNDER_WAY: u32 = 16;

/// The device asks for one absent page after the other, each of which is taken away again, until
/// the guest ends, however that is.
pub(super) fn go_on(_guest: &Guest, _argument: &str) -> Result<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let outcome = ask_for_ever(&sender);
        let _ = sender.send(outcome);
    });
    for _ in 0..UNDER_WAY {
        receiver.recv_timeout(PATIENCE).context("no page comes")??;
    }
    Ok(format!("{UNDER_WAY} pages so far"))
}

fn ask_for_ever(sender: &mpsc::Sender<Result<()>>) -> Result<()> {
    let edu = Edu::open(&edu::find()?)?;
    ensure!(edu.count(FEATURES) == ALL, "edu asks for no pages");
    let mut absent = Buffer::absent(PAGE)?;
    loop {
        let page = absent.address();
        edu.expect(DONE, TRANSLATE | PAGES, page, true, "absent page")?;
        absent.discard().context("madvise")?;
        // When nobody counts any more, it goes on.
        let _ = sender.send(Ok(()));
    }
}

/// How often a page is taken away and another comes in its place.
const ROUNDS: u64 = 64;

/// A device without page requests reaches the pages of this process that are there, and none that
/// was taken away: another page at its address is found at once, and with none there the device is
/// denied.
pub(super) fn present(_guest: &Guest, _argument: &str) -> Result<String> {
    let edu = Edu::open(&edu::find()?)?;
    let features = edu.count(FEATURES);
    ensure!(
        features == WITHOUT_PAGE_REQUESTS,
        "edu has features {features:#x}"
    );
    present_pages(&edu)?;
    let source = {
        let mut source = Buffer::new(PAGE)?;
        source.write(0, &pattern(3));
        source
    };
    let mut moving = Buffer::absent(PAGE)?;
    let invalidations = edu.count(INVALIDATIONS);
    for round in 0..ROUNDS {
        let untouched = pattern(100 + round);
        moving.write(0, &untouched);
        edu.expect(DONE, TRANSLATE, source.address(), false, "read")?;
        ensure!(
            moving.read(0, PAGE) == untouched,
            "round {round}: the device has written too early"
        );
        edu.expect(DONE, TRANSLATE, moving.address(), true, "write")?;
        ensure!(
            moving.read(0, PAGE) == pattern(3),
            "round {round}: wrong bytes"
        );
        moving.discard().context("madvise")?;
        edu.expect(DENIED, TRANSLATE, moving.address(), true, "discarded page")?;
        ensure!(
            moving.read(0, PAGE) == vec![0; PAGE],
            "round {round}: the discarded page came back"
        );
    }
    let received = edu.count(INVALIDATIONS).wrapping_sub(invalidations);
    ensure!(
        u64::from(received) >= ROUNDS,
        "{received} invalidations for {ROUNDS} pages that were taken away"
    );
    let gone = Buffer::new(PAGE)?.address();
    edu.expect(DENIED, TRANSLATE, gone, true, "unmapped page")?;
    Ok(format!(
        "PASID {}, {ROUNDS} pages taken away, {received} invalidations",
        edu.pasid
    ))
}
