//! The interface of a PCI function, and of the sinks that its interrupts go to.

use state::{RestoreError, SaveError, Section};

use crate::bar::{BarKind, BarWindow};
use crate::bdf::Bdf;
use crate::config::ConfigChange;

/// Where a function's message-signalled interrupts go: a memory write to the interrupt address
/// range, from a requester.
pub trait MsiSink: Send + Sync {
    /// Delivers the write of `data` to `address` by `requester`. Does not block.
    fn signal(&self, requester: Bdf, address: u64, data: u32);
}

/// Where a function's INTx pin goes.
pub trait IntxSink: Send + Sync {
    /// Sets the pin's level; repeating a level changes nothing.
    fn set_level(&self, asserted: bool);
}

/// One PCI function. All methods may be called from several vCPU threads at once.
///
/// What has to do with BARs is ready for functions that have none; one with BARs implements all of
/// it.
pub trait PciFunction: Send + Sync {
    /// Reads configuration space at `offset` (below 4096).
    fn read_config(&self, offset: u16, data: &mut [u8]);

    /// Writes configuration space at `offset`. The function applies what the write means for itself
    /// (bus-master gate, MSI-X control, function-level reset) before it returns; the root
    /// complex decodes anew when the change asks for it.
    fn write_config(&self, offset: u16, data: &[u8]) -> ConfigChange;

    /// Reads BAR `bar` at `offset`. `offset + data.len()` may exceed the BAR only through a
    /// caller's mistake.
    fn read_bar(&self, bar: usize, offset: u64, data: &mut [u8]) {
        let _ = (bar, offset);
        data.fill(0xff);
    }

    /// Writes BAR `bar` at `offset`.
    fn write_bar(&self, bar: usize, offset: u64, data: &[u8]) {
        let _ = (bar, offset, data);
    }

    /// The windows that the function decodes now: none while Memory Space is disabled.
    fn windows(&self) -> Vec<BarWindow> {
        Vec::new()
    }

    /// The BARs that exist: index, kind, size in bytes.
    fn bar_sizes(&self) -> Vec<(usize, BarKind, u64)> {
        Vec::new()
    }

    /// Sets a BAR's address, as firmware does before the operating system starts.
    fn assign_bar(&self, bar: usize, address: u64) {
        let _ = (bar, address);
    }

    /// Tells which windows accesses reach whole: the part of [`windows`](Self::windows) that lies
    /// in an aperture and is covered by no other function. Called after each change, in order,
    /// under the root complex's decode lock: an implementation must not call into the root
    /// complex.
    fn windows_changed(&self, windows: &[BarWindow]) {
        let _ = windows;
    }

    /// Tells work in flight to stop, without waiting for it: a [`reset`](Self::reset) follows, and
    /// other functions are told before that, so that all of them stop at the same time.
    fn quiesce(&self) {}

    /// Whether [`park`](Self::park) can stop the function.
    ///
    /// # Errors
    /// Why not: who else acts for it, which would go on.
    fn parkable(&self) -> Result<(), String> {
        Ok(())
    }

    /// Has the function begin nothing by itself any more until [`resume`](Self::resume): no access to
    /// memory, no interrupt. It keeps everything, as opposed to a reset. Does not wait for what it has
    /// begun. No vCPU runs from before this until after the resume.
    fn park(&self) {}

    /// Whether what it had begun before [`park`](Self::park) is over.
    ///
    /// # Errors
    /// What it is still busy with.
    fn parked(&self) -> Result<(), String> {
        Ok(())
    }

    /// Goes on after [`park`](Self::park), whether that has come to an end or not, as if no time had
    /// passed.
    fn resume(&self) {}

    /// What the function is like at the moment: all that a guest can tell apart. Called only while it
    /// does nothing by itself, and is not asked to.
    ///
    /// # Errors
    /// It cannot be saved: why, and what to do.
    fn save(&self) -> Result<Section, SaveError> {
        Err(SaveError::new("such a function cannot be saved"))
    }

    /// Makes a function that was just created, and does nothing yet, like the one that was
    /// [saved](Self::save). It sends no interrupt for that. Its windows are decoded later, its lines
    /// driven at once.
    ///
    /// # Errors
    /// `section` is not of such a function. Nothing is to be done with this one then.
    fn restore(&self, section: &Section) -> Result<(), RestoreError> {
        let _ = section;
        Err(RestoreError::Missing)
    }

    /// Platform reset: back to the power-on state, with work in flight stopped.
    fn reset(&self);

    /// Whether nothing that began before the last [`reset`](Self::reset) touches guest memory any
    /// more. A reset does not wait for ever for a host that does not answer.
    fn is_quiet(&self) -> bool {
        true
    }
}
