//! The functions on the PCI bus.

use std::sync::Arc;

use anyhow::Context as _;
use devices::edu::Edu;
use devices::ioapic::IoApic;
use devices::virtio::VirtioDevice;
use devices::virtio::blk::{Block, BlockOptions};
use devices::virtio::console::{Console, ConsoleInput, ConsoleSender};
use devices::virtio::net::{Net, NetOptions};
use devices::virtio::pci::VirtioPci;
use devices::virtio::rng::Rng;
use devices::{Dma, Doorbells};
use iommu::SourceId;
use pci::{Bdf, MsiSink, PciFunction, RootComplex};

use super::standard_output;
use crate::config::{FunctionConfig, FunctionKind};
use crate::irq::Unit;
use crate::memory::Memory;

/// INTA#, the only pin that functions here use.
const INTA: u8 = 0;

/// What functions are wired to.
pub(super) struct Platform<'a> {
    pub(super) root: &'a RootComplex,
    pub(super) memory: &'a Memory,
    pub(super) unit: Option<&'a Arc<Unit>>,
    pub(super) ioapic: &'a Arc<IoApic>,
    pub(super) msi: Arc<dyn MsiSink>,
    pub(super) doorbells: Arc<dyn Doorbells>,
}

impl Platform<'_> {
    /// Creates all functions. Returns where to type, if one of them is a console.
    pub(super) fn add_functions(
        &self,
        functions: &[FunctionConfig],
    ) -> anyhow::Result<Option<ConsoleSender>> {
        let mut console = None;
        for (config, bdf) in functions.iter().zip(places(functions)) {
            let function = self.function(bdf, &config.kind, &mut console)?;
            self.root.add(bdf, function)?;
        }
        Ok(console)
    }

    fn function(
        &self,
        bdf: Bdf,
        kind: &FunctionKind,
        console: &mut Option<ConsoleSender>,
    ) -> anyhow::Result<Arc<dyn PciFunction>> {
        match kind {
            FunctionKind::Disk(disk) => {
                let options = BlockOptions {
                    path: disk.path.clone(),
                    readonly: disk.readonly,
                    serial: disk.id.clone(),
                };
                let block = Block::open(&options)
                    .with_context(|| format!("--disk path={}", disk.path.display()))?;
                self.virtio(bdf, block)
            }
            FunctionKind::Net(net) => {
                let options = NetOptions {
                    tap: net.tap.clone(),
                    mac: net.mac,
                };
                let net = Net::open(&options).with_context(|| format!("--net tap={}", net.tap))?;
                self.virtio(bdf, net)
            }
            FunctionKind::Rng => self.virtio(bdf, Rng::new()),
            FunctionKind::Console => {
                let (sender, input) = ConsoleInput::channel().context("--device virtio-console")?;
                *console = Some(sender);
                self.virtio(bdf, Console::new(input, standard_output()?))
            }
            FunctionKind::Edu(options) => {
                let pin = u8::try_from(acpi::intx_gsi(bdf.device(), INTA)).context("INTx pin")?;
                Ok(Edu::new(
                    bdf,
                    self.dma(bdf),
                    Arc::clone(&self.msi),
                    self.ioapic.line(pin),
                    self.unit.cloned(),
                    *options,
                )
                .context("--device edu")?)
            }
        }
    }

    fn virtio(
        &self,
        bdf: Bdf,
        device: impl VirtioDevice + 'static,
    ) -> anyhow::Result<Arc<dyn PciFunction>> {
        let (msi, doorbells) = (Arc::clone(&self.msi), Arc::clone(&self.doorbells));
        Ok(
            VirtioPci::new(bdf, self.dma(bdf), msi, doorbells, Box::new(device))
                .context("virtio device")?,
        )
    }

    /// How the function at `bdf` reaches memory.
    fn dma(&self, bdf: Bdf) -> Dma {
        match self.unit {
            Some(unit) => Dma::translated(Arc::clone(unit), SourceId(bdf.as_u16())),
            None => Dma::direct(Arc::clone(self.memory)),
        }
    }
}

/// Where each function goes: to the device number that it asks for, or to the next one that nobody asks for.
fn places(functions: &[FunctionConfig]) -> impl Iterator<Item = Bdf> {
    let taken: Vec<u8> = functions
        .iter()
        .filter_map(|function| function.device)
        .collect();
    let mut free = (1..32).filter(move |device| !taken.contains(device));
    functions
        .iter()
        .map_while(move |function| Bdf::new(0, function.device.or_else(|| free.next())?, 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_without_a_wish_fill_the_gaps_in_order() {
        let wish = |device| FunctionConfig {
            device,
            kind: FunctionKind::Rng,
        };
        let functions = [
            wish(None),
            wish(Some(2)),
            wish(None),
            wish(Some(1)),
            wish(None),
        ];
        let devices: Vec<u8> = places(&functions).map(Bdf::device).collect();
        assert_eq!(devices, [3, 2, 4, 1, 5]);
    }
}
