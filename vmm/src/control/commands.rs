//! The commands of the control socket, and their answers.

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use intel_vtd::SourceId;
use pci::{Bdf, ECAM_FUNCTION_SHIFT, RootComplex};

use super::balloon;
use super::dirty_pages;
use super::hotplug;
use super::memory;
use super::migrations;
use super::monitor::Monitor;
use super::parser::{Answer, Argument, Command, Value};
use super::snapshots;
use super::upgrades;
use super::workers::Kind;
use crate::event::Event;
use crate::irq::Unit;
use crate::machine::HotPlug;
use crate::suspension::Wish;

/// All commands, in the order in which help shows them.
pub(super) const COMMANDS: &[Command] = &[
    Command {
        name: "help",
        arguments: &[],
        help: "this list",
        run: help,
    },
    Command {
        name: "status",
        arguments: &[],
        help: "vCPUs, memory, time since the start, running or paused, progress of what takes long",
        run: status,
    },
    Command {
        name: "devices",
        arguments: &[],
        help: "PCI functions: address, kind, vendor:device, class, id, port (bus), slot",
        run: devices,
    },
    Command {
        name: "iommu",
        arguments: &[],
        help: "registers of the remapping unit, pending faults, counters",
        run: iommu,
    },
    Command {
        name: "bindings",
        arguments: &[],
        help: "what translates the requests of each PCI function, and of its PASIDs",
        run: bindings,
    },
    Command {
        name: "translate",
        arguments: &[Argument::Requester, Argument::Address],
        help: "the table entries that a translation reads, and how it ends",
        run: translate,
    },
    Command {
        name: "stats",
        arguments: &[],
        help: "counters of the remapping unit; how long the guest's accesses took",
        run: stats,
    },
    Command {
        name: "assigned",
        arguments: &[],
        help: "devices of the host: what each is attached to, shadows, counters, ioctls by kind",
        run: assigned,
    },
    Command {
        name: "device-add",
        arguments: &[Argument::Device],
        help: "plug a device into a root port: `device-add help` lists types, `TYPE,help` keys",
        run: hotplug::add,
    },
    Command {
        name: "device-del",
        arguments: &[Argument::Removal],
        help: "ask the guest to let go of a plugged device, and remove it; force: do not ask",
        run: hotplug::remove,
    },
    Command {
        name: "balloon",
        arguments: &[Argument::Size],
        help: "have the guest give so much memory back, or take some again: the size of the balloon",
        run: balloon::set,
    },
    Command {
        name: "balloon-status",
        arguments: &[],
        help: "size of the balloon, what was given back, and what the guest says of its memory",
        run: balloon::status,
    },
    Command {
        name: "memory",
        arguments: &[Argument::Size],
        help: "have the guest plug memory until it has so much of its virtio-mem, or unplug some",
        run: memory::set,
    },
    Command {
        name: "pause",
        arguments: &[],
        help: "stop vCPUs, devices and the remapping unit where they are",
        run: pause,
    },
    Command {
        name: "resume",
        arguments: &[],
        help: "go on after a pause",
        run: resume,
    },
    Command {
        name: "snapshot",
        arguments: &[Argument::Snapshot],
        help: "save the machine in a directory, for `nido --restore DIR`: `snapshot help` lists keys",
        run: snapshots::take,
    },
    Command {
        name: "snapshot-cancel",
        arguments: &[],
        help: "give up the snapshot that is being written",
        run: snapshots::cancel,
    },
    Command {
        name: "migrate",
        arguments: &[Argument::Migration],
        help: "have the guest go on where `nido --incoming` waits: `migrate help` lists keys",
        run: migrations::leave,
    },
    Command {
        name: "migrate-status",
        arguments: &[],
        help: "how far the migration is: rounds, rate, what is left, the pause if it were now",
        run: migrations::status,
    },
    Command {
        name: "migrate-cancel",
        arguments: &[],
        help: "give the migration up; the guest goes on here",
        run: migrations::cancel,
    },
    Command {
        name: "dirty-pages",
        arguments: &[Argument::DirtyPages],
        help: "which pages of guest memory are written, and by whom: `dirty-pages help` lists keys",
        run: dirty_pages::look,
    },
    Command {
        name: upgrades::UPGRADE,
        arguments: &[Argument::Upgrade],
        help: "have another nido go on with the guest in place of this one: `upgrade help` explains",
        run: upgrades::replace,
    },
    Command {
        name: "quit",
        arguments: &[],
        help: "end the virtual machine, as Ctrl-A x does",
        run: quit,
    },
];

