//! Assigned edu devices, driven by this program through the guest's own VFIO and iommufd: domains,
//! and what a device must not reach. The guest is not told of what level 1's unit blocks; the agent
//! finds that in level 1's log.

use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Guest;
use super::agent::Agent;
use super::edu::{self, Edu, FROM_DEVICE, INTERNAL, INTERNAL_SIZE, IOVA, fill};
use super::tally;
use super::vfio::{self, Access, Space};
use crate::sys::memory::Buffer;

pub(super) const PAGE: u64 = 4096;
/// After some faults level 1's kernel reports no more of them for 5 s.
const RATE_LIMIT: Duration = Duration::from_secs(6);

/// A page with a pattern, mapped at `iova`.
pub(super) fn page(space: &Space, iova: u64, seed: u64, access: Access) -> Result<Buffer> {
    let mut buffer = Buffer::new(4096)?;
    fill(&mut buffer, seed);
    space.map(&buffer, iova, access)?;
    Ok(buffer)
}

pub(super) fn ensure_equal(found: &[u8], expected: &[u8], what: &str) -> Result<()> {
    let differs = found.iter().zip(expected).position(|(a, b)| a != b);
    match differs {
        None => Ok(()),
        Some(place) => anyhow::bail!("{what}: byte {place:#x} is another"),
    }
}

/// Takes the page at `from` into the device and writes it to `to`.
pub(super) fn carry(edu: &Edu, from: u64, to: u64) -> Result<()> {
    edu.transfer(from, INTERNAL, INTERNAL_SIZE, 0)?;
    edu.transfer(INTERNAL, to, INTERNAL_SIZE, FROM_DEVICE)
}

/// Two devices in one domain, then each in one of its own with other pages at the same addresses,
/// then together again.
pub(super) fn domains(_guest: &Guest, _argument: &str) -> Result<String> {
    let addresses = edu::find_all()?;
    let [first, second] = addresses.as_slice() else {
        anyhow::bail!("there are {} edu devices, not two", addresses.len());
    };
    let shared = Rc::new(Space::new()?);
    let one = Edu::open_in(first, Rc::clone(&shared)).context("first")?;
    let mut two = Edu::open_in(second, Rc::clone(&shared)).context("second")?;
    let pages = [
        page(&shared, IOVA, 21, Access::ReadWrite)?,
        page(&shared, IOVA + PAGE, 22, Access::ReadWrite)?,
        page(&shared, IOVA + 2 * PAGE, 23, Access::ReadWrite)?,
    ];
    let [source, middle, target] = &pages;
    carry(&one, IOVA, IOVA + PAGE).context("first device, one domain")?;
    carry(&two, IOVA + PAGE, IOVA + 2 * PAGE).context("second device, one domain")?;
    let wanted = source.read(0, INTERNAL_SIZE);
    ensure_equal(&middle.read(0, INTERNAL_SIZE), &wanted, "first device")?;
    ensure_equal(&target.read(0, INTERNAL_SIZE), &wanted, "second device")?;

    let own = Rc::new(shared.sibling()?);
    let from = page(&own, IOVA, 24, Access::ReadWrite)?;
    let to = page(&own, IOVA + PAGE, 25, Access::ReadWrite)?;
    let untouched = target.read(0, INTERNAL_SIZE);
    two.function.attach(Rc::clone(&own)).context("own domain")?;
    carry(&two, IOVA, IOVA + PAGE).context("second device, own domain")?;
    ensure_equal(
        &to.read(0, INTERNAL_SIZE),
        &from.read(0, INTERNAL_SIZE),
        "own domain",
    )?;
    carry(&one, IOVA, IOVA + PAGE).context("first device, its domain")?;
    ensure_equal(&middle.read(0, INTERNAL_SIZE), &wanted, "its domain")?;
    ensure_equal(
        &target.read(0, INTERNAL_SIZE),
        &untouched,
        "the other's page",
    )?;

    two.function.attach(Rc::clone(&shared)).context("back")?;
    carry(&two, IOVA, IOVA + 2 * PAGE).context("second device, back")?;
    ensure_equal(&target.read(0, INTERNAL_SIZE), &wanted, "back")?;
    Ok(format!("{first} and {second} together, apart, together"))
}

/// DMA of each device to where its tables map nothing, and to where they do not let it write,
/// changes no byte and brings none: the addresses are those of memory that the test watches.
pub(super) fn isolation(_guest: &Guest, _argument: &str) -> Result<String> {
    let addresses = edu::find_all()?;
    for (index, address) in addresses.iter().enumerate() {
        if index > 0 {
            std::thread::sleep(RATE_LIMIT);
        }
        isolate(address).with_context(|| address.clone())?;
    }
    Ok(addresses.join(" "))
}

