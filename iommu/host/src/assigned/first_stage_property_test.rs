//! As `property_test`, for devices behind first-stage tables, on guest memory and on second-stage
//! tables. The fake keeps what it reads of first-stage tables until it is told to forget, so an
//! invalidation that does not arrive shows.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use proptest::collection::vec;
use proptest::prelude::*;

use super::testing::*;
use super::*;
use crate::fake::{FakeFeatures, View, errno};
use crate::host_iommu::{HostDeviceId, Rights};
use intel_vtd::spec::descriptors::{IotlbScope, PasidCacheScope};
use intel_vtd::testing::tables::Paging;
use intel_vtd::{DeviceTlbInvalidation, DeviceTlbTarget, Latched, Pasid};

const DEVICES: usize = 3;
/// Who makes requests.
const ROWS: usize = DEVICES * Requester::PER_DEVICE;
/// Roots of each stage.
const ROOTS: usize = 2;

/// The last one needs page tables of its own.
const FEATURES: [FakeFeatures; DEVICES] = {
    let like_others = FakeFeatures {
        pasid_bits: 20,
        ..NESTING
    };
    let odd = FakeFeatures {
        coherent: false,
        ..like_others
    };
    [like_others, like_others, odd]
};

const END: u64 = 0x400_0000;

/// Pages that first-stage tables translate.
fn first_pages() -> impl Iterator<Item = u64> {
    (0..6).map(|page| 0x10_0000_0000 + page * 0x1000)
}

/// Pages that second-stage tables translate.
fn second_pages() -> impl Iterator<Item = u64> {
    (0..5).map(|page| 0x2000_0000 + page * 0x1000)
}

/// Pages of guest memory, of two pieces of it.
fn memory_pages() -> impl Iterator<Item = u64> {
    (0..2)
        .map(|page| 0x30_0000 + page * 0x1000)
        .chain((0..2).map(|page| MIDDLE + page * 0x1000))
}

fn looked_at() -> impl Iterator<Item = u64> {
    first_pages().chain(second_pages()).chain(memory_pages())
}

type Leaves = BTreeMap<u64, (u64, Rights)>;
/// What a leaf may be taken to be.
type Seen = BTreeMap<u64, Vec<Leaf>>;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Bound {
    Nothing,
    Memory,
    Second(usize, u16),
    First(usize, u16),
    Nested(usize, usize, u16),
}

impl Bound {
    fn domain(self) -> Option<u16> {
        match self {
            Self::Nothing | Self::Memory => None,
            Self::Second(_, domain) | Self::First(_, domain) | Self::Nested(.., domain) => {
                Some(domain)
            }
        }
    }

    /// Whether it goes through this root of the first stage, or of the second.
    fn uses(self, stage: usize, root: usize) -> bool {
        match self {
            Self::Nothing | Self::Memory => false,
            Self::First(first, _) => (stage, root) == (0, first),
            Self::Second(second, _) => (stage, root) == (1, second),
            Self::Nested(first, second, _) => {
                (stage, root) == (0, first) || (stage, root) == (1, second)
            }
        }
    }
}

struct Model {
    /// What is written, by stage and root.
    leaves: [[Leaves; ROOTS]; 2],
    entries: [Bound; ROWS],
    enabled: bool,
    ids: [Option<HostDeviceId>; DEVICES],
    /// The first two devices are of one IOMMU group.
    grouped: bool,
    /// What each requester may be bound to. The first is what it was when its entry was last looked
    /// at.
    bindings: [Vec<Bound>; ROWS],
    seen: [[[Seen; ROOTS]; 2]; ROWS],
}

