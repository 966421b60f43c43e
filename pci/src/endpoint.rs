//! A function behind a root port, as the rest of the machine sees it: reachable only while the
//! port's link is up, and an endpoint with a link even if the device model describes itself as part
//! of the root complex.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;
use state::{RestoreError, SaveError, Section};

use crate::bar::{BarKind, BarWindow};
use crate::bdf::Bdf;
use crate::capability::id;
use crate::capability::pcie::{CAPABILITIES, LINK_CAPABILITIES, LINK_CAPABILITIES_2, LINK_CONTROL};
use crate::config::ConfigChange;
use crate::function::PciFunction;
use crate::header::CAPABILITIES_POINTER;

/// As many capabilities as fit below 0x100; a longer list is a loop.
const MOST_CAPABILITIES: usize = 48;

/// Bits 7:4 of the PCI Express Capabilities register: device/port type.
const TYPE_BITS: u8 = 0xf0;
const TYPE_INTEGRATED_ENDPOINT: u8 = 0x90;

/// What an endpoint on a 2.5 GT/s link of one lane has in the registers that are hardwired to zero
/// in an integrated endpoint: Link Capabilities with ASPM optionality, Link Control (zero) with
/// Link Status, Link Capabilities 2.
const LINK_REGISTERS: [(u16, [u8; 4]); 3] = [
    (LINK_CAPABILITIES, [0x11, 0x00, 0x40, 0x00]),
    (LINK_CONTROL, [0x00, 0x00, 0x11, 0x00]),
    (LINK_CAPABILITIES_2, [0x02, 0x00, 0x00, 0x00]),
];

/// The function in a port's slot.
pub(crate) struct Endpoint {
    /// Its address, by the bus number that firmware gives the port.
    pub(crate) address: Bdf,
    pub(crate) function: Arc<dyn PciFunction>,
    /// Offset of the PCI Express capability, if it describes an integrated endpoint.
    integrated: Option<u16>,
    /// Held for reading while an access is under way, so that none is after the link went down.
    link_up: RwLock<bool>,
    /// The same for those who only look, and wait for no access.
    shows: AtomicBool,
}

impl Endpoint {
    pub(crate) fn new(address: Bdf, function: Arc<dyn PciFunction>) -> Arc<Self> {
        let integrated = integrated_endpoint(&*function);
        Arc::new(Self {
            address,
            function,
            integrated,
            link_up: RwLock::new(false),
            shows: AtomicBool::new(false),
        })
    }

    /// Lets accesses through, or stops them: none is under way when this returns.
    pub(crate) fn set_link_up(&self, up: bool) {
        let mut link = self.link_up.write();
        *link = up;
        self.shows.store(up, Ordering::Release);
    }

    /// Whether an access is under way.
    #[cfg(test)]
    pub(crate) fn is_in_use(&self) -> bool {
        self.link_up.try_write().is_none()
    }

    fn with_link<T>(&self, access: impl FnOnce(&dyn PciFunction) -> T) -> Option<T> {
        let up = self.link_up.read();
        up.then(|| access(&*self.function))
    }

    /// Replaces what an integrated endpoint's PCI Express capability says by what an endpoint's
    /// says.
    fn show_link(&self, pcie: u16, offset: u16, data: &mut [u8]) {
        let mut replace = |register: u16, change: &dyn Fn(u8) -> u8| {
            let index = usize::from(pcie + register).checked_sub(usize::from(offset));
            if let Some(byte) = index.and_then(|index| data.get_mut(index)) {
                *byte = change(*byte);
            }
        };
        replace(CAPABILITIES, &|byte| byte & !TYPE_BITS);
        for (register, bytes) in LINK_REGISTERS {
            for (at, value) in (register..).zip(bytes) {
                replace(at, &|_| value);
            }
        }
    }
}

/// The PCI Express capability of `function`, if it says that the function is an integrated
/// endpoint.
fn integrated_endpoint(function: &dyn PciFunction) -> Option<u16> {
    let read = |offset: u16| {
        let mut data = [0; 3];
        function.read_config(offset, &mut data);
        data
    };
    let [mut next, ..] = read(CAPABILITIES_POINTER);
    for _ in 0..MOST_CAPABILITIES {
        let offset = u16::from(next & !3);
        if offset == 0 {
            return None;
        }
        let [found, following, kind] = read(offset);
        if found == id::PCIE {
            return (kind & TYPE_BITS == TYPE_INTEGRATED_ENDPOINT).then_some(offset);
        }
        next = following;
    }
    None
}

impl PciFunction for Endpoint {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        let answered = self.with_link(|function| function.read_config(offset, data));
        match (answered, self.integrated) {
            (None, _) => data.fill(0xff),
            (Some(()), Some(pcie)) => self.show_link(pcie, offset, data),
            (Some(()), None) => {}
        }
    }

    fn write_config(&self, offset: u16, data: &[u8]) -> ConfigChange {
        self.with_link(|function| function.write_config(offset, data))
            .unwrap_or_default()
    }

    fn read_bar(&self, bar: usize, offset: u64, data: &mut [u8]) {
        let answered = self.with_link(|function| function.read_bar(bar, offset, data));
        if answered.is_none() {
            data.fill(0xff);
        }
    }

    fn write_bar(&self, bar: usize, offset: u64, data: &[u8]) {
        self.with_link(|function| function.write_bar(bar, offset, data));
    }

    fn windows(&self) -> Vec<BarWindow> {
        if self.shows.load(Ordering::Acquire) {
            self.function.windows()
        } else {
            Vec::new()
        }
    }

    fn bar_sizes(&self) -> Vec<(usize, BarKind, u64)> {
        self.function.bar_sizes()
    }

    fn assign_bar(&self, bar: usize, address: u64) {
        self.function.assign_bar(bar, address);
    }

    fn windows_changed(&self, windows: &[BarWindow]) {
        self.function.windows_changed(windows);
    }

    fn quiesce(&self) {
        self.function.quiesce();
    }

    fn parkable(&self) -> Result<(), String> {
        self.function.parkable()
    }

    fn park(&self) {
        self.function.park();
    }

    fn parked(&self) -> Result<(), String> {
        self.function.parked()
    }

    fn resume(&self) {
        self.function.resume();
    }

    fn save(&self) -> Result<Section, SaveError> {
        self.function.save()
    }

    fn restore(&self, section: &Section) -> Result<(), RestoreError> {
        self.function.restore(section)
    }

    fn reset(&self) {
        self.function.reset();
    }

    fn is_quiet(&self) -> bool {
        self.function.is_quiet()
    }
}
