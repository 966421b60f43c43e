//! Whatever a guest does to its tables and in which order it says so, no device reaches what was
//! never permitted since the guest last said so; and once it has said so, devices reach just that.
//!
//! The model knows nothing of areas, shadows or walks. For each device it keeps which bindings its
//! entry had since entries were last invalidated, and for each page of each root what was mapped
//! there since it was last invalidated for the device. What a device may reach is what any of these
//! says. That is looked at after every call of the host, and in the middle of those that have one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use proptest::collection::vec;
use proptest::prelude::*;

use super::testing::*;
use super::*;
use crate::fake::{FakeFeatures, View, errno};
use crate::host_iommu::{HostDeviceId, Rights};
use intel_vtd::spec::descriptors::{IotlbScope, PageBlock, PasidCacheScope};
use intel_vtd::testing::tables::Paging;
use intel_vtd::{Latched, Pasid};

const DEVICES: usize = 3;
/// Who makes requests.
const ROWS: usize = DEVICES * Requester::PER_DEVICE;
const ROOTS: usize = 3;

/// The last one suits neither the page tables of the others nor pages that can only be written.
const FEATURES: [FakeFeatures; DEVICES] = {
    let plain = FakeFeatures {
        address_bits: 48,
        coherent: true,
        first_stage: false,
        nesting: false,
        whole_first_stage: false,
        dirty_tracking: false,
        pasid_bits: 20,
        page_requests: false,
        tracks_pasids: false,
        read_only_parents: false,
        reserved: None,
    };
    let odd = FakeFeatures {
        coherent: false,
        first_stage: true,
        ..plain
    };
    [plain, plain, odd]
};

/// Pages that have leaves of their own, on both sides of a boundary of 2 MiB.
const SMALL: usize = 16;
const FIRST: u64 = 0x1f_8000;
/// A large page.
const LARGE: u64 = 0x4000_0000;
/// In the interrupt range; it has a leaf of its own, too.
const INTERRUPT: u64 = 0xfee0_1000;
/// Where to look besides the small pages: in the large page, and where nothing but guest-physical
/// memory is.
const OTHERS: [u64; 6] = [
    LARGE,
    LARGE + 0x10_0000,
    LARGE + 0x1f_f000,
    INTERRUPT,
    0x30_0000,
    0x300_0000,
];