fn isolate(address: &str) -> Result<()> {
    let space = Rc::new(Space::new()?);
    let edu = Edu::open_in(address, Rc::clone(&space))?;
    let mut mapped = page(&space, IOVA, 31, Access::ReadWrite)?;
    let readable = page(&space, IOVA + PAGE, 32, Access::Read)?;
    let mut watched = Buffer::new(32 << 20)?;
    fill(&mut watched, 33);
    let all = watched.read(0, watched.len());
    let read_only = readable.read(0, 4096);

    // In the guest's own physical addresses, where the device would reach if nothing were
    // translated.
    let target = (0..watched.len() / 4096)
        .filter_map(|page| vfio::physical(watched.address() + page as u64 * PAGE).ok())
        .find(|physical| physical + PAGE <= 1 << 28 && physical & !0xFFFF != IOVA)
        .context("no watched page below 2^28")?;
    edu.transfer(IOVA, INTERNAL, INTERNAL_SIZE, 0)?;
    for iova in [target, target + 8, IOVA - PAGE, IOVA + PAGE] {
        edu.start(INTERNAL, iova, 64, FROM_DEVICE)?;
        edu.wait_idle()?;
    }
    edu.start(target, INTERNAL, 4088, 0)?;
    edu.wait_idle()?;
    edu.transfer(INTERNAL, IOVA, INTERNAL_SIZE, FROM_DEVICE)?;
    let brought = mapped.read(0, INTERNAL_SIZE);
    ensure!(
        !all.chunks(4096).any(|page| page[..64] == brought[..64]),
        "the device has read the watched memory"
    );
    ensure_equal(&watched.read(0, all.len()), &all, "watched memory")?;
    ensure_equal(&readable.read(0, 4096), &read_only, "read-only page")?;
    // The device works again afterwards.
    fill(&mut mapped, 34);
    let sent = mapped.read(0, INTERNAL_SIZE);
    edu.transfer(IOVA, INTERNAL, INTERNAL_SIZE, 0)?;
    fill(&mut mapped, 35);
    edu.transfer(INTERNAL, IOVA, INTERNAL_SIZE, FROM_DEVICE)?;
    ensure_equal(&mapped.read(0, INTERNAL_SIZE), &sent, "after the faults")
}

/// Again and again: map a page, DMA to it, unmap it while the next DMA is on its way; from the
/// unmap on it keeps its bytes.
pub(super) fn unmap(_guest: &Guest, argument: &str) -> Result<String> {
    let rounds: u64 = argument.parse().context("edu-unmap=ROUNDS")?;
    let address = edu::find()?;
    let space = Rc::new(Space::new()?);
    let edu = Edu::open_in(&address, Rc::clone(&space))?;
    let source = page(&space, IOVA, 41, Access::ReadWrite)?;
    edu.transfer(IOVA, INTERNAL, INTERNAL_SIZE, 0)?;
    let sent = source.read(0, INTERNAL_SIZE);
    for round in 0..rounds {
        let mut target = page(&space, IOVA + PAGE, 100 + round, Access::ReadWrite)?;
        edu.transfer(INTERNAL, IOVA + PAGE, INTERNAL_SIZE, FROM_DEVICE)?;
        ensure_equal(&target.read(0, INTERNAL_SIZE), &sent, "while it is mapped")?;
        edu.start(INTERNAL, IOVA + PAGE, INTERNAL_SIZE, FROM_DEVICE)?;
        space.unmap(IOVA + PAGE, PAGE)?;
        fill(&mut target, 200 + round);
        let kept = target.read(0, 4096);
        edu.wait_idle()?;
        ensure_equal(&target.read(0, 4096), &kept, "after the unmap")
            .with_context(|| format!("round {round}"))?;
    }
    Ok(format!("{address}: {rounds} rounds"))
}

/// Rounds after which the device is given something else to write.
const RELOAD: u64 = 16;
/// What is mapped and unmapped as a whole, and where in it a transfer begins: in both pages it
/// changes a part.
const REMAPPED: usize = 8192;
const MIDDLE: u64 = 2048;

