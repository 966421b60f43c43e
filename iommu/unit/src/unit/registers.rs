//! The command registers, and what is asked for by writing to them (sections 11.4.4 to 11.4.8 and 6.5.2).
//!
//! Their lock is held for an access and no longer: what is asked for is noted, and carried out by
//! whoever has the lock of [`Execution`](super::execution::Execution).

use super::events::{Event, InterruptMessage};
use super::layout::command_registers;
use super::register_file::RegisterFile;
use crate::spec::registers::{
    Caps, ContextCommand, GlobalCommand, InterruptTableAddress, IotlbInvalidate, RootTableAddress,
    offset,
};
use crate::translate::RootPointer;

const COMPLETION_EVENT: Event = Event::new(offset::IECTL);

/// All registers but those of the fault log and of the page-request queue, and what is to be done.
pub(crate) struct Registers {
    pub(crate) file: RegisterFile,
    asked: Asked,
}

/// What software has asked for, and nobody has begun with.
#[derive(Debug, Default)]
struct Asked {
    global: Option<GlobalWork>,
    /// CCMD.ICC is set.
    context: bool,
    /// IOTLB_REG.IVT is set.
    iotlb: bool,
    /// Something has changed that may let the invalidation queue run.
    queue: bool,
}

/// One or more writes of GCMD.
///
/// Software is to wait for one before it makes the next (section 11.4.4). If it does not, the last
/// write says what is to be on and off, and no pointer is forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct GlobalWork {
    /// What is to be on.
    pub(super) levels: GlobalCommand,
    /// SRTP: RTADDR when it was asked for.
    pub(super) root: Option<RootPointer>,
    /// SIRTP: IRTA when it was asked for.
    pub(super) table: Option<InterruptTableAddress>,
}

/// Something to carry out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Work {
    Global(GlobalWork),
    Context,
    Iotlb,
    Queue,
}

impl Registers {
    pub(super) fn new(caps: &Caps) -> Self {
        Self {
            file: RegisterFile::new(&command_registers(caps)),
            asked: Asked::default(),
        }
    }

    pub(super) fn reset(&mut self) {
        self.file.reset();
        self.asked = Asked::default();
    }

    /// Whether writing the word at `at` may ask for something.
    pub(super) const fn is_command(at: u16) -> bool {
        const CONTEXT: u16 = offset::CCMD + 4;
        const IOTLB: u16 = offset::IOTLB + 4;
        matches!(at, offset::GCMD | offset::IQT | CONTEXT | IOTLB)
    }

    /// What software writes. A message is to be delivered after the lock is released.
    #[must_use]
    pub(super) fn store(&mut self, at: u16, value: u32) -> Option<InterruptMessage> {
        if self.is_busy(at) {
            return None;
        }
        self.file.store(at, value);
        match at {
            offset::GCMD => self.ask_global(GlobalCommand::from_bits(value)),
            at if at == offset::CCMD + 4 => self.asked.context = self.context_asked(),
            at if at == offset::IOTLB + 4 => self.asked.iotlb = self.iotlb_asked(),
            offset::IQT => self.asked.queue = true,
            offset::ICS if self.file.get(offset::ICS) & 1 == 0 => {
                COMPLETION_EVENT.withdraw(&mut self.file);
            }
            offset::IECTL => return COMPLETION_EVENT.control_written(&mut self.file),
            _ => {}
        }
        None
    }

    /// Whether the register takes nothing until an invalidation that it asked for is carried out:
    /// software must not write it then (sections 11.4.7 and 11.4.8).
    fn is_busy(&self, at: u16) -> bool {
        match at & !4 {
            offset::CCMD => self.context_asked(),
            offset::IOTLB | offset::IVA => self.iotlb_asked(),
            _ => false,
        }
    }

    fn context_asked(&self) -> bool {
        ContextCommand::from_bits(self.file.get_quad(offset::CCMD)).invalidate()
    }

    fn iotlb_asked(&self) -> bool {
        IotlbInvalidate::from_bits(self.file.get_quad(offset::IOTLB)).invalidate()
    }

    /// GSTS, whose bits lie where GCMD has them.
    pub(super) fn status(&self) -> GlobalCommand {
        GlobalCommand::from_bits(self.file.get(offset::GSTS))
    }

    /// Shows `status`, but for pointers that software wants set once more. Returns what is shown.
    ///
    /// RTPS and IRTPS are clear from the write that asks for one until it is set (section 11.4.5).
    pub(super) fn set_status(&mut self, status: GlobalCommand) -> u32 {
        let asked = self.asked.global;
        let awaits_root = asked.is_some_and(|asked| asked.root.is_some());
        let awaits_table = asked.is_some_and(|asked| asked.table.is_some());
        let shown = status
            .with_srtp(status.srtp() && !awaits_root)
            .with_sirtp(status.sirtp() && !awaits_table)
            .into_bits();
        self.file.set(offset::GSTS, shown);
        shown
    }

    fn ask_global(&mut self, levels: GlobalCommand) {
        let root = RootTableAddress::from_bits(self.file.get_quad(offset::RTADDR));
        let table = InterruptTableAddress::from_bits(self.file.get_quad(offset::IRTA));
        let now = GlobalWork {
            levels,
            root: levels.srtp().then(|| RootPointer::of(root)),
            table: levels.sirtp().then_some(table),
        };
        let earlier = self.asked.global;
        self.asked.global = Some(earlier.map_or(now, |earlier| earlier.then(now)));
        self.set_status(self.status());
    }

    /// The queue may go on where it stands: an error was cleared, it was switched on, or there is
    /// more of it.
    pub(super) const fn ask_queue(&mut self) {
        self.asked.queue = true;
    }

    /// Whether there is something to do.
    pub(super) const fn has_work(&self) -> bool {
        self.asked.queue || self.has_command()
    }

    /// Whether there is something to do before the queue goes on.
    pub(super) const fn has_command(&self) -> bool {
        self.asked.global.is_some() || self.asked.context || self.asked.iotlb
    }

    /// Takes what is to be done next.
    pub(super) fn next(&mut self) -> Option<Work> {
        if let Some(global) = self.asked.global.take() {
            return Some(Work::Global(global));
        }
        let taken = |asked: &mut bool| std::mem::take(asked);
        if taken(&mut self.asked.context) {
            Some(Work::Context)
        } else if taken(&mut self.asked.iotlb) {
            Some(Work::Iotlb)
        } else if taken(&mut self.asked.queue) {
            Some(Work::Queue)
        } else {
            None
        }
    }

    /// It was not carried out, or not all of it: it comes first when somebody goes on.
    pub(super) fn put_back(&mut self, work: Work) {
        match work {
            Work::Global(work) => {
                let later = self.asked.global;
                self.asked.global = Some(later.map_or(work, |later| work.then(later)));
            }
            Work::Context => self.asked.context = true,
            Work::Iotlb => self.asked.iotlb = true,
            Work::Queue => self.asked.queue = true,
        }
    }

    /// Sets ICS.IWC. It is an event only if it was clear.
    #[must_use]
    pub(super) fn wait_completed(&mut self) -> Option<InterruptMessage> {
        if self.file.get(offset::ICS) & 1 != 0 {
            return None;
        }
        self.file.set(offset::ICS, 1);
        COMPLETION_EVENT.raise(&mut self.file)
    }
}

impl GlobalWork {
    /// Both, `later` after this one.
    fn then(self, later: Self) -> Self {
        Self {
            levels: later.levels,
            root: later.root.or(self.root),
            table: later.table.or(self.table),
        }
    }
}

#[cfg(test)]
mod registers_test;
