//! A guest without an operating system: it starts every vCPU, has `edu` copy pages in legacy mode and then in scalable
//! mode, has `edu` interrupt each vCPU through interrupt remapping, by pin and by message, lets all of them use the invalidation queue at once, and moves pages under a device's
//! DMA while the others invalidate. Each check prints one line for the lab and the guest powers off. For a benchmark, it writes to
//! memory instead.
//!
//! Everything here is written from the specifications alone and shares nothing with nido's crates: a mistake
//! there cannot hide behind the same mistake here.
#![no_std]
#![no_main]

mod acpi;
mod apic;
mod checks;
mod edu;
mod ioapic;
mod legacy;
mod load;
mod port;
mod smp;
mod storm;
mod vtd;

use core::arch::global_asm;

global_asm!(include_str!("entry.s"));

/// Physical memory, which is mapped one to one.
fn load<T: Copy>(address: u64) -> T {
    // SAFETY: the payload owns the whole machine and its first 4 GiB are mapped one to one; callers pass the
    // address of RAM or of a device register.
    unsafe { (address as *const T).read_volatile() }
}

/// See [`load`].
fn store<T: Copy>(address: u64, value: T) {
    // SAFETY: as in `load`.
    unsafe { (address as *mut T).write_volatile(value) }
}

unsafe extern "C" {
    static start_info: u64;
}

#[unsafe(no_mangle)]
extern "C" fn boot_main() -> ! {
    // SAFETY: written once by the entry code, before Rust runs.
    let info = unsafe { (&raw const start_info).read_volatile() };
    say!("@nido report payload-start ok");
    if let Some(wish) = load::wish(info) {
        // It runs in other machines than nido's, whose firmware may have left interrupts on their way.
        apic::prepare_local();
        load::run_boot(&wish);
    }
    let machine = acpi::Machine::discover(info);
    apic::start_local();
    smp::start_all(&machine);
    checks::run_boot(&machine, storm::is_asked_for(info));
    port::power_off()
}

#[unsafe(no_mangle)]
extern "C" fn ap_main() -> ! {
    apic::start_local();
    smp::arrive();
    if load::is_on() {
        load::run_other();
    }
    checks::run_other()
}

#[unsafe(no_mangle)]
extern "C" fn trap(vector: u64, rip: u64) {
    if vector < 32 {
        say!("@nido report payload fail exception {} at {:#x} on cpu {}", vector, rip, apic::id());
        port::power_off();
    }
    apic::interrupted(vector);
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    say!("@nido report payload fail panic: {}", info);
    port::power_off()
}
