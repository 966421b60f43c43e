//! A small VMM with a remapping unit, and a guest that drives it: `cargo run -p intel-vtd --example vmm`.
//!
//! `machine` and `device` are what a VMM has to write. `guest` stands for the operating system in the virtual machine: all it
//! does is to access memory and registers, as a driver does; in a real VMM vCPUs do that, and none of it is there.

mod device;
mod guest;
mod machine;
mod platform;

use std::error::Error;

use guest::Guest;
use machine::Machine;

fn main() -> Result<(), Box<dyn Error>> {
    let machine = Machine::new(machine::memory()?)?;
    machine.print_description_for_acpi();

    let guest = Guest::new(&machine);
    guest.set_up()?;
    println!("\nThe guest maps a page, and lets the device work on it:");
    guest.map()?;
    guest.let_device_work(0x1000)?;
    guest.let_device_work(0x1000)?;

    println!("\nIt forgets to map the next one:");
    guest.let_device_work(0x2000)?;
    println!("\nWhy? (for people, at any time; nothing is changed by asking)");
    print!("{}", machine.explain(0x2000));

    println!("\nIt takes the page back:");
    guest.unmap()?;
    guest.let_device_work(0x1000)?;
    guest.map()?;

    println!("\nThe virtual machine moves to another host:");
    let saved = serde_json::to_string(&machine.save()?)?;
    println!("vmm:    {} bytes of state", saved.len());
    let moved = Machine::new(machine.memory())?;
    moved.restore(&serde_json::from_str(&saved)?)?;
    let counted = machine.statistics();
    println!(
        "vmm:    so far {} faults; {} interrupts remapped; translations asked for: {}",
        counted.faults_recorded, counted.interrupts_remapped, counted.translation_requests
    );
    drop(machine);
    Guest::new(&moved).let_device_work(0x1000)?;

    Ok(())
}

#[cfg(test)]
mod readme_test;
