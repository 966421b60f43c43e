//! The explanation of an address: the entries that its translation reads, and how it ends.

use std::fmt;

use super::bindings::Blocked;
use super::entry::{EntryKind, SecondStageInput, Size, Step};
use super::recorder::Recorder;
use crate::memory::TableMemory;
use crate::spec::first_stage::FirstStageEntry;
use crate::spec::ids::{Pasid, SourceId};
use crate::spec::registers::TableMode;
use crate::spec::second_stage::SecondStageEntry;
use crate::translate::{Access, Binding, Fault, GuestTables, Latched, Request, Translation};

/// How untranslated requests for one address fare.
///
/// Everything in it was found out from the same words, even while the guest changes its tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// Who asks.
    pub source: SourceId,
    /// In which address space; `None` for requests without PASID.
    pub pasid: Option<Pasid>,
    /// For which address.
    pub address: u64,
    /// What the guest had latched.
    pub latched: Latched,
    /// What translates; [`Binding::Blocked`] if root, context, PASID directory or PASID entry end
    /// the request.
    pub binding: Binding,
    /// The entries that are read, in order: at most 4 structures, and 35 of a nested walk.
    pub steps: Vec<Step>,
    /// What is permitted at the address, or why the walk ends, whatever the access.
    pub outcome: Result<Translation, Fault>,
    /// Whether a read gets through, with the fault if not.
    pub read: Result<(), Fault>,
    /// Whether a write gets through, with the fault if not.
    pub write: Result<(), Fault>,
}

/// Explains requests of `source`, with `pasid` or without, for `address`.
///
/// It has no effect on anything: no fault is recorded, and no accessed or dirty bit is set,
/// although its answers are those that a device gets, for which they are.
pub fn explain<T: TableMemory>(
    tables: &GuestTables<'_, T>,
    source: SourceId,
    pasid: Option<Pasid>,
    address: u64,
) -> Explanation {
    let (gates, latched) = (tables.gates(), *tables.latched());
    let tables = tables.in_memory(Recorder::new(tables.memory()));
    let request = |access| Request {
        pasid,
        ..Request::untranslated(source, address, access)
    };
    let outcome = tables.probe(&request(Access::Read));
    // What an access reads, the probe has read before, so the following agrees with it.
    let reads = tables.memory().reads();
    let binding = tables.binding(source, pasid);
    let attempt = |access| tables.translate(&request(access)).map(|_| ());

    let scalable = latched.root.mode != TableMode::Legacy;
    let mut next = Some(EntryKind::Root);
    let steps = reads
        .into_iter()
        .map_while(|read| {
            let kind = next?;
            let words = read.words.unwrap_or_default();
            let word = words.first().copied().unwrap_or(0);
            next = after(kind, word, scalable, &binding);
            let devfn = source.devfn();
            Some(Step::decode(
                kind,
                read.address,
                words,
                gates,
                scalable,
                devfn,
            ))
        })
        .collect();
    Explanation {
        source,
        pasid,
        address,
        latched,
        binding,
        steps,
        outcome,
        read: attempt(Access::Read),
        write: attempt(Access::Write),
    }
}

/// What a translation reads after an entry of `kind` that begins with `word`, if it goes on.
fn after(kind: EntryKind, word: u64, scalable: bool, binding: &Binding) -> Option<EntryKind> {
    let second = match binding {
        Binding::Nested(_, second) => Some(second),
        _ => None,
    };
    // The first-stage entry of `level`, or what finds out where it is.
    let first = |level| match second {
        None => EntryKind::FirstStage { level },
        Some(second) => EntryKind::SecondStage {
            level: second.levels,
            of: SecondStageInput::FirstStageEntry { level },
        },
    };
    match kind {
        EntryKind::Root => Some(EntryKind::Context),
        EntryKind::Context if scalable => Some(EntryKind::PasidDirectory),
        EntryKind::PasidDirectory => Some(EntryKind::PasidEntry),
        EntryKind::Context | EntryKind::PasidEntry => match binding {
            Binding::Blocked | Binding::PassThrough => None,
            Binding::SecondStage(stage) => Some(EntryKind::SecondStage {
                level: stage.levels,
                of: SecondStageInput::Request,
            }),
            Binding::FirstStage(stage) | Binding::Nested(stage, _) => Some(first(stage.levels)),
        },
        EntryKind::SecondStage { level, of } if !SecondStageEntry(word).is_leaf(level) => {
            let level = level.checked_sub(1)?;
            Some(EntryKind::SecondStage { level, of })
        }
        EntryKind::SecondStage { of, .. } => match of {
            SecondStageInput::Request | SecondStageInput::Page => None,
            SecondStageInput::FirstStageEntry { level } => Some(EntryKind::FirstStage { level }),
        },
        EntryKind::FirstStage { level } if !FirstStageEntry(word).is_leaf(level) => {
            Some(first(level.checked_sub(1)?))
        }
        EntryKind::FirstStage { .. } => second.map(|second| EntryKind::SecondStage {
            level: second.levels,
            of: SecondStageInput::Page,
        }),
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.source)?;
        if let Some(pasid) = self.pasid {
            write!(f, " PASID {pasid}")?;
        }
        writeln!(f, " address {:#x}: {}", self.address, self.binding)?;
        for step in &self.steps {
            writeln!(f, "  {step}")?;
        }
        match &self.outcome {
            Ok(found) => {
                let rights = match (found.readable, found.writable) {
                    (true, true) => "read, write",
                    (true, false) => "read only",
                    (false, true) => "write only",
                    (false, false) => "nothing",
                };
                writeln!(
                    f,
                    "goes to {:#x}, block of {}, permits: {rights}",
                    found.address,
                    Size(found.page_shift)
                )?;
            }
            Err(fault) => return writeln!(f, "{}", Blocked(fault)),
        }
        for (access, outcome) in [("reads", &self.read), ("writes", &self.write)] {
            if let Err(fault) = outcome {
                writeln!(f, "{access} are {}", Blocked(fault))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod explain_test;
