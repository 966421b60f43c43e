//! The local APIC in x2APIC mode, and interrupts that were counted.

use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};

const IA32_APIC_BASE: u32 = 0x1b;
const X2APIC_EOI: u32 = 0x80b;
const X2APIC_SPURIOUS: u32 = 0x80f;
const X2APIC_ICR: u32 = 0x830;
/// The vector on which `edu` interrupts.
pub const EDU_VECTOR: u8 = 0x41;

unsafe extern "C" {
    static trap_stubs: u8;
}

#[repr(C, align(4096))]
struct Idt([u128; 256]);

static mut IDT: Idt = Idt([0; 256]);
static COUNTS: [AtomicU32; 256] = [const { AtomicU32::new(0) }; 256];

/// Writes a register of the APIC, or of kvm-clock.
pub fn wrmsr(msr: u32, value: u64) {
    // SAFETY: APIC registers do not change memory, and kvm-clock has KVM write to what its caller gives.
    unsafe {
        asm!("wrmsr", in("ecx") msr, in("eax") value as u32, in("edx") (value >> 32) as u32, options(nostack));
    }
}

fn rdmsr(msr: u32) -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: reading an APIC register has no effect on memory.
    unsafe { asm!("rdmsr", in("ecx") msr, out("eax") low, out("edx") high, options(nomem, nostack)) };
    u64::from(high) << 32 | u64::from(low)
}

/// x2APIC id of this vCPU, from CPUID leaf 0Bh.
pub fn id() -> u32 {
    core::arch::x86_64::__cpuid_count(0xb, 0).edx
}

/// Interrupts of `edu` that this vCPU has taken.
pub fn count(id: u32) -> u32 {
    COUNTS[id as usize & 0xff].load(Ordering::SeqCst)
}

/// Called from the trap entry.
pub fn interrupted(vector: u64) {
    if vector == u64::from(EDU_VECTOR) {
        COUNTS[id() as usize & 0xff].fetch_add(1, Ordering::SeqCst);
    }
    if vector == u64::from(crate::ioapic::VECTOR) {
        crate::ioapic::interrupted();
    }
    wrmsr(X2APIC_EOI, 0);
}

/// Loads the interrupt table, switches to x2APIC mode and takes interrupts.
pub fn start_local() {
    prepare_local();
    // SAFETY: the interrupt table is in place.
    unsafe { asm!("sti", options(nomem, nostack)) };
}

/// Loads the interrupt table and switches to x2APIC mode.
pub fn prepare_local() {
    let stubs = (&raw const trap_stubs) as u64;
    for vector in 0..256u64 {
        let target = stubs + 16 * vector;
        // 64-bit interrupt gate, present, code segment 0x18.
        let gate = u128::from(target & 0xffff)
            | 0x18 << 16
            | 0x8e00 << 32
            | u128::from(target >> 16 & 0xffff) << 48
            | u128::from(target >> 32) << 64;
        // SAFETY: every vCPU writes the same values, and no reference to the table exists.
        unsafe { (&raw mut IDT.0).cast::<u128>().add(vector as usize).write_volatile(gate) };
    }
    let mut pointer = [0u8; 10];
    pointer[..2].copy_from_slice(&4095u16.to_le_bytes());
    pointer[2..].copy_from_slice(&((&raw const IDT) as u64).to_le_bytes());
    // SAFETY: the pointer describes the static table filled above.
    unsafe { asm!("lidt [{}]", in(reg) &pointer, options(readonly, nostack)) };
    wrmsr(IA32_APIC_BASE, rdmsr(IA32_APIC_BASE) | 0xc00);
    wrmsr(X2APIC_SPURIOUS, 0x1ff);
}

/// Sends INIT and a start-up IPI (page 8: 0x8000) to every other vCPU.
pub fn start_others() {
    wrmsr(X2APIC_ICR, 0xc_4500);
    crate::smp::pause(10_000);
    wrmsr(X2APIC_ICR, 0xc_4608);
    crate::smp::pause(10_000);
    wrmsr(X2APIC_ICR, 0xc_4608);
}
