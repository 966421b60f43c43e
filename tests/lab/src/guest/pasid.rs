//! PASIDs of edu with page tables of this program's own iommufd, beside those of its requests
//! without PASID: the same addresses are other pages for each. What the unit blocks is found in the
//! log of the level that has it.

use std::rc::Rc;

use anyhow::{Context, Result, ensure};

use super::Guest;
use super::assigned_edu::{PAGE, ensure_equal, page};
use super::edu::{
    self, DONE, Edu, FROM_DEVICE, INTERNAL, INTERNAL_SIZE, IOVA, TRANSLATE, WITH_PASID, fill,
};
use super::vfio::{Access, Space, Table};
use crate::sys::memory::Buffer;

/// Neighbours in no table of a PASID directory.
const PASIDS: [u32; 2] = [7, 0xa_bcde];
/// Whence the device reads.
const FROM: u64 = IOVA;
/// Where it writes.
const TO: u64 = IOVA + PAGE;
/// Where nothing is mapped but now and then.
const CHANGING: u64 = IOVA + 2 * PAGE;
/// How often the device is given something else to write.
const RELOAD: u64 = 16;

/// What requests with one PASID, or without, reach.
struct View {
    pasid: Option<u32>,
    space: Rc<Space>,
    table: Table,
    from: Buffer,
    to: Buffer,
}

impl View {
    fn new(edu: &Edu, space: Rc<Space>, pasid: Option<u32>) -> Result<Self> {
        let seed = 1000 + u64::from(pasid.unwrap_or(0));
        Ok(Self {
            pasid,
            table: edu.function.table(&space)?,
            from: page(&space, FROM, seed, Access::ReadWrite)?,
            to: page(&space, TO, seed + 1, Access::ReadWrite)?,
            space,
        })
    }

    /// How its requests travel.
    fn manner(&self, translate: bool) -> u32 {
        let pasid = self.pasid.map_or(0, |pasid| WITH_PASID | pasid);
        pasid | if translate { TRANSLATE } else { 0 }
    }

    fn bytes(&self) -> [Vec<u8>; 2] {
        [self.from.read(0, 4096), self.to.read(0, 4096)]
    }
}

/// One transfer for `view`; its outcome.
fn transfer(edu: &Edu, view: &View, translate: bool, address: u64, command: u64) -> Result<u32> {
    edu.set_manner(view.manner(translate))?;
    let (source, destination) = match command {
        FROM_DEVICE => (INTERNAL, address),
        _ => (address, INTERNAL),
    };
    edu.transfer_quietly(source, destination, INTERNAL_SIZE, command)?;
    edu.outcome()
}

/// The same, which must reach what it is to reach.
fn carry(edu: &Edu, view: &View, translate: bool, address: u64, command: u64) -> Result<()> {
    let outcome = transfer(edu, view, translate, address, command)?;
    ensure!(
        outcome == DONE,
        "PASID {:x?}, {}: outcome {outcome}",
        view.pasid,
        if translate {
            "translated by the device"
        } else {
            "untranslated"
        }
    );
    Ok(())
}

/// From each to each: what the one's page holds arrives in the other's, and in no third.
fn apart(edu: &Edu, views: &[View]) -> Result<()> {
    for translate in [false, true] {
        for (reader, from) in views.iter().enumerate() {
            for (writer, to) in views.iter().enumerate() {
                let mut expected: Vec<_> = views.iter().map(View::bytes).collect();
                carry(edu, from, translate, FROM, 0)?;
                carry(edu, to, translate, TO, FROM_DEVICE)?;
                let brought = from.from.read(0, INTERNAL_SIZE);
                if let Some([_, page]) = expected.get_mut(writer) {
                    page.splice(..INTERNAL_SIZE, brought);
                }
                let found = views.iter().map(View::bytes);
                for (index, (found, expected)) in found.zip(&expected).enumerate() {
                    for (found, expected) in found.iter().zip(expected) {
                        ensure_equal(found, expected, "a page")
                            .with_context(|| format!("view {index}, {reader} to {writer}"))?;
                    }
                }
            }
        }
    }
    Ok(())
}