/// Again and again: two buffers in turn at the same addresses, where the device writes what it has,
/// and sometimes reads what it writes from then on. Only the buffer that is mapped may change. If
/// the argument ends in `/stay`, one is mapped in the end, until the guest ends: many levels below
/// this one it takes many seconds to open the device once more.
pub(super) fn remap(_guest: &Guest, argument: &str) -> Result<String> {
    let (rounds, stays) = match argument.strip_suffix("/stay") {
        Some(rounds) => (rounds, true),
        None => (argument, false),
    };
    let rounds: u64 = rounds.parse().context("edu-remap=ROUNDS")?;
    let address = edu::find()?;
    let space = Rc::new(Space::new()?);
    let edu = Edu::open_in(&address, Rc::clone(&space))?;
    let (mut mapped, mut other) = (Buffer::new(REMAPPED)?, Buffer::new(REMAPPED)?);
    let mut kept = other.read(0, REMAPPED);
    let mut held = Vec::new();
    let inside = usize::try_from(MIDDLE)?..usize::try_from(MIDDLE)? + INTERNAL_SIZE;
    let mut times = Times::default();
    let started = Instant::now();
    for round in 0..rounds {
        fill(&mut mapped, round);
        times
            .of_map
            .add(|| space.map(&mapped, IOVA, Access::ReadWrite))?;
        if round.is_multiple_of(RELOAD) {
            edu.transfer_quietly(IOVA + MIDDLE, INTERNAL, INTERNAL_SIZE, 0)?;
            held = mapped.read(inside.start, INTERNAL_SIZE);
            fill(&mut mapped, !round);
        }
        let mut expected = mapped.read(0, REMAPPED);
        times.of_dma.add(|| {
            if round.is_multiple_of(RELOAD) {
                edu.transfer_quietly(INTERNAL, IOVA + MIDDLE, INTERNAL_SIZE, FROM_DEVICE)
            } else {
                edu.transfer_again(FROM_DEVICE)
            }
        })?;
        times.of_unmap.add(|| space.unmap(IOVA, REMAPPED as u64))?;
        expected
            .get_mut(inside.clone())
            .context("beyond the buffer")?
            .copy_from_slice(&held);
        let in_round = || format!("round {round}");
        ensure_equal(&mapped.read(0, REMAPPED), &expected, "the mapped buffer")
            .with_context(in_round)?;
        ensure_equal(&other.read(0, REMAPPED), &kept, "the other buffer").with_context(in_round)?;
        std::mem::swap(&mut mapped, &mut other);
        kept = expected;
    }
    let detail = format!(
        "{address}: {rounds} rounds in {:.1} s, of which {times}",
        started.elapsed().as_secs_f64()
    );
    if stays {
        space.map(&mapped, IOVA, Access::ReadWrite)?;
        std::mem::forget((edu, mapped));
    }
    Ok(detail)
}

/// Rounds after which the pages of a steady load are others.
const SAME: u32 = 32;

/// Until that is `over`: the device takes a page and writes it to another one, which holds that then, and what it had
/// beyond. It is opened once, so that it is at work most of the time. Every other transfer is told of by an
/// interrupt; now and then the pages are mapped anew. Returns how often.
pub(super) fn steady(over: &AtomicBool) -> Result<u32> {
    let space = Rc::new(Space::new()?);
    let edu = Edu::open_in(&edu::find()?, Rc::clone(&space))?;
    let mut rounds = 0;
    while rounds == 0 || !over.load(Ordering::Acquire) {
        let seed = u64::from(rounds);
        let mut source = page(&space, IOVA, seed, Access::ReadWrite)?;
        let mut target = page(&space, IOVA + PAGE, !seed, Access::ReadWrite)?;
        for _ in 0..SAME {
            rounds += 1;
            fill(&mut source, u64::from(rounds));
            fill(&mut target, !u64::from(rounds));
            let mut expected = target.read(0, target.len());
            let sent = source.read(0, INTERNAL_SIZE);
            if let Some(begin) = expected.get_mut(..INTERNAL_SIZE) {
                begin.copy_from_slice(&sent);
            }
            let step = |from, to, command| match rounds % 2 {
                0 => edu.transfer(from, to, INTERNAL_SIZE, command),
                _ => edu.transfer_quietly(from, to, INTERNAL_SIZE, command),
            };
            let in_round = || format!("round {rounds}");
            step(IOVA, INTERNAL, 0).with_context(in_round)?;
            step(INTERNAL, IOVA + PAGE, FROM_DEVICE).with_context(in_round)?;
            ensure_equal(
                &target.read(0, target.len()),
                &expected,
                "the page that it has written",
            )
            .with_context(in_round)?;
        }
        space.unmap(IOVA, 2 * PAGE)?;
    }
    Ok(rounds)
}

/// How long something took in all.
#[derive(Default)]
struct Span(Duration);

impl Span {
    fn add<T>(&mut self, run: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let result = run();
        self.0 += started.elapsed();
        result
    }
}

/// Where the time of remapping goes.
#[derive(Default)]
struct Times {
    of_map: Span,
    of_dma: Span,
    of_unmap: Span,
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = |span: &Span| span.0.as_secs_f64();
        write!(
            f,
            "map {:.1} s, DMA {:.1} s, unmap {:.1} s",
            seconds(&self.of_map),
            seconds(&self.of_dma),
            seconds(&self.of_unmap)
        )
    }
}

/// As many maps of a page as the argument says, each at an address of its own, then as many unmaps:
/// what each costs below.
pub(super) fn count_maps(_guest: &Guest, argument: &str) -> Result<String> {
    let times: u64 = argument.parse().context("map-count=TIMES")?;
    let space = Rc::new(Space::new()?);
    let _edu = Edu::open_in(&edu::find()?, Rc::clone(&space))?;
    let buffer = Buffer::new(4096)?;
    let addresses = || (0..times).map(|index| IOVA + index * PAGE);
    let mut agent = Agent::open()?;
    tally::count_beside_idle(&mut agent, "maps", || {
        for address in addresses() {
            space.map(&buffer, address, Access::ReadWrite)?;
        }
        Ok(times)
    })?;
    tally::count_beside_idle(&mut agent, "unmaps", || {
        for address in addresses() {
            space.unmap(address, PAGE)?;
        }
        Ok(times)
    })?;
    Ok(format!("{times} maps and unmaps"))
}