fn help(_: &Monitor, _: &[Value]) -> Result<Answer, String> {
    let lines = COMMANDS
        .iter()
        .map(|command| format!("{:<41} {}\n", command.syntax(), command.help));
    Ok(lines.collect::<String>().into())
}

fn status(monitor: &Monitor, _: &[Value]) -> Result<Answer, String> {
    let uptime = monitor.started.elapsed();
    Ok(format!(
        "vcpus: {}\nmemory: {} MiB\nuptime: {}.{:03} s\niommu: {}\nstate: {}\n{}{}{}{}",
        monitor.cpus,
        monitor.memory >> 20,
        uptime.as_secs(),
        uptime.subsec_millis(),
        match &monitor.unit {
            None => "none",
            Some(_) => "intel-iommu",
        },
        match monitor.suspension.is_paused() {
            true => "paused",
            false => "running",
        },
        memory::line(monitor),
        balloon::line(monitor),
        match monitor.snapshots.describe() {
            Some(text) => format!("snapshot: {text}\n"),
            None => String::new(),
        },
        match monitor.migrations.describe() {
            Some(text) => format!("migration: {text}\n"),
            None => String::new(),
        },
    )
    .into())
}

/// Looked at by a thread of its own, as a device that is being reset answers late.
fn devices(monitor: &Monitor, _: &[Value]) -> Result<Answer, String> {
    let (root, hotplug) = (Arc::clone(&monitor.root), Arc::clone(&monitor.hotplug));
    let work = move || {
        let functions = root.addresses().into_iter();
        Ok(functions.map(|bdf| device(&root, &hotplug, bdf)).collect())
    };
    Ok(monitor.workers.begin(Kind::Look, work)?.into())
}

fn device(root: &RootComplex, hotplug: &HotPlug, bdf: Bdf) -> String {
    let [vendor_low, vendor_high, device_low, device_high] = read(root, hotplug, bdf, 0x00);
    let [revision, interface, subclass, class] = read(root, hotplug, bdf, 0x08);
    let vendor = u16::from_le_bytes([vendor_low, vendor_high]);
    let device = u16::from_le_bytes([device_low, device_high]);
    format!(
        "{bdf} {:<16} {vendor:04x}:{device:04x} class {class:02x}{subclass:02x}{interface:02x} rev {revision:02x}{}\n",
        kind(vendor, device),
        hotplug.describe(bdf)
    )
}

/// A dword of the configuration space of `bdf`.
fn read(root: &RootComplex, hotplug: &HotPlug, bdf: Bdf, register: u16) -> [u8; 4] {
    let mut data = [0; 4];
    match hotplug.function(bdf) {
        // In a slot without power as well, or with another bus number of the guest's.
        Some(function) => function.read_config(register, &mut data),
        None => {
            let offset = u64::from(bdf.as_u16()) << ECAM_FUNCTION_SHIFT;
            root.read_ecam(offset | u64::from(register), &mut data);
        }
    }
    data
}

/// What a function is, by the ids that it shows.
fn kind(vendor: u16, device: u16) -> &'static str {
    match (vendor, device) {
        (0x8086, 0x0d57) => "host-bridge",
        (0x1af4, 0x1041) => "virtio-net",
        (0x1af4, 0x1042) => "virtio-blk",
        (0x1af4, 0x1043) => "virtio-console",
        (0x1af4, 0x1044) => "virtio-rng",
        (0x1af4, 0x1045) => "virtio-balloon",
        (0x1af4, 0x1058) => "virtio-mem",
        (0x1234, 0x11e8) => "edu",
        (0x1b36, 0x000c) => "pcie-root-port",
        _ => "other",
    }
}

fn iommu(monitor: &Monitor, _: &[Value]) -> Result<Answer, String> {
    look(monitor, |unit| unit.describe().to_string())
}

