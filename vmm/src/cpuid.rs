//! The CPUID leaves of each vCPU: what KVM offers on this host, with identity and topology made the
//! guest's own.
//!
//! All vCPUs are cores of one package, one thread each, and the APIC id is the vCPU's index.
//! Feature bits are passed on as KVM reports them, those of nested virtualization (VMX, SVM)
//! included.

pub(crate) mod features;

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm};

/// Most leaves that a table may have.
const MAX_ENTRIES: usize = kvm_bindings::KVM_MAX_CPUID_ENTRIES;

const HYPERVISOR: u32 = 0x4000_0000;
/// TSC and APIC-bus frequency, as hypervisors agreed to report them.
const HYPERVISOR_TIMING: u32 = 0x4000_0010;
/// KVM's APIC timer counts nanoseconds.
const APIC_BUS_KHZ: u32 = 1_000_000;

/// Leaf 1, ECX.
const FEATURE_X2APIC: u32 = 1 << 21;
const FEATURE_TSC_DEADLINE: u32 = 1 << 24;
const FEATURE_HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: several logical processors per package.
const FEATURE_HTT: u32 = 1 << 28;
/// Leaf 8000_0001, ECX (AMD): the processors of a package are cores.
const FEATURE_CMP_LEGACY: u32 = 1 << 1;
/// Lowest value of leaf 0 that reaches the x2APIC topology leaf.
const TOPOLOGY: u32 = 0xb;

/// The tables that vCPUs are made from.
pub(crate) struct Template {
    entries: Vec<kvm_cpuid_entry2>,
    cpus: u8,
    tsc_deadline: bool,
}

impl Template {
    /// Asks KVM what it supports.
    pub(crate) fn new(kvm: &Kvm, cpus: u8) -> Result<Self, kvm_ioctls::Error> {
        let supported = kvm.get_supported_cpuid(MAX_ENTRIES)?;
        let tsc_deadline = kvm.check_extension(Cap::TscDeadlineTimer);
        Ok(Self {
            entries: supported.as_slice().to_vec(),
            cpus,
            tsc_deadline,
        })
    }

    /// Physical address bits of the guest (leaf 8000_0008, EAX).
    pub(crate) fn physical_bits(&self) -> u8 {
        let bits = self
            .entries
            .iter()
            .find(|entry| entry.function == 0x8000_0008)
            .map(|entry| entry.eax & 0xff);
        bits.and_then(|bits| u8::try_from(bits).ok())
            .filter(|bits| *bits >= 36)
            .unwrap_or(36)
    }

    /// The table of the vCPU with this APIC id; `tsc_khz` is its TSC frequency if known.
    pub(crate) fn for_vcpu(
        &self,
        apic_id: u8,
        tsc_khz: Option<u32>,
    ) -> Result<CpuId, kvm_ioctls::Error> {
        let mut table = Table {
            entries: self.entries.clone(),
            cpus: u32::from(self.cpus),
            apic_id: u32::from(apic_id),
        };
        table.features(self.tsc_deadline);
        table.caches();
        table.x2apic_topology();
        table.amd_topology();
        table.hypervisor(tsc_khz);
        CpuId::from_entries(&table.entries).map_err(|_| kvm_ioctls::Error::new(libc::E2BIG))
    }
}

/// One vCPU's table while it is being completed.
struct Table {
    entries: Vec<kvm_cpuid_entry2>,
    cpus: u32,
    apic_id: u32,
}

impl Table {
    fn all(&mut self, function: u32) -> impl Iterator<Item = &mut kvm_cpuid_entry2> {
        self.entries
            .iter_mut()
            .filter(move |entry| entry.function == function)
    }

    fn has(&self, function: u32) -> bool {
        self.entries.iter().any(|entry| entry.function == function)
    }

    /// Bits of an APIC id that tell the cores of a package apart.
    fn id_bits(&self) -> u32 {
        self.cpus.next_power_of_two().trailing_zeros()
    }