fn looked_at() -> impl Iterator<Item = u64> {
    (0..16).map(|page| FIRST + page * 0x1000).chain(OTHERS)
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Bound {
    Nothing,
    Memory,
    Root(usize, u16),
}

/// What the guest has written for one root.
#[derive(Clone, Default)]
struct Root {
    small: BTreeMap<usize, (u64, u64)>,
    large: Option<(u64, u64)>,
    /// Flags of the tables that hold the small pages.
    upper: [u64; 2],
}

impl Root {
    /// Where `address` goes.
    fn at(&self, address: u64) -> Leaf {
        let (output, flags) = if (LARGE..LARGE + 0x20_0000).contains(&address) {
            let (output, flags) = self.large?;
            (output + (address - LARGE), flags)
        } else if (FIRST..FIRST + 0x1_0000).contains(&address) {
            let index = usize::try_from((address - FIRST) / 0x1000).unwrap();
            let (output, flags) = *self.small.get(&index)?;
            (output, flags & self.upper[index / 8])
        } else {
            // Nothing goes where interrupts go.
            return None;
        };
        let rights = Rights {
            read: flags & 1 != 0,
            write: flags & 2 != 0,
        };
        (rights != Rights::NONE && output < 0x400_0000).then_some((output, rights))
    }
}

struct Model {
    roots: Vec<Root>,
    entries: [Bound; ROWS],
    enabled: bool,
    ids: [Option<HostDeviceId>; DEVICES],
    /// The first two devices are of one IOMMU group.
    grouped: bool,
    /// What each requester may be bound to.
    bindings: Vec<Vec<Bound>>,
    /// What may be mapped for each requester and root at an address.
    seen: Vec<Vec<BTreeMap<u64, Vec<Leaf>>>>,
    looks: u64,
}

impl Model {
    fn new(grouped: bool) -> Self {
        Self {
            roots: vec![
                Root {
                    upper: [3, 3],
                    ..Root::default()
                };
                ROOTS
            ],
            entries: [Bound::Nothing; ROWS],
            enabled: true,
            ids: [None; DEVICES],
            grouped,
            bindings: vec![vec![Bound::Nothing]; ROWS],
            seen: vec![vec![BTreeMap::new(); ROOTS]; ROWS],
            looks: 0,
        }
    }

    fn now(&self, row: usize) -> Bound {
        if self.enabled {
            self.entries[row]
        } else if Requester::at(row).pasid.is_none() {
            Bound::Memory
        } else {
            Bound::Nothing
        }
    }

    /// The guest has written something.
    fn written(&mut self) {
        for row in 0..ROWS {
            let now = self.now(row);
            if !self.bindings[row].contains(&now) {
                self.bindings[row].push(now);
            }
            for root in 0..ROOTS {
                for address in looked_at() {
                    let reach = self.roots[root].at(address);
                    let seen = self.seen[row][root].entry(address).or_default();
                    if !seen.contains(&reach) {
                        seen.push(reach);
                    }
                }
            }
        }
    }

    /// What was cached of the pages of `root` is gone for `row`.
    fn forget(&mut self, row: usize, root: usize, covers: impl Fn(u64) -> bool) {
        for address in looked_at().filter(|address| covers(*address)) {
            let reach = self.roots[root].at(address);
            self.seen[row][root].insert(address, vec![reach]);
        }
    }

    /// Entries were invalidated: devices are where they belong, and what they are not behind is not
    /// cached.
    fn entries_invalidated(&mut self, are_meant: impl Fn(Requester) -> bool) {
        for row in (0..ROWS).filter(|row| are_meant(Requester::at(*row))) {
            let now = self.now(row);
            self.bindings[row] = vec![now];
            for root in 0..ROOTS {
                if !matches!(now, Bound::Root(is, _) if is == root) {
                    self.forget(row, root, |_| true);
                }
            }
        }
    }

    /// Translations under a domain id were invalidated, or under all.
    fn invalidated(
        &mut self,
        domain: Option<u16>,
        pasid: Option<u32>,
        covers: impl Fn(u64) -> bool,
    ) {
        let is_meant = |row: &usize| pasid.is_none_or(|pasid| Requester::at(*row).has(pasid));
        for row in (0..ROWS).filter(is_meant) {
            for root in 0..ROOTS {
                let is_meant = self.bindings[row].iter().all(|bound| match bound {
                    Bound::Root(is, id) if *is == root => domain.is_none_or(|domain| domain == *id),
                    _ => true,
                });
                if is_meant {
                    self.forget(row, root, &covers);
                }
            }
        }
    }

    /// What becomes of `row` because of the other device of its group.
    fn in_group(&self, row: usize) -> InGroup {
        let device = Requester::at(row).device;
        let members = (0..DEVICES)
            .filter(|other| self.grouped && device < 2 && *other < 2)
            .filter(|other| self.ids[*other].is_some());
        let rows = members.map(|other| other * Requester::PER_DEVICE + row % Requester::PER_DEVICE);
        let bindings: Vec<_> = rows.map(|row| self.bindings[row].as_slice()).collect();
        InGroup::of(&bindings, |is, other| {
            matches!(
                (is, other),
                (Bound::Memory, Bound::Memory) | (Bound::Nothing, Bound::Nothing)
            ) || matches!((is, other), (Bound::Root(is, _), Bound::Root(other, _)) if is == other)
        })
    }

    /// All that may be behind `address`, and nothing else, if it is certain.
    fn permitted(&self, row: usize, address: u64) -> Vec<Leaf> {
        let mut reaches = Vec::new();
        for bound in &self.bindings[row] {
            match *bound {
                Bound::Nothing => reaches.push(None),
                Bound::Memory if address < 0x400_0000 => {
                    reaches.push(Some((address, Rights::ALL)));
                }
                Bound::Memory => reaches.push(None),
                Bound::Root(root, _) => {
                    reaches.extend(self.seen[row][root].get(&address).into_iter().flatten());
                }
            }
        }
        reaches
    }

    fn look(&mut self, dma: impl Fn(HostDeviceId, Option<Pasid>, u64) -> Leaf, exact: bool) {
        for row in 0..ROWS {
            let requester = Requester::at(row);
            let Some(id) = self.ids[requester.device] else {
                continue;
            };
            let in_group = self.in_group(row);
            for address in looked_at() {
                self.looks += 1;
                let is = dma(id, requester.host_pasid(), address);
                let permitted = self.permitted(row, address);
                let (permitted, exact) = match in_group {
                    InGroup::Blocked if exact => (vec![None], true),
                    InGroup::Unknown => (permitted, false),
                    _ => (permitted, exact),
                };
                check_reach(&format!("{requester:?}"), address, is, &permitted, exact);
            }
        }
    }
}

/// The requesters of a device.
fn rows(device: usize) -> std::ops::Range<usize> {
    let first = device * Requester::PER_DEVICE;
    first..first + Requester::PER_DEVICE
}

#[derive(Clone, Debug)]
enum Step {
    /// Leaves for some pages that follow each other on both sides.
    Map {
        root: usize,
        first: usize,
        pages: usize,
        output: u64,
        flags: u64,
    },
    Unmap {
        root: usize,
        first: usize,
        pages: usize,
    },
    Large {
        root: usize,
        leaf: Option<(u64, u64)>,
    },
    Interrupt {
        root: usize,
        flags: u64,
    },
    Upper {
        root: usize,
        half: usize,
        flags: u64,
    },
    Enter {
        row: usize,
        bound: Bound,
    },
    FirstStage {
        row: usize,
    },
    Invalidate(Vec<Said>),
    Enable(bool),
    Remove(usize),
    Add(usize),
    Fail {
        after: u64,
        error: i32,
    },
    Heal,
}

/// What the guest says.
#[derive(Clone, Debug)]
enum Said {
    Entries,
    PasidEntries,
    PasidEntry(u16, u32),
    All,
    Global,
    Domain(u16),
    Pasid(u16, u32),
    Pages(u16, u64, u8),
}

fn root() -> std::ops::Range<usize> {
    0..ROOTS
}

/// Each root has two.
fn domain() -> impl Strategy<Value = u16> {
    10_u16..16
}

fn pasid() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), Just(7), Just(70)]
}

