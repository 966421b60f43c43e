//! A function for tests.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;
use state::{RestoreError, SaveError, Section};

use crate::{BarKind, BarWindow, ConfigBuilder, ConfigChange, ConfigSpace, Identity, PciFunction};

/// A function that remembers what reached it, and answers BAR reads with its name.
pub(crate) struct Probe {
    name: u8,
    config: Mutex<ConfigSpace>,
    pub(crate) writes: Mutex<Vec<(usize, u64, Vec<u8>)>>,
    told: Mutex<Vec<Vec<BarWindow>>>,
    pub(crate) resets: AtomicU32,
    /// While a test has this, neither resets nor configuration writes end.
    pub(crate) hold: Mutex<()>,
}

impl Probe {
    pub(crate) fn new(name: u8, bars: &[(usize, BarKind, u64)]) -> Arc<Self> {
        let mut builder = ConfigBuilder::endpoint(Identity {
            vendor: 0x1234,
            device: name.into(),
            ..Identity::default()
        });
        for (index, kind, size) in bars {
            builder.add_bar(*index, *kind, *size);
        }
        builder.add_pcie_endpoint();
        let config = Mutex::new(builder.build());
        Arc::new(Self {
            name,
            config,
            writes: Mutex::default(),
            told: Mutex::default(),
            resets: AtomicU32::new(0),
            hold: Mutex::default(),
        })
    }

    pub(crate) fn address(&self, bar: usize) -> Option<u64> {
        self.config.lock().bar_address(bar)
    }

    pub(crate) fn told(&self) -> Vec<Vec<BarWindow>> {
        std::mem::take(&mut self.told.lock())
    }
}

impl PciFunction for Probe {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.config.lock().read(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) -> ConfigChange {
        let _hold = self.hold.lock();
        let mut config = self.config.lock();
        let change = config.write(offset, data);
        if change.function_reset {
            config.reset();
        }
        change
    }

    fn read_bar(&self, _bar: usize, _offset: u64, data: &mut [u8]) {
        data.fill(self.name);
    }

    fn write_bar(&self, bar: usize, offset: u64, data: &[u8]) {
        self.writes.lock().push((bar, offset, data.to_vec()));
    }

    fn windows(&self) -> Vec<BarWindow> {
        self.config.lock().decoded_bars().collect()
    }

    fn bar_sizes(&self) -> Vec<(usize, BarKind, u64)> {
        self.config.lock().bar_sizes().collect()
    }

    fn assign_bar(&self, bar: usize, address: u64) {
        self.config.lock().set_bar_address(bar, address);
    }

    fn windows_changed(&self, windows: &[BarWindow]) {
        self.told.lock().push(windows.to_vec());
    }

    fn save(&self) -> Result<Section, SaveError> {
        Section::new("probe", 1, &self.config.lock().save())
    }

    fn restore(&self, section: &Section) -> Result<(), RestoreError> {
        self.config.lock().restore(&section.read("probe", 1)?)
    }

    fn reset(&self) {
        self.resets.fetch_add(1, Ordering::Relaxed);
        let _hold = self.hold.lock();
        self.config.lock().reset();
    }
}
