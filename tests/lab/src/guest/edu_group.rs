//! Two edu devices of one IOMMU group of the host, which the guest sees in groups of their own: the
//! host has one page table for both.

use std::rc::Rc;

use anyhow::{Context, Result, ensure};

use super::Guest;
use super::agent::Agent;
use super::assigned_edu::{PAGE, carry, ensure_equal, page};
use super::edu::{self, Edu, FROM_DEVICE, INTERNAL, INTERNAL_SIZE, IOVA};
use super::hot_plug_levels::wait;
use super::vfio::{Access, Space};
use crate::pci;
use crate::sys::memory::Buffer;

const ADD: &str =
    "device-add vfio-pci,id=second,host={edu-pair1},iommufd=iommufd0,needs-reset=off,bus=rp0";
const REMOVE: &str = "device-del second";
const DRIVER: &str = "vfio-pci";

/// Pages of a domain, one after the other from [`IOVA`] on.
struct Pages([Buffer; 2]);

impl Pages {
    fn map(space: &Space, seed: u64) -> Result<Self> {
        Ok(Self([
            page(space, IOVA, seed, Access::ReadWrite)?,
            page(space, IOVA + PAGE, seed + 1, Access::ReadWrite)?,
        ]))
    }

    /// `edu` takes the first page into the second.
    fn work(&mut self, edu: &Edu, seed: u64) -> Result<()> {
        let [from, to] = &mut self.0;
        edu::fill(from, seed);
        edu::fill(to, !seed);
        carry(edu, IOVA, IOVA + PAGE)?;
        let sent = from.read(0, INTERNAL_SIZE);
        ensure_equal(&to.read(0, INTERNAL_SIZE), &sent, "what was carried")
    }

    /// Whatever `edu` writes to the second page, it stays as it is.
    fn stays(&mut self, edu: &Edu, seed: u64) -> Result<()> {
        let [_, to] = &mut self.0;
        edu::fill(to, seed);
        let kept = to.read(0, to.len());
        edu.start(INTERNAL, IOVA + PAGE, INTERNAL_SIZE, FROM_DEVICE)?;
        edu.wait_idle()?;
        ensure_equal(&to.read(0, kept.len()), &kept, "a page of a blocked device")
    }
}

/// One alone; then the second comes, and blocks both until both are in one domain; then each in a
/// domain of its own, where neither reaches anything; together again; and the first alone once more
/// when the second has gone.
pub(super) fn check(_guest: &Guest, _argument: &str) -> Result<String> {
    let mut agent = Agent::open()?;
    let first = edu::find()?;
    let shared = Rc::new(Space::new()?);
    let one = Edu::open_in(&first, Rc::clone(&shared)).context("first")?;
    let mut pages = Pages::map(&shared, 51)?;
    pages.work(&one, 52).context("first device, alone")?;

    agent.request(ADD)?;
    wait("the second does not come", || {
        Ok(edu::find_all()?.len() == 2)
    })?;
    let mut all = edu::find_all()?;
    all.retain(|address| *address != first);
    let second = all.pop().context("no second")?;
    pages.stays(&one, 53).context("beside one in no domain")?;
    // A function can be seen a moment before a driver can have it.
    wait("the second gets no driver", || {
        pci::bind(&second, DRIVER)?;
        Ok(pci::driver(&second).as_deref() == Some(DRIVER))
    })?;
    let mut two = Edu::open_in(&second, Rc::clone(&shared)).context("second")?;
    pages.work(&one, 54).context("first device, one domain")?;
    pages.work(&two, 55).context("second device, one domain")?;
    agent.request("look together")?;

    let own = Rc::new(shared.sibling()?);
    let mut owned = Pages::map(&own, 56)?;
    two.function.attach(Rc::clone(&own)).context("own domain")?;
    pages.stays(&one, 58).context("first device, two domains")?;
    owned
        .stays(&two, 59)
        .context("second device, two domains")?;
    pages.stays(&two, 60).context("the first's page")?;
    owned.stays(&one, 61).context("the second's page")?;
    agent.request("look apart")?;

    two.function.attach(Rc::clone(&shared)).context("back")?;
    pages.work(&one, 62).context("first device, back")?;
    pages.work(&two, 63).context("second device, back")?;
    agent.request("look together")?;

    drop(two);
    agent.request(REMOVE)?;
    wait("the second does not go", || {
        Ok(!pci::directory(&second).exists())
    })?;
    pages.work(&one, 64).context("first device, alone again")?;
    ensure!(edu::find_all()?.len() == 1, "the second is there");
    Ok(format!("{first} and {second}"))
}
