//! An assigned edu writes pages of which the guest knows the addresses, while nido is asked which pages
//! devices of the host write.

use std::collections::BTreeSet;
use std::rc::Rc;

use anyhow::{Context, Result};

use super::Guest;
use super::agent::Agent;
use super::assigned_edu::{PAGE, page};
use super::edu::{self, Edu, FROM_DEVICE, INTERNAL, INTERNAL_SIZE, IOVA};
use super::vfio::{self, Access, Space};
use crate::sys::memory::Buffer;

/// Pages that are mapped at the beginning, each by itself and apart from its neighbours.
const PAGES: u64 = 12;

struct Bench {
    space: Rc<Space>,
    edu: Edu,
    pages: Vec<Buffer>,
}

/// Where page `number` is mapped.
const fn iova(number: u64) -> u64 {
    IOVA + number * 2 * PAGE
}

impl Bench {
    fn map(&mut self) -> Result<u64> {
        let number = self.pages.len() as u64;
        let buffer = page(&self.space, iova(number), number, Access::ReadWrite)?;
        self.pages.push(buffer);
        Ok(number)
    }

    fn unmap(&self, number: u64) -> Result<()> {
        self.space.unmap(iova(number), PAGE)
    }

    /// Has the device write to a page. Returns where that is.
    fn write(&self, number: u64) -> Result<u64> {
        self.edu
            .transfer_quietly(INTERNAL, iova(number), INTERNAL_SIZE, FROM_DEVICE)?;
        let buffer = self.pages.get(usize::try_from(number)?);
        vfio::physical(buffer.context("no such page")?.address())
    }

    /// Has it read one.
    fn read(&self, number: u64) -> Result<()> {
        self.edu
            .transfer_quietly(iova(number), INTERNAL, INTERNAL_SIZE, 0)
    }
}

/// Two rounds, each of as many milliseconds as the argument says: what nido says of each is what was written
/// in it.
pub(super) fn check(_guest: &Guest, argument: &str) -> Result<String> {
    let time: u64 = argument.parse().context("dirty-pages=MILLISECONDS")?;
    let mut agent = Agent::open()?;
    let space = Rc::new(Space::new()?);
    let address = edu::find()?;
    let edu = Edu::open_polled(&address, Rc::clone(&space))?;
    let mut bench = Bench {
        space,
        edu,
        pages: Vec::new(),
    };
    for _ in 0..PAGES {
        bench.map()?;
    }
    // Two pages that one transfer writes to.
    let beyond = IOVA + 64 * PAGE;
    let two = Buffer::new(2 * 4096)?;
    bench.space.map(&two, beyond, Access::ReadWrite)?;
    bench.write(0)?;
    bench.write(1)?;
    agent.request(&format!("dirty begin {time} 2"))?;

    let mut first = BTreeSet::new();
    for number in [1, 3, 4] {
        first.insert(bench.write(number)?);
    }
    bench.read(2)?;
    // A page that is written and then gone before anybody asks, one that is gone without, and one that
    // comes.
    first.insert(bench.write(5)?);
    bench.unmap(5)?;
    bench.unmap(6)?;
    let new = bench.map()?;
    first.insert(bench.write(new)?);
    bench
        .edu
        .transfer_quietly(INTERNAL, beyond + 2048, INTERNAL_SIZE, FROM_DEVICE)?;
    for part in [0, PAGE] {
        first.insert(vfio::physical(two.address() + part)?);
    }
    agent.request("dirty next 1")?;

    let mut second = BTreeSet::new();
    for number in [3, 7, new] {
        second.insert(bench.write(number)?);
    }
    bench.read(8)?;
    // What was written before is not told again, also if it goes now.
    bench.unmap(4)?;
    agent.request("dirty next 2")?;

    let bdf = address.strip_prefix("0000:").unwrap_or(&address);
    agent.request(&format!("dirty tables {bdf} {:#x}", iova(0)))?;
    let text = |pages: &BTreeSet<u64>| {
        let pages: Vec<_> = pages.iter().map(|page| format!("{page:#x}")).collect();
        pages.join("+")
    };
    agent.request(&format!("dirty is {};{}", text(&first), text(&second)))?;
    Ok(format!("{} pages, then {}", first.len(), second.len()))
}
