//! One assigned device behind a unit: `cargo run -p intel-vtd-host --features fake-host --example
//! assigned_device`.
//!
//! The host is the fake one, so that it runs anywhere. With a real one, `Iommufd` takes its place,
//! and VFIO the place of its attachments; the README says how.

use std::error::Error;
use std::fmt::{self, Write};
use std::fs::File;
use std::sync::Arc;

use intel_vtd::{EventSink, InterruptMessage, SourceId, Unit, UnitConfig};
use intel_vtd_host::HostCapabilities;
use intel_vtd_host::fake::{FakeFeatures, FakeHost};
use intel_vtd_host::{AssignedDevice, AssignedDevices, Limits, RamPiece};
use intel_vtd_host::{HostDeviceId, HostGroupId, Rights};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

type Memory = Arc<GuestMemoryMmap<()>>;

/// Bytes of guest memory.
const SIZE: usize = 0x40_0000;
/// 00:03.0.
const SOURCE: SourceId = SourceId(0x18);

/// Where the guest has its tables: root, context, and second-stage tables of four levels.
const ROOT: u64 = 0x1_0000;
const CONTEXT: u64 = 0x1_1000;
const STAGES: [u64; 4] = [0x1_2000, 0x1_3000, 0x1_4000, 0x1_5000];
/// A page of the guest that the device is to reach at address 1000h.
const BUFFER: u64 = 0x20_0000;

/// This guest asks for no events.
struct NoEvents;

impl EventSink for NoEvents {
    fn deliver(&self, _: InterruptMessage) {}
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut text = String::new();
    run(&mut text)?;
    print!("{text}");
    Ok(())
}

fn run(out: &mut String) -> Result<(), Box<dyn Error>> {
    // Guest memory. A VMM has it in a file (memfd_create), which it maps for itself, and which the
    // host maps for devices.
    let memory: Memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), SIZE)])?);
    let ram = RamPiece {
        guest_address: 0,
        file: Arc::new(File::open("/dev/zero")?),
        offset: 0,
        host_address: memory
            .get_host_address(GuestAddress(0))?
            .expose_provenance() as u64,
        length: SIZE as u64,
    };

    // A device that is bound to an iommufd, before the guest sees a unit: what the host's IOMMU can
    // do limits that.
    let host = FakeHost::new();
    let (id, attachment) = host.bind(FakeFeatures::default());
    let capabilities = HostCapabilities::probe(host.as_ref(), id)?;
    writeln!(out, "host:  {capabilities}")?;
    let config = UnitConfig::legacy(46).with_caching_mode(true);
    let config = capabilities.limit(config);
    capabilities.check(&config)?;
    capabilities.check_memory(SIZE as u64)?;

    // The unit, and what follows its guest's tables in the host.
    let unit = Unit::new(Arc::clone(&memory), &config, Arc::new(NoEvents))?;
    let devices = AssignedDevices::new(vec![ram], Some(&unit), Limits::default());
    devices.add(AssignedDevice {
        source: SOURCE,
        name: "nic".to_owned(),
        host: Arc::clone(&host) as _,
        id,
        group: HostGroupId(1),
        attachment,
        pasids: false,
        ats: false,
        page_requests: None,
    })?;
    show(out, "translation is off", &devices, &host, id)?;

    // The rest is what a guest does.
    let guest = Guest {
        memory: &memory,
        unit: &unit,
    };
    guest.enable()?;
    show(
        out,
        "translation is on, the device has no entry",
        &devices,
        &host,
        id,
    )?;

    guest.map(BUFFER | 3)?;
    guest.enter()?;
    guest.invalidate();
    show(
        out,
        "address 0x1000 is mapped, in domain 5",
        &devices,
        &host,
        id,
    )?;

    guest.map(0)?;
    guest.invalidate();
    show(out, "address 0x1000 is unmapped", &devices, &host, id)?;

    devices.remove(SOURCE);
    writeln!(out, "removed: {} objects left in the host", host.objects())?;
    Ok(())
}

/// Where the device is, and where its accesses to address 1000h go.
fn show(
    out: &mut String,
    what: &str,
    devices: &AssignedDevices<Memory>,
    host: &FakeHost,
    id: HostDeviceId,
) -> fmt::Result {
    writeln!(out, "guest: {what}")?;
    write!(out, "       {devices}")?;
    match host.dma(id, 0x1000) {
        None => writeln!(out, "       0x1000 reaches nothing"),
        Some(reached) => writeln!(
            out,
            "       0x1000 reaches guest memory at {:#x}{}",
            reached.offset,
            if reached.rights == Rights::ALL {
                ""
            } else {
                ", with fewer rights"
            }
        ),
    }
}

/// The driver for VT-d in the virtual machine.
struct Guest<'a> {
    memory: &'a Memory,
    unit: &'a Unit<Memory>,
}

impl Guest<'_> {
    fn enable(&self) -> Result<(), Box<dyn Error>> {
        self.put(ROOT, CONTEXT | 1)?;
        for pair in STAGES.windows(2) {
            let [above, below] = pair else { continue };
            self.put(*above, below | 3)?;
        }
        // RTADDR, and GCMD: SRTP, then TE.
        self.write(0x20, ROOT);
        self.unit.write(0x18, &0x4000_0000_u32.to_le_bytes());
        self.unit.write(0x18, &0x8000_0000_u32.to_le_bytes());
        Ok(())
    }

    /// The device's context entry: present, second stage of four levels, domain 5.
    fn enter(&self) -> Result<(), Box<dyn Error>> {
        let entry = CONTEXT + u64::from(SOURCE.0) * 16;
        self.put(entry + 8, 5 << 8 | 2)?;
        self.put(entry, STAGES[0] | 1)
    }

    /// The second page of the device's addresses.
    fn map(&self, leaf: u64) -> Result<(), Box<dyn Error>> {
        self.put(STAGES[3] + 8, leaf)
    }

    /// By registers: context cache and IOTLB, both globally. Devices follow before the write
    /// returns.
    fn invalidate(&self) {
        self.write(0x28, 1 << 63 | 1 << 61);
        let mut extended = [0; 8];
        self.unit.read(0x10, &mut extended);
        let iotlb = (u64::from_le_bytes(extended) >> 8 & 0x3FF) * 16 + 8;
        self.write(iotlb, 1 << 63 | 1 << 60);
    }

    fn write(&self, register: u64, value: u64) {
        self.unit.write(register, &value.to_le_bytes());
    }

    fn put(&self, at: u64, word: u64) -> Result<(), Box<dyn Error>> {
        Ok(self.memory.write_obj(word.to_le(), GuestAddress(at))?)
    }
}

#[test]
fn the_readme_has_what_the_example_prints() {
    let mut printed = String::new();
    run(&mut printed).expect("it runs");
    let shown = include_str!("../README.md")
        .split_once("```text\n")
        .expect("a block")
        .1;
    let (shown, _) = shown.split_once("```").expect("its end");
    assert_eq!(shown, printed, "iommu/host/README.md shows another output");
}
