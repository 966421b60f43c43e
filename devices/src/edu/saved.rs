//! The state of an edu device. A command that waits for a page is carried: the request for the page is
//! the guest's to answer, whoever goes on with the command.

mod copy;
mod translations;

use pci::ConfigState;
use serde::{Deserialize, Serialize};
use state::{Bytes, RestoreError, SaveError, Section};

use super::Edu;
use super::registers::{BUFFER_SIZE, RegistersState};
use super::window::{Window, WindowState};
use copy::CopyState;
use translations::TranslationState;

const KIND: &str = "edu";
const VERSION: u32 = 1;
/// Page request group indexes have nine bits.
const GROUPS: u16 = 1 << 9;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EduState {
    config: ConfigState,
    dma_mask: u64,
    registers: RegistersState,
    buffer: Bytes,
    /// What is to be computed.
    factorial: Option<u32>,
    /// What is to be copied, or is being copied and waits for a page.
    copy: Option<CopyState>,
    /// The device-TLB, the oldest first.
    translations: Vec<TranslationState>,
    invalidations: u32,
    next_group: u16,
    /// A response came that answers nothing, which the guest has not seen yet.
    unexpected: bool,
    /// BAR 2, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    window: Option<WindowState>,
}

impl Edu {
    pub(super) fn save_function(&self) -> Result<Section, SaveError> {
        let shared = &self.shared;
        if !shared.is_parked() {
            return Err(SaveError::new("it is at work; pause the guest before"));
        }
        let inner = shared.inner.lock();
        let atc = &shared.link.atc;
        let (next_group, unexpected) = atc.page_state();
        let copy = match inner.running {
            Some(copy) => Some(CopyState::new(&copy, atc.carried())),
            None => {
                let carried = inner.carried.as_ref().and(atc.carried());
                inner.dma.map(|copy| CopyState::new(&copy, carried))
            }
        };
        let state = EduState {
            config: inner.config.save(),
            dma_mask: shared.fixed.dma_mask,
            registers: inner.registers.save(),
            buffer: Bytes::new(&inner.buffer[..]),
            factorial: inner.factorial,
            copy,
            translations: atc
                .translations()
                .iter()
                .map(TranslationState::new)
                .collect(),
            invalidations: atc.cached().invalidations,
            next_group,
            unexpected,
            window: inner.window.as_ref().map(Window::save),
        };
        drop(inner);
        Section::new(KIND, VERSION, &state)
    }

    /// Of a device that was just created. It begins nothing before it is told to go on.
    pub(super) fn restore_function(&self, section: &Section) -> Result<(), RestoreError> {
        let state: EduState = section.read(KIND, VERSION)?;
        let shared = &self.shared;
        let [saved, here] =
            [state.dma_mask, shared.fixed.dma_mask].map(|mask| format!("{mask:#x}"));
        RestoreError::unless_equal("the mask of its addresses", saved, here)?;
        if state.next_group >= GROUPS {
            let why = format_args!("{} of {GROUPS}", state.next_group);
            return Err(RestoreError::damaged("the next page request's group", why));
        }
        let buffer = state.buffer.array::<BUFFER_SIZE>("the device's buffer")?;
        let translations = translations::read(&state.translations)?;
        shared.set_parking(true);
        let mut inner = shared.inner.lock();
        let [saved, here] = [state.window.is_some(), inner.window.is_some()];
        RestoreError::unless_equal("whether it has BAR 2", saved, here)?;
        inner.config.restore(&state.config)?;
        inner.registers.restore(&state.registers)?;
        let begun = inner.registers.is_computing();
        agree("a factorial", begun, state.factorial.is_some())?;
        agree("a copy", inner.registers.is_copying(), state.copy.is_some())?;
        let copy = state.copy.as_ref().map(|copy| {
            let features = inner.registers.extension.features;
            copy.read(features, shared.fixed.dma_mask)
        });
        let (copy, carried) = copy.transpose()?.unzip();
        let carried = carried.flatten();
        *inner.buffer = buffer;
        inner.window = state.window.as_ref().map(Window::restore).transpose()?;
        inner.factorial = state.factorial;
        inner.dma = copy;
        inner.carried.clone_from(&carried);
        let atc = &shared.link.atc;
        shared.update_capabilities(&mut inner);
        if !atc.restore(translations, state.invalidations) {
            let why = "address translation services are off";
            return Err(RestoreError::damaged("the device-TLB", why));
        }
        atc.restore_pages(state.next_group, state.unexpected, carried);
        shared.drive(&mut inner);
        Ok(())
    }
}

/// Whether what a register says is under way is what there is to be done.
fn agree(what: &str, register: bool, there: bool) -> Result<(), RestoreError> {
    if register == there {
        return Ok(());
    }
    let why = "the registers say something else about it";
    Err(RestoreError::damaged(what, why))
}

#[cfg(test)]
mod saved_test;