    /// Leaf 1: identity and what depends on the VMM.
    fn features(&mut self, tsc_deadline: bool) {
        let logical = (1 << self.id_bits()).min(255);
        let (id, cpus) = (self.apic_id, self.cpus);
        for entry in self.all(1) {
            entry.ebx = entry.ebx & 0xffff | logical << 16 | id << 24;
            entry.ecx |= FEATURE_X2APIC | FEATURE_HYPERVISOR;
            set(&mut entry.ecx, FEATURE_TSC_DEADLINE, tsc_deadline);
            set(&mut entry.edx, FEATURE_HTT, cpus > 1);
        }
    }

    /// Leaves 4 and 8000_001D: the last-level cache is shared by all cores, the others by none.
    fn caches(&mut self) {
        let cores = (1 << self.id_bits()) - 1;
        for function in [4, 0x8000_001d] {
            for entry in self.all(function) {
                if entry.eax & 0x1f == 0 {
                    continue;
                }
                let level = entry.eax >> 5 & 7;
                let sharing = if level >= 3 { cores } else { 0 };
                entry.eax = entry.eax & 0x3fff | sharing << 14;
                if function == 4 {
                    entry.eax |= cores.min(0x3f) << 26;
                }
            }
        }
    }

    /// Leaves B and 1F: threads, then cores. B is added where the host has none, because it holds
    /// the x2APIC id.
    fn x2apic_topology(&mut self) {
        let (bits, cpus, id) = (self.id_bits(), self.cpus, self.apic_id);
        for entry in self.all(0) {
            entry.eax = entry.eax.max(TOPOLOGY);
        }
        let levels = [(0, 1, 1 << 8), (bits, cpus, 2 << 8 | 1), (0, 0, 2)];
        for function in [TOPOLOGY, 0x1f] {
            if function != TOPOLOGY && !self.has(function) {
                continue;
            }
            self.entries.retain(|entry| entry.function != function);
            for (index, (eax, ebx, ecx)) in (0..).zip(levels) {
                self.entries.push(kvm_cpuid_entry2 {
                    function,
                    index,
                    flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                    eax,
                    ebx,
                    ecx,
                    edx: id,
                    ..Default::default()
                });
            }
        }
    }

    /// AMD's leaves 8000_0001, 8000_0008 and 8000_001E.
    fn amd_topology(&mut self) {
        let (bits, cpus, id) = (self.id_bits(), self.cpus, self.apic_id);
        // On other vendors' CPUs these fields are reserved.
        if !self
            .entries
            .iter()
            .any(|entry| entry.function == 0 && is_amd(entry))
        {
            return;
        }
        for entry in self.all(0x8000_0001) {
            set(&mut entry.ecx, FEATURE_CMP_LEGACY, cpus > 1);
        }
        for entry in self.all(0x8000_0008) {
            entry.ecx = entry.ecx & !0xf0ff | (cpus - 1) | bits << 12;
        }
        for entry in self.all(0x8000_001e) {
            (entry.eax, entry.ebx, entry.ecx) = (id, id, 0);
        }
    }

    /// KVM's own leaves, and the frequencies that spare the guest a calibration.
    fn hypervisor(&mut self, tsc_khz: Option<u32>) {
        if !self.has(HYPERVISOR) {
            return;
        }
        let Some(tsc_khz) = tsc_khz else { return };
        for entry in self.all(HYPERVISOR) {
            entry.eax = entry.eax.max(HYPERVISOR_TIMING);
        }
        self.entries
            .retain(|entry| entry.function != HYPERVISOR_TIMING);
        self.entries.push(kvm_cpuid_entry2 {
            function: HYPERVISOR_TIMING,
            eax: tsc_khz,
            ebx: APIC_BUS_KHZ,
            ..Default::default()
        });
    }
}

fn set(register: &mut u32, bit: u32, on: bool) {
    *register = if on {
        *register | bit
    } else {
        *register & !bit
    };
}

/// Whether leaf 0 says "AuthenticAMD" or "HygonGenuine", whose topology leaves agree.
fn is_amd(leaf0: &kvm_cpuid_entry2) -> bool {
    let vendor = [leaf0.ebx, leaf0.edx, leaf0.ecx]
        .map(u32::to_le_bytes)
        .concat();
    vendor == b"AuthenticAMD" || vendor == b"HygonGenuine"
}

#[cfg(test)]
mod cpuid_test;