fn bound() -> impl Strategy<Value = Bound> {
    prop_oneof![
        1 => Just(Bound::Nothing),
        2 => Just(Bound::Memory),
        5 => (root(), any::<bool>()).prop_map(|(root, other)| {
            Bound::Root(root, 10 + u16::try_from(root).unwrap() * 2 + u16::from(other))
        }),
    ]
}

fn output() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (0_u64..4).prop_map(|page| 0x30_0000 + page * 0x1000),
        2 => (0_u64..16).prop_map(|page| MIDDLE - 0x8000 + page * 0x1000),
        1 => Just(0x3ff_e000),
        1 => Just(0x7000_0000),
    ]
}

fn flags() -> impl Strategy<Value = u64> {
    prop_oneof![6 => Just(3_u64), 2 => Just(1), 1 => Just(2)]
}

fn said() -> impl Strategy<Value = Said> {
    let address = (0_usize..22).prop_map(|index| looked_at().nth(index).unwrap());
    prop_oneof![
        2 => Just(Said::Entries),
        2 => Just(Said::PasidEntries),
        4 => (domain(), pasid()).prop_map(|(domain, pasid)| Said::PasidEntry(domain, pasid)),
        1 => Just(Said::All),
        1 => Just(Said::Global),
        2 => domain().prop_map(Said::Domain),
        2 => (domain(), pasid()).prop_map(|(domain, pasid)| Said::Pasid(domain, pasid)),
        10 => (domain(), address, 0_u8..7).prop_map(|(domain, address, mask)| Said::Pages(domain, address, mask)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let small = || (0..SMALL, 1..SMALL);
    prop_oneof![
        8 => (root(), small(), output(), flags()).prop_map(|(root, (first, pages), output, flags)| Step::Map {
            root, first, pages, output, flags,
        }),
        6 => (root(), small()).prop_map(|(root, (first, pages))| Step::Unmap { root, first, pages }),
        2 => (root(), proptest::option::of((0_u64..4, flags()))).prop_map(|(root, leaf)| Step::Large {
            root,
            leaf: leaf.map(|(block, flags)| (0x40_0000 + block * 0x20_0000, flags)),
        }),
        1 => (root(), flags()).prop_map(|(root, flags)| Step::Interrupt { root, flags }),
        2 => (root(), 0_usize..2, 0_u64..4).prop_map(|(root, half, flags)| Step::Upper { root, half, flags }),
        5 => (0..ROWS, bound()).prop_map(|(row, bound)| Step::Enter { row, bound }),
        1 => (0..ROWS).prop_map(|row| Step::FirstStage { row }),
        16 => vec(said(), 1..5).prop_map(Step::Invalidate),
        1 => any::<bool>().prop_map(Step::Enable),
        1 => (0..DEVICES).prop_map(Step::Remove),
        2 => (0..DEVICES).prop_map(Step::Add),
        2 => (0_u64..12, prop_oneof![Just(errno::ENOMEM), Just(errno::EINVAL), Just(errno::EBUSY), Just(errno::ENOENT)])
            .prop_map(|(after, error)| Step::Fail { after, error }),
        2 => Just(Step::Heal),
    ]
}

struct Run {
    guest: Guest,
    pagings: Vec<Paging>,
    model: Arc<Mutex<Model>>,
    /// No call was made to fail since all was put right.
    exact: bool,
    limited: bool,
}

impl Run {
    fn new(limits: Limits, limited: bool, grouped: bool) -> Self {
        let guest = Guest::new(limits);
        let pagings = [4, 3, 4].map(|levels| guest.world.second_stage(levels));
        for paging in &pagings {
            // The tables are there, so that their flags can be.
            for address in looked_at() {
                if address != LARGE {
                    guest.world.slot(paging, address.min(FIRST + 0xf000), 1);
                }
            }
        }
        let model = Arc::new(Mutex::new(Model::new(grouped)));
        let watching = Arc::clone(&model);
        guest.host.watch(move |view: &View<'_>| {
            let dma = |id, pasid, address| {
                let reached = view.dma_with(id, pasid, address);
                reached.map(|to| (to.offset, to.rights))
            };
            watching.lock().unwrap().look(dma, false);
        });
        let run = Self {
            guest,
            pagings: pagings.to_vec(),
            model,
            exact: !limited,
            limited,
        };
        run.with(|model| model.written());
        for device in 0..DEVICES {
            run.add(device);
        }
        run
    }

    fn with<R>(&self, change: impl FnOnce(&mut Model) -> R) -> R {
        change(&mut self.model.lock().unwrap())
    }

    fn add(&self, device: usize) {
        if self.with(|model| model.ids[device].is_some()) {
            return;
        }
        let is_grouped = device < 2 && self.with(|model| model.grouped);
        let make = if is_grouped {
            grouped_device
        } else {
            assigned_device
        };
        let added = make(&self.guest.host, SOURCES[device], FEATURES[device]);
        let id = added.id;
        self.with(|model| {
            // It was behind nothing, and goes where it belongs.
            for row in rows(device) {
                model.bindings[row] = vec![Bound::Nothing, model.now(row)];
                (0..ROOTS).for_each(|root| model.forget(row, root, |_| true));
            }
            // Before it is added, it reaches what the others of its group do.
            model.ids[device] = (!is_grouped).then_some(id);
        });
        let outcome = self.guest.devices.add(added);
        assert!(outcome.is_ok() || !self.exact, "{outcome:?}");
        self.with(|model| {
            for row in rows(device) {
                model.bindings[row] = vec![model.now(row)];
            }
            model.ids[device] = outcome.is_ok().then_some(id);
        });
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Map {
                root,
                first,
                pages,
                output,
                flags,
            } => {
                for index in *first..(first + pages).min(SMALL) {
                    let output = output + u64::try_from(index - first).unwrap() * 0x1000;
                    self.leaf(*root, index, Some((output, *flags)));
                }
            }
            Step::Unmap { root, first, pages } => {
                for index in *first..(first + pages).min(SMALL) {
                    self.leaf(*root, index, None);
                }
            }
            Step::Large { root, leaf } => {
                let entry = leaf.map_or(0, |(output, flags)| output | flags | 0x80);
                self.guest.world.map(&self.pagings[*root], LARGE, 2, entry);
                self.with(|model| model.roots[*root].large = *leaf);
            }
            Step::Interrupt { root, flags } => {
                let entry = 0x30_0000 | flags;
                self.guest
                    .world
                    .map(&self.pagings[*root], INTERRUPT, 1, entry);
            }
            Step::Upper { root, half, flags } => {
                let address = if *half == 0 { FIRST } else { FIRST + 0x8000 };
                let slot = self.guest.world.slot(&self.pagings[*root], address, 2);
                self.guest.world.clear(slot, 3);
                self.guest.world.or(slot, *flags);
                self.with(|model| model.roots[*root].upper[*half] = *flags);
            }
            Step::Enter { row, bound } => {
                let words = match bound {
                    Bound::Nothing => entry::NOTHING,
                    Bound::Memory => entry::PASS_THROUGH,
                    Bound::Root(root, domain) => {
                        entry::second_stage(&self.pagings[*root], (*domain).into())
                    }
                };
                self.enter(*row, words, *bound);
            }
            // Which these hosts do not nest.
            Step::FirstStage { row } => {
                self.enter(*row, entry::first_stage(0x10_0000, 1), Bound::Nothing);
            }
            Step::Invalidate(said) => self.invalidate(said),
            Step::Enable(enabled) => self.enable(*enabled),
            Step::Remove(device) => {
                self.remove(*device);
            }
            Step::Add(device) => self.add(*device),
            Step::Fail { after, error } => {
                self.guest.host.fail_after(*after, *error);
                self.exact = false;
            }
            Step::Heal => {
                self.guest.host.fail_no_more();
                self.exact = !self.limited;
                self.invalidate(&[Said::All]);
            }
        }
        self.with(Model::written);
        let host = Arc::clone(&self.guest.host);
        let dma = move |id, pasid, address| {
            let reached = host.dma_with(id, pasid, address);
            reached.map(|to| (to.offset, to.rights))
        };
        let exact = self.exact;
        self.with(|model| model.look(dma, exact));
    }

    fn remove(&self, device: usize) {
        // It reaches what the others of its group do from here on.
        let is_grouped = device < 2 && self.with(|model| model.grouped);
        if is_grouped {
            self.with(|model| model.ids[device] = None);
        }
        self.guest.devices.remove(SOURCES[device]);
        self.with(|model| model.ids[device] = None);
    }

    fn leaf(&self, root: usize, index: usize, leaf: Option<(u64, u64)>) {
        let address = FIRST + u64::try_from(index).unwrap() * 0x1000;
        let entry = leaf.map_or(0, |(output, flags)| output | flags);
        self.guest.world.map(&self.pagings[root], address, 1, entry);
        self.with(|model| match leaf {
            Some(leaf) => {
                model.roots[root].small.insert(index, leaf);
            }
            None => {
                model.roots[root].small.remove(&index);
            }
        });
    }

    fn enter(&self, row: usize, words: [u64; 3], bound: Bound) {
        let requester = Requester::at(row);
        let pasid = requester.pasid.unwrap_or(0);
        self.guest
            .enter_with(SOURCES[requester.device], pasid, words);
        self.with(|model| model.entries[row] = bound);
    }

    fn enable(&self, enabled: bool) {
        self.with(|model| {
            model.enabled = enabled;
            model.written();
        });
        let latched = Latched {
            enabled,
            ..self.guest.world.latched
        };
        self.guest.unit.dma_state().set_latched(latched);
        self.guest.change_translation();
        self.with(|model| {
            model.entries_invalidated(|_| true);
            model.invalidated(None, None, |_| true);
        });
    }

    fn invalidate(&self, said: &[Said]) {
        let list: Vec<Invalidation> = said
            .iter()
            .map(|said| match said {
                Said::Entries => CONTEXT,
                Said::PasidEntries => Invalidation::PasidCache(PasidCacheScope::Global),
                Said::PasidEntry(domain, pasid) => {
                    Invalidation::PasidCache(PasidCacheScope::Pasid(*domain, *pasid))
                }
                Said::All => Invalidation::All,
                Said::Global => Invalidation::Iotlb(IotlbScope::Global),
                Said::Domain(domain) => Invalidation::Iotlb(IotlbScope::Domain(*domain)),
                Said::Pasid(domain, pasid) => pasid_all(*domain, *pasid),
                Said::Pages(domain, address, mask) => {
                    Invalidation::Iotlb(IotlbScope::Pages(*domain, block(*address, *mask)))
                }
            })
            .collect();
        self.guest.invalidate(&list);
        self.with(|model| {
            // As if translations came first: what they name is named by the domain ids of before.
            for said in said {
                match said {
                    Said::Entries | Said::PasidEntries | Said::PasidEntry(..) => {}
                    Said::All | Said::Global => model.invalidated(None, None, |_| true),
                    Said::Domain(domain) => model.invalidated(Some(*domain), None, |_| true),
                    Said::Pasid(domain, pasid) => {
                        model.invalidated(Some(*domain), Some(*pasid), |_| true);
                    }
                    Said::Pages(domain, address, mask) => {
                        let block = block(*address, *mask);
                        let end = block.address + (0x1000 << mask);
                        model.invalidated(Some(*domain), None, |page| {
                            (block.address..end).contains(&page)
                        });
                    }
                }
            }
            // Of requests without PASID all entries are looked at, whichever are named.
            model.entries_invalidated(|requester| {
                said.iter().any(|said| match *said {
                    Said::Entries | Said::PasidEntries | Said::All => true,
                    Said::PasidEntry(_, pasid) => requester.pasid.is_none() || requester.has(pasid),
                    _ => false,
                })
            });
        });
    }
}