fn bindings(monitor: &Monitor, _: &[Value]) -> Result<Answer, String> {
    let root = Arc::clone(&monitor.root);
    look(monitor, move |unit| {
        let functions = root.addresses().into_iter();
        // The host bridge, which comes first, makes no requests.
        let sources = functions.skip(1).map(|bdf| SourceId(bdf.as_u16()));
        let bindings = unit.bindings(sources);
        bindings.iter().map(ToString::to_string).collect()
    })
}

fn translate(monitor: &Monitor, values: &[Value]) -> Result<Answer, String> {
    let [Value::Requester(source, pasid), Value::Address(address)] = values else {
        return Err("translate: the arguments are missing".to_owned());
    };
    let (source, pasid, address) = (*source, *pasid, *address);
    look(monitor, move |unit| {
        unit.explain(source, pasid, address).to_string()
    })
}

/// Looks at the unit with a thread of its own: the guest's tables may be large, and the unit waits
/// for the host while it carries out a command of the guest's.
fn look(
    monitor: &Monitor,
    description: impl FnOnce(&Unit) -> String + Send + 'static,
) -> Result<Answer, String> {
    let unit = Arc::clone(unit(monitor)?);
    let work = move || Ok(description(&unit));
    Ok(monitor.workers.begin(Kind::Look, work)?.into())
}

fn stats(monitor: &Monitor, _: &[Value]) -> Result<Answer, String> {
    let accesses = Arc::clone(&monitor.accesses);
    look(monitor, move |unit| {
        let statistics = unit.stats();
        let mut lines = String::new();
        for (name, value) in statistics.entries() {
            let _ = writeln!(lines, "{name}: {value}");
        }
        let times = unit.register_accesses();
        write_times(&mut lines, "register_accesses", times.entries());
        write_times(&mut lines, "guest_accesses", accesses.entries());
        if let Some((time, target)) = accesses.longest() {
            let milliseconds = time.as_millis();
            let _ = writeln!(lines, "guest_accesses_longest: {milliseconds} ms, {target}");
        }
        lines
    })
}

/// How long things took: those buckets that something fell into.
fn write_times(
    lines: &mut String,
    name: &str,
    times: impl Iterator<Item = (Option<Duration>, u64)>,
) {
    for (bound, count) in times.filter(|(_, count)| *count != 0) {
        let _ = match bound {
            Some(bound) => writeln!(lines, "{name}_below_{}us: {count}", bound.as_micros()),
            None => writeln!(lines, "{name}_longer: {count}"),
        };
    }
}

fn assigned(monitor: &Monitor, _: &[Value]) -> Result<Answer, String> {
    let Some(assigner) = &monitor.assigner else {
        let none = "no assigned devices, as there is no iommufd (`--object iommufd,id=ID`)\n";
        return Ok(none.to_owned().into());
    };
    // By a thread of its own: it waits while guest memory is locked for a device, which can take
    // many seconds.
    let assigner = Arc::clone(assigner);
    let work = move || Ok(assigner.to_string());
    Ok(monitor.workers.begin(Kind::Look, work)?.into())
}

fn pause(monitor: &Monitor, _: &[Value]) -> Result<Answer, String> {
    suspend(monitor, Wish::Pause)
}

fn resume(monitor: &Monitor, _: &[Value]) -> Result<Answer, String> {
    suspend(monitor, Wish::Resume)
}

fn suspend(monitor: &Monitor, wish: Wish) -> Result<Answer, String> {
    let (suspension, events) = (Arc::clone(&monitor.suspension), monitor.events.clone());
    let work = move |client| suspension.ask(wish, client, &events);
    Ok(monitor.workers.begin_for(Kind::Pause, work)?.into())
}

fn quit(monitor: &Monitor, _: &[Value]) -> Result<Answer, String> {
    // The main thread may be at it, if it is under way.
    let _ = monitor.migrations.cancel();
    Ok(Answer {
        text: "the virtual machine ends\n".to_owned(),
        event: Some(Event::Quit),
        ..Answer::default()
    })
}

fn unit(monitor: &Monitor) -> Result<&Arc<Unit>, String> {
    monitor.unit.as_ref().ok_or_else(|| {
        "this machine has no remapping unit; start nido with `--device intel-iommu`".to_owned()
    })
}
