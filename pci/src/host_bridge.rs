//! The host bridge at 00:00.0: nothing but an identity, so that software finds the bus populated.
//!
//! The ids 8086:0d57 are the ones under which other KVM-based VMMs show their host bridge; Linux
//! attaches no quirk to them.

use parking_lot::{Mutex, MutexGuard};
use state::{RestoreError, SaveError, Section};

use crate::builder::{ConfigBuilder, Identity};
use crate::config::{ConfigChange, ConfigSpace};
use crate::function::PciFunction;

/// What its state is called.
const KIND: &str = "host-bridge";
const VERSION: u32 = 1;

pub(crate) struct HostBridge {
    config: Mutex<ConfigSpace>,
}

impl HostBridge {
    pub(crate) fn new() -> Self {
        let identity = Identity {
            vendor: 0x8086,
            device: 0x0d57,
            class: [0x06, 0x00, 0x00],
            ..Identity::default()
        };
        Self {
            config: Mutex::new(ConfigBuilder::endpoint(identity).build()),
        }
    }

    fn config(&self) -> MutexGuard<'_, ConfigSpace> {
        self.config.lock()
    }
}

impl PciFunction for HostBridge {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.config().read(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) -> ConfigChange {
        self.config().write(offset, data)
    }

    fn save(&self) -> Result<Section, SaveError> {
        Section::new(KIND, VERSION, &self.config().save())
    }

    fn restore(&self, section: &Section) -> Result<(), RestoreError> {
        self.config().restore(&section.read(KIND, VERSION)?)
    }

    fn reset(&self) {
        self.config().reset();
    }
}