impl Model {
    fn new(grouped: bool) -> Self {
        Self {
            leaves: Default::default(),
            entries: [Bound::Nothing; ROWS],
            enabled: true,
            ids: [None; DEVICES],
            grouped,
            bindings: std::array::from_fn(|_| vec![Bound::Nothing]),
            seen: Default::default(),
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

    fn leaf(&self, stage: usize, root: usize, page: u64) -> Leaf {
        self.leaves[stage][root].get(&page).copied()
    }

    fn written(&mut self) {
        for row in 0..ROWS {
            let now = self.now(row);
            if !self.bindings[row].contains(&now) {
                self.bindings[row].push(now);
            }
            for (stage, root) in roots() {
                for page in looked_at() {
                    let leaf = self.leaf(stage, root, page);
                    let seen = self.seen[row][stage][root].entry(page).or_default();
                    if !seen.contains(&leaf) {
                        seen.push(leaf);
                    }
                }
            }
        }
    }

    fn forget(&mut self, row: usize, stage: usize, root: usize, covers: impl Fn(u64) -> bool) {
        for page in looked_at().filter(|page| covers(*page)) {
            let leaf = self.leaf(stage, root, page);
            self.seen[row][stage][root].insert(page, vec![leaf]);
        }
    }

    /// Entries were invalidated: requesters that `are_meant` are where they belong.
    fn entries_invalidated(&mut self, are_meant: impl Fn(Requester, Bound) -> bool) {
        for row in 0..ROWS {
            if !are_meant(Requester::at(row), self.bindings[row][0]) {
                continue;
            }
            let now = self.now(row);
            let was = std::mem::replace(&mut self.bindings[row], vec![now]);
            for (stage, root) in roots() {
                // Nothing is left of what it was not behind, or under another domain id, nor of
                // what it is not behind now.
                let was_behind = was
                    .iter()
                    .any(|bound| bound.uses(stage, root) && bound.domain() == now.domain());
                if !was_behind || !now.uses(stage, root) {
                    self.forget(row, stage, root, |_| true);
                }
            }
        }
    }

    fn invalidated(
        &mut self,
        stage: usize,
        domain: Option<u16>,
        pasid: Option<u32>,
        covers: impl Fn(u64) -> bool,
    ) {
        for row in 0..ROWS {
            if pasid.is_some_and(|pasid| !Requester::at(row).has(pasid)) {
                continue;
            }
            for root in 0..ROOTS {
                let is_meant = self.bindings[row].iter().all(|bound| {
                    !bound.uses(stage, root) || domain.is_none() || bound.domain() == domain
                });
                if is_meant {
                    self.forget(row, stage, root, &covers);
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
        InGroup::of(&bindings, |is, other| match (is, other) {
            (Bound::Second(is, _), Bound::Second(other, _))
            | (Bound::First(is, _), Bound::First(other, _)) => is == other,
            (Bound::Nested(is, below, _), Bound::Nested(other, below_other, _)) => {
                (is, below) == (other, below_other)
            }
            (is, other) => is == other,
        })
    }

    /// All that `row` may reach at `page`; nothing else, if it is one.
    fn permitted(&self, row: usize, page: u64) -> Vec<Leaf> {
        let seen = |stage: usize, root: usize, page: u64| {
            let seen = self.seen[row][stage][root].get(&page);
            seen.cloned().unwrap_or_else(|| vec![None])
        };
        let in_memory = |leaf: Leaf| leaf.filter(|(to, _)| *to < END);
        let mut found = Vec::new();
        for bound in &self.bindings[row] {
            match *bound {
                Bound::Nothing => found.push(None),
                Bound::Memory => found.push(in_memory(Some((page, Rights::ALL)))),
                Bound::Second(root, _) => found.extend(seen(1, root, page)),
                Bound::First(root, _) => {
                    found.extend(seen(0, root, page).into_iter().map(in_memory));
                }
                Bound::Nested(first, second, _) => {
                    for leaf in seen(0, first, page) {
                        let Some((to, upper)) = leaf else {
                            found.push(None);
                            continue;
                        };
                        found.extend(seen(1, second, to).into_iter().map(|below| {
                            // What can only be read is not mapped below.
                            let (to, lower) = below.filter(|(_, rights)| rights.write)?;
                            let rights = Rights {
                                read: lower.read,
                                write: upper.write,
                            };
                            (rights != Rights::NONE).then_some((to, rights))
                        }));
                    }
                }
            }
        }
        found.dedup();
        found
    }

    fn look(&self, dma: impl Fn(HostDeviceId, Option<Pasid>, u64) -> Leaf, exact: bool) {
        for row in 0..ROWS {
            let requester = Requester::at(row);
            let Some(id) = self.ids[requester.device] else {
                continue;
            };
            let in_group = self.in_group(row);
            for page in looked_at() {
                let is = dma(id, requester.host_pasid(), page);
                let permitted = self.permitted(row, page);
                let (permitted, exact) = match in_group {
                    InGroup::Blocked if exact => (vec![None], true),
                    InGroup::Unknown => (permitted, false),
                    _ => (permitted, exact),
                };
                check_reach(&format!("{requester:?}"), page, is, &permitted, exact);
            }
        }
    }
}

/// The requesters of a device.
fn rows(device: usize) -> std::ops::Range<usize> {
    let first = device * Requester::PER_DEVICE;
    first..first + Requester::PER_DEVICE
}

fn roots() -> impl Iterator<Item = (usize, usize)> {
    (0..2).flat_map(|stage| (0..ROOTS).map(move |root| (stage, root)))
}

#[derive(Clone, Debug)]
enum Step {
    Leaf {
        stage: usize,
        root: usize,
        page: usize,
        leaf: Option<(usize, u64)>,
    },
    Enter(usize, Bound),
    Invalidate(Vec<Said>),
    Enable(bool),
    Remove(usize),
    Add(usize),
    Fail(u64, i32),
    Heal,
}

#[derive(Clone, Debug)]
enum Said {
    Entries,
    PasidEntries,
    PasidEntry(u16, u32),
    DomainEntries(u16),
    All,
    Global,
    Domain(u16),
    Pasid(u16, u32),
    FirstPages(u16, u32, usize, u8),
    DeviceTlb(usize, usize, u8),
    SecondPages(u16, usize, u8),
}

fn domain() -> impl Strategy<Value = u16> {
    10_u16..14
}

fn pasid() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0), Just(7), Just(70)]
}

fn bound() -> impl Strategy<Value = Bound> {
    let root = || 0..ROOTS;
    prop_oneof![
        1 => Just(Bound::Nothing),
        1 => Just(Bound::Memory),
        2 => (root(), domain()).prop_map(|(root, domain)| Bound::Second(root, domain)),
        5 => (root(), domain()).prop_map(|(root, domain)| Bound::First(root, domain)),
        5 => (root(), root(), domain()).prop_map(|(first, second, domain)| Bound::Nested(first, second, domain)),
    ]
}

fn said() -> impl Strategy<Value = Said> {
    prop_oneof![
        2 => Just(Said::Entries),
        1 => Just(Said::PasidEntries),
        4 => (domain(), pasid()).prop_map(|(domain, pasid)| Said::PasidEntry(domain, pasid)),
        2 => domain().prop_map(Said::DomainEntries),
        1 => Just(Said::All),
        1 => Just(Said::Global),
        2 => domain().prop_map(Said::Domain),
        3 => (domain(), pasid()).prop_map(|(domain, pasid)| Said::Pasid(domain, pasid)),
        8 => (domain(), pasid(), 0_usize..6, 0_u8..4)
            .prop_map(|(domain, pasid, page, mask)| Said::FirstPages(domain, pasid, page, mask)),
        2 => (0..ROWS, 0_usize..6, 0_u8..4).prop_map(|(row, page, mask)| Said::DeviceTlb(row, page, mask)),
        5 => (domain(), 0_usize..5, 0_u8..4).prop_map(|(domain, page, mask)| Said::SecondPages(domain, page, mask)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let error = prop_oneof![
        Just(errno::ENOMEM),
        Just(errno::EINVAL),
        Just(errno::EBUSY),
        Just(errno::ENOENT)
    ];
    prop_oneof![
        14 => (0_usize..2, 0..ROOTS, 0_usize..6, proptest::option::weighted(0.7, (0_usize..9, 0_u64..4)))
            .prop_map(|(stage, root, page, leaf)| Step::Leaf { stage, root, page, leaf }),
        6 => (0..ROWS, bound()).prop_map(|(row, bound)| Step::Enter(row, bound)),
        16 => vec(said(), 1..5).prop_map(Step::Invalidate),
        1 => any::<bool>().prop_map(Step::Enable),
        1 => (0..DEVICES).prop_map(Step::Remove),
        2 => (0..DEVICES).prop_map(Step::Add),
        2 => (0_u64..12, error).prop_map(|(after, error)| Step::Fail(after, error)),
        2 => Just(Step::Heal),
    ]
}

struct Run {
    guest: Guest,
    pagings: [[Paging; ROOTS]; 2],
    model: Arc<Mutex<Model>>,
    exact: bool,
}

impl Run {
    fn new(grouped: bool) -> Self {
        let guest = Guest::new(Limits::default());
        let world = &guest.world;
        let begin = world.page();
        let first = [4, 4].map(|levels| world.first_stage(levels));
        for paging in &first {
            first_pages().for_each(|page| {
                world.slot(paging, page, 1);
            });
        }
        let end = world.page();
        let second = [4, 3].map(|levels| world.second_stage(levels));
        for paging in &second {
            second_pages().for_each(|page| {
                world.slot(paging, page, 1);
            });
            // First-stage tables are where they are in both.
            for table in (begin..end).step_by(0x1000) {
                world.map(paging, table, 1, table | 3);
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
            pagings: [first, second],
            model,
            exact: true,
        };
        run.with(Model::written);
        (0..DEVICES).for_each(|device| run.add(device));
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
            for row in rows(device) {
                model.bindings[row] = vec![Bound::Nothing, model.now(row)];
                for (stage, root) in roots() {
                    model.forget(row, stage, root, |_| true);
                }
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

    fn remove(&self, device: usize) {
        // It reaches what the others of its group do from here on.
        let is_grouped = device < 2 && self.with(|model| model.grouped);
        if is_grouped {
            self.with(|model| model.ids[device] = None);
        }
        self.guest.devices.remove(SOURCES[device]);
        self.with(|model| model.ids[device] = None);
    }

    fn leaf(&self, stage: usize, root: usize, page: usize, leaf: Option<(usize, u64)>) {
        let pages: Vec<_> = match stage {
            0 => first_pages().collect(),
            _ => second_pages().collect(),
        };
        let page = pages[page % pages.len()];
        let outputs: Vec<u64> = match stage {
            0 => second_pages().chain(memory_pages()).collect(),
            _ => memory_pages().collect(),
        };
        let (entry, leaf) = match leaf {
            None => (0, None),
            Some((output, flags)) => {
                let output = outputs[output % outputs.len()];
                let rights = if stage == 0 {
                    Rights {
                        read: true,
                        write: flags & 2 != 0,
                    }
                } else {
                    Rights {
                        read: flags & 1 != 0,
                        write: flags & 2 != 0,
                    }
                };
                let bits = if stage == 0 { flags | 5 } else { flags };
                (
                    output | bits,
                    (rights != Rights::NONE).then_some((output, rights)),
                )
            }
        };
        self.guest
            .world
            .map(&self.pagings[stage][root], page, 1, entry);
        self.with(|model| match leaf {
            Some(leaf) => model.leaves[stage][root].insert(page, leaf),
            None => model.leaves[stage][root].remove(&page),
        });
    }

    fn enter(&self, row: usize, bound: Bound) {
        let requester = Requester::at(row);
        let [first, second] = &self.pagings;
        let words = match bound {
            Bound::Nothing => entry::NOTHING,
            Bound::Memory => entry::PASS_THROUGH,
            Bound::Second(root, domain) => entry::second_stage(&second[root], domain.into()),
            Bound::First(root, domain) => entry::first_stage(first[root].top, domain.into()),
            Bound::Nested(upper, lower, domain) => {
                entry::nested(first[upper].top, &second[lower], domain.into())
            }
        };
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
            model.entries_invalidated(|_, _| true);
            model.invalidated(0, None, None, |_| true);
            model.invalidated(1, None, None, |_| true);
        });
    }

    fn invalidate(&self, said: &[Said]) {
        let block = |page: u64, mask: u8| page & !((0x1000 << mask) - 1);
        let first = |page: usize| first_pages().nth(page).unwrap();
        let second = |page: usize| second_pages().nth(page).unwrap();
        let list: Vec<_> = said
            .iter()
            .map(|said| match *said {
                Said::Entries => CONTEXT,
                Said::PasidEntries => Invalidation::PasidCache(PasidCacheScope::Global),
                Said::PasidEntry(domain, pasid) => {
                    Invalidation::PasidCache(PasidCacheScope::Pasid(domain, pasid))
                }
                Said::DomainEntries(domain) => {
                    Invalidation::PasidCache(PasidCacheScope::Domain(domain))
                }
                Said::All => Invalidation::All,
                Said::Global => Invalidation::Iotlb(IotlbScope::Global),
                Said::Domain(domain) => Invalidation::Iotlb(IotlbScope::Domain(domain)),
                Said::Pasid(domain, pasid) => pasid_all(domain, pasid),
                Said::FirstPages(domain, pasid, page, mask) => {
                    pasid_pages(domain, pasid, block(first(page), mask), mask)
                }
                Said::DeviceTlb(row, page, mask) => {
                    let requester = Requester::at(row);
                    let target = match requester.host_pasid() {
                        None => DeviceTlbTarget::WithoutPasid,
                        Some(pasid) => DeviceTlbTarget::Pasid(pasid),
                    };
                    Invalidation::DeviceTlb {
                        source: SOURCES[requester.device],
                        invalidation: DeviceTlbInvalidation {
                            target,
                            address: block(first(page), mask),
                            shift: 12 + mask,
                        },
                    }
                }
                Said::SecondPages(domain, page, mask) => {
                    pages(domain, block(second(page), mask), mask)
                }
            })
            .collect();
        self.guest.invalidate(&list);
        self.with(|model| {
            for said in said {
                match *said {
                    Said::Entries
                    | Said::PasidEntries
                    | Said::PasidEntry(..)
                    | Said::DomainEntries(_)
                    // What devices keep themselves is not modelled.
                    | Said::DeviceTlb(..) => {}
                    Said::All | Said::Global => {
                        model.invalidated(0, None, None, |_| true);
                        model.invalidated(1, None, None, |_| true);
                    }
                    Said::Domain(domain) => {
                        model.invalidated(0, Some(domain), None, |_| true);
                        model.invalidated(1, Some(domain), None, |_| true);
                    }
                    Said::Pasid(domain, pasid) => {
                        model.invalidated(0, Some(domain), Some(pasid), |_| true);
                        model.invalidated(1, Some(domain), Some(pasid), |_| true);
                    }
                    Said::FirstPages(domain, pasid, page, mask) => {
                        let start = block(first(page), mask);
                        let range = start..start + (0x1000 << mask);
                        model.invalidated(0, Some(domain), Some(pasid), |page| {
                            range.contains(&page)
                        });
                    }
                    Said::SecondPages(domain, page, mask) => {
                        let start = block(second(page), mask);
                        let range = start..start + (0x1000 << mask);
                        model.invalidated(0, Some(domain), None, |_| true);
                        model.invalidated(1, Some(domain), None, |page| range.contains(&page));
                    }
                }
            }
            // Of requests without PASID all entries are looked at, whichever are named.
            model.entries_invalidated(|requester, was| {
                said.iter().any(|said| match *said {
                    Said::Entries | Said::PasidEntries | Said::All => true,
                    Said::PasidEntry(_, pasid) => requester.pasid.is_none() || requester.has(pasid),
                    Said::DomainEntries(domain) => {
                        requester.pasid.is_none() || was.domain() == Some(domain)
                    }
                    _ => false,
                })
            });
        });
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Leaf {
                stage,
                root,
                page,
                leaf,
            } => self.leaf(*stage, *root, *page, *leaf),
            Step::Enter(device, bound) => self.enter(*device, *bound),
            Step::Invalidate(said) => self.invalidate(said),
            Step::Enable(enabled) => self.enable(*enabled),
            Step::Remove(device) => {
                self.remove(*device);
            }
            Step::Add(device) => self.add(*device),
            Step::Fail(after, error) => {
                self.guest.host.fail_after(*after, *error);
                self.exact = false;
            }
            Step::Heal => {
                self.guest.host.fail_no_more();
                self.exact = true;
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
}

static STEPS: AtomicUsize = AtomicUsize::new(0);

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(cases()) })]

    #[test]
    fn devices_behind_first_stage_tables_reach_what_the_guest_permitted_and_nothing_else(
        steps in vec(step(), 1..100),
        grouped in any::<bool>(),
        impatience in prop_oneof![Just(0), 1_u64..3000],
    ) {
        let mut run = Run::new(grouped);
        run.guest.impatience.set(impatience);
        for step in &steps {
            run.take(step);
        }
        run.guest.host.fail_no_more();
        for device in 0..DEVICES {
            run.remove(device);
        }
        run.guest.add(SOURCES[3], NESTING);
        run.guest.devices.remove(SOURCES[3]);
        prop_assert_eq!(run.guest.host.objects(), 0);
        prop_assert_eq!(run.guest.devices.nested(), 0);
        prop_assert_eq!(run.guest.devices.mapped(), (0, 0));
        let steps = STEPS.fetch_add(steps.len(), Ordering::Relaxed) + steps.len();
        println!("{steps} steps so far");
    }
}