fn block(address: u64, mask: u8) -> PageBlock {
    PageBlock {
        address: address & !((0x1000 << mask) - 1),
        mask,
        leaf_only: false,
    }
}

static STEPS: AtomicU64 = AtomicU64::new(0);
static LOOKS: AtomicU64 = AtomicU64::new(0);

fn run(limits: Limits, limited: bool, grouped: bool, impatience: u64, steps: &[Step]) {
    let mut run = Run::new(limits, limited, grouped);
    run.guest.impatience.set(impatience);
    for step in steps {
        run.take(step);
    }
    // All that is left is given back.
    run.guest.host.fail_no_more();
    for device in 0..DEVICES {
        run.remove(device);
    }
    run.guest.add(SOURCES[3], FEATURES[0]);
    run.guest.devices.remove(SOURCES[3]);
    assert_eq!(run.guest.host.objects(), 0);
    assert_eq!(run.guest.devices.mapped(), (0, 0));
    STEPS.fetch_add(u64::try_from(steps.len()).unwrap(), Ordering::Relaxed);
    LOOKS.fetch_add(run.with(|model| model.looks), Ordering::Relaxed);
    println!(
        "{} steps so far, {} looks at where a DMA goes",
        STEPS.load(Ordering::Relaxed),
        LOOKS.load(Ordering::Relaxed)
    );
}

/// How many steps of work the first try of what the guest says is for; 0 for as many as it takes.
fn impatience() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), 1_u64..3000]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases()) })]

    #[test]
    fn devices_reach_what_the_guest_permitted_and_nothing_else(
        steps in vec(step(), 1..100),
        grouped in any::<bool>(),
        impatience in impatience(),
    ) {
        run(Limits::default(), false, grouped, impatience, &steps);
    }

    #[test]
    fn limits_make_devices_reach_less_and_never_more(
        steps in vec(step(), 1..100),
        grouped in any::<bool>(),
        impatience in impatience(),
        shadow_memory in 0_u64..400_000,
        steps_per_exit in 1_u64..5_000,
        pasids in 0_usize..3,
        pasid_steps_per_exit in 1_u64..100,
    ) {
        run(Limits { shadow_memory, steps_per_exit, pasids, pasid_steps_per_exit }, true, grouped, impatience, &steps);
    }
}