/// Again and again: two pages in turn at one address of a PASID, written by the device, in turns
/// with addresses that it had translated beforehand and with addresses that it keeps translated.
/// Only the page that is mapped may change.
fn remap(edu: &Edu, view: &View, rounds: u64) -> Result<()> {
    let (mut mapped, mut other) = (Buffer::new(4096)?, Buffer::new(4096)?);
    let mut held = Vec::new();
    for round in 0..rounds {
        let translate = round % 4 < 2;
        if round % RELOAD == 0 {
            carry(edu, view, translate, FROM, 0)?;
            held = view.from.read(0, INTERNAL_SIZE);
        }
        fill(&mut mapped, round);
        let mut expected = mapped.read(0, 4096);
        expected.splice(..INTERNAL_SIZE, held.iter().copied());
        let kept = other.read(0, 4096);
        view.space.map(&mapped, CHANGING, Access::ReadWrite)?;
        carry(edu, view, translate, CHANGING, FROM_DEVICE)?;
        view.space.unmap(CHANGING, PAGE)?;
        let in_round = || format!("round {round}");
        ensure_equal(&mapped.read(0, 4096), &expected, "the mapped page").with_context(in_round)?;
        ensure_equal(&other.read(0, 4096), &kept, "the other page").with_context(in_round)?;
        std::mem::swap(&mut mapped, &mut other);
    }
    Ok(())
}

/// Two PASIDs and requests without, each with pages of its own; remapped so many times as the
/// argument says; a PASID that is taken away reaches nothing, and one that is given another's table
/// reaches that. In the end all of them have addresses, and keep them until the guest ends.
pub(super) fn check(_guest: &Guest, argument: &str) -> Result<String> {
    let rounds: u64 = argument.parse().context("pasid=ROUNDS")?;
    let address = edu::find()?;
    let plain = Rc::new(Space::new()?);
    // Linux's uio_pci_sva, which may have had the device before, leaves no message to others.
    let mut edu = Edu::open_polled(&address, Rc::clone(&plain))?;
    let [one, two] = PASIDS;
    let views = [
        View::new(&edu, Rc::clone(&plain), None)?,
        View::new(&edu, Rc::new(plain.sibling()?), Some(one))?,
        View::new(&edu, Rc::new(plain.sibling()?), Some(two))?,
    ];
    let [without, first, second] = &views;
    edu.function.attach_table(&without.table)?;
    edu.function.attach_pasid(one, &first.table)?;
    edu.function.attach_pasid(two, &second.table)?;
    apart(&edu, &views).context("apart")?;
    remap(&edu, first, rounds).context("remapped")?;
    remap(&edu, without, rounds / 4).context("remapped without PASID")?;

    edu.function.detach_pasid(one)?;
    let before: Vec<_> = views.iter().map(View::bytes).collect();
    for (translate, address, command) in [
        (true, TO, FROM_DEVICE),
        (true, FROM, 0),
        (false, TO, FROM_DEVICE),
        (false, FROM, 0),
    ] {
        let outcome = transfer(&edu, first, translate, address, command)?;
        ensure!(
            outcome != DONE,
            "a PASID without table reaches {address:#x}"
        );
    }
    let after: Vec<_> = views.iter().map(View::bytes).collect();
    ensure!(before == after, "a PASID without table has changed a page");
    // What the device holds is still what it read before.
    carry(&edu, second, true, FROM, 0).context("the other PASID")?;
    carry(&edu, without, false, TO, FROM_DEVICE).context("no PASID")?;
    ensure_equal(
        &without.to.read(0, INTERNAL_SIZE),
        &second.from.read(0, INTERNAL_SIZE),
        "beside a PASID without table",
    )?;

    edu.function.attach_pasid(one, &second.table)?;
    carry(&edu, first, true, FROM, 0).context("the other's table")?;
    edu.function.attach_pasid(one, &first.table)?;
    carry(&edu, first, true, TO, FROM_DEVICE).context("its own table")?;
    ensure_equal(
        &first.to.read(0, INTERNAL_SIZE),
        &second.from.read(0, INTERNAL_SIZE),
        "from the other's table to its own",
    )?;
    apart(&edu, &views).context("apart in the end")?;
    // What they own is given back when this process ends, which is when the guest does.
    std::mem::forget((edu, views));
    Ok(format!(
        "{address}: PASIDs {one:#x} and {two:#x}, {rounds} rounds"
    ))
}
