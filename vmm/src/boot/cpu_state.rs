//! The state in which both boot protocols enter a kernel: 32-bit protected mode, paging off, flat
//! segments, interrupts off.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::layout::boot::{BOOT_PARAMS, GDT, PVH_START_INFO};
use crate::memory::GuestRam;

/// Selectors as the Linux protocol demands them (`__BOOT_CS`, `__BOOT_DS`), and a task state
/// segment as PVH does.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const TASK: u16 = 0x20;

/// Flat 4 GiB code and data segments, and a busy 32-bit TSS of 0x68 bytes at address 0 (SDM volume
/// 3, 3.4.5 and 7.2.2).
const DESCRIPTORS: [u64; 5] = [
    0,
    0,
    0x00cf_9b00_0000_ffff,
    0x00cf_9300_0000_ffff,
    0x0000_8b00_0000_0067,
];

/// CR0.PE and CR0.ET.
const CR0: u64 = 0x11;

/// Where the first vCPU starts, and what it finds in its registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CpuState {
    rip: u64,
    rbx: u64,
    rsi: u64,
}

impl CpuState {
    /// PVH: EBX points to `hvm_start_info`.
    pub(super) fn pvh(entry: u64) -> Self {
        Self {
            rip: entry,
            rbx: PVH_START_INFO,
            rsi: 0,
        }
    }

    /// Linux: ESI points to `boot_params`; EBX, EBP and EDI are zero.
    pub(crate) fn bzimage(entry: u64) -> Self {
        Self {
            rip: entry,
            rbx: 0,
            rsi: BOOT_PARAMS,
        }
    }

    /// General registers.
    pub(crate) fn regs(&self) -> kvm_regs {
        kvm_regs {
            rip: self.rip,
            rbx: self.rbx,
            rsi: self.rsi,
            rflags: 2,
            ..Default::default()
        }
    }

    /// Sets the segments and control registers in `sregs`, which otherwise keeps what reset put
    /// there.
    pub(crate) fn apply(&self, sregs: &mut kvm_sregs) {
        let data = segment(DATA);
        sregs.cs = segment(CODE);
        (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
        sregs.tr = segment(TASK);
        sregs.gdt = kvm_dtable {
            base: GDT,
            limit: gdt_limit(),
            ..Default::default()
        };
        sregs.idt = kvm_dtable::default();
        sregs.cr0 = CR0;
        sregs.cr3 = 0;
        sregs.cr4 = 0;
        sregs.efer = 0;
    }
}

fn gdt_limit() -> u16 {
    const LIMIT: usize = size_of_val(&DESCRIPTORS) - 1;
    u16::try_from(LIMIT).unwrap_or(u16::MAX)
}

/// Decodes a descriptor of the table into the form that KVM takes.
fn segment(selector: u16) -> kvm_segment {
    let descriptor = DESCRIPTORS
        .get(usize::from(selector / 8))
        .copied()
        .unwrap_or(0);
    let bits = |low: u32, width: u32| (descriptor >> low) & ((1 << width) - 1);
    let bit = |position| u8::from(bits(position, 1) != 0);
    let small = |value: u64| u8::try_from(value).unwrap_or(u8::MAX);
    let limit = bits(0, 16) | bits(48, 4) << 16;
    let granular = bit(55) == 1;
    kvm_segment {
        base: bits(16, 24) | bits(56, 8) << 24,
        limit: u32::try_from(if granular { limit << 12 | 0xfff } else { limit })
            .unwrap_or(u32::MAX),
        selector,
        type_: small(bits(40, 4)),
        present: bit(47),
        dpl: small(bits(45, 2)),
        db: bit(54),
        s: bit(44),
        l: bit(53),
        g: bit(55),
        avl: bit(52),
        ..Default::default()
    }
}

/// Puts the descriptor table where [`CpuState`] says that it is.
pub(super) fn write_gdt(memory: &GuestRam) -> Result<(), GuestMemoryError> {
    for (address, descriptor) in (GDT..).step_by(8).zip(DESCRIPTORS) {
        memory.write_obj(descriptor, GuestAddress(address))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_are_flat_32_bit_ones() {
        let code = segment(CODE);
        assert_eq!(
            (code.base, code.limit, code.type_, code.present, code.s),
            (0, 0xffff_ffff, 0xb, 1, 1)
        );
        assert_eq!((code.db, code.l, code.g, code.dpl), (1, 0, 1, 0));
        let data = segment(DATA);
        assert_eq!(
            (data.limit, data.type_, data.db, data.g),
            (0xffff_ffff, 3, 1, 1)
        );
    }

    #[test]
    fn the_task_segment_is_a_busy_32_bit_tss_of_the_least_size() {
        let task = segment(TASK);
        assert_eq!(
            (task.base, task.limit, task.type_, task.s, task.present),
            (0, 0x67, 0xb, 0, 1)
        );
    }

    #[test]
    fn paging_and_long_mode_are_off() {
        let mut sregs = kvm_sregs {
            cr3: 5,
            cr4: 6,
            efer: 7,
            ..Default::default()
        };
        CpuState::pvh(0x100_0000).apply(&mut sregs);
        assert_eq!(
            (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer),
            (0x11, 0, 0, 0)
        );
        assert_eq!((sregs.gdt.base, sregs.gdt.limit), (0x500, 39));
    }

    #[test]
    fn each_protocol_has_its_pointer_in_its_register() {
        let pvh = CpuState::pvh(0x100_0050).regs();
        assert_eq!(
            (pvh.rip, pvh.rbx, pvh.rsi, pvh.rflags),
            (0x100_0050, 0x6000, 0, 2)
        );
        let linux = CpuState::bzimage(0x10_0000).regs();
        assert_eq!(
            (linux.rip, linux.rbx, linux.rsi, linux.rbp, linux.rdi),
            (0x10_0000, 0, 0x7000, 0, 0)
        );
    }
}
