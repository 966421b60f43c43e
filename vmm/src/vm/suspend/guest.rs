//! A guest that is paused: vCPUs, devices, interrupts on their way and the remapping unit stop, in
//! this order, and go on in the other one.

use std::mem;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use kvm_bindings::kvm_clock_data;
use pci::Bdf;

use super::Pausable;
use crate::event::Event;
use crate::layout;
use crate::machine::{HandOver, Handed, Machine, Work};
use crate::vcpu::{Shared, Target, Vcpu};
use crate::vm;

/// Longest time for all that is to stop: a chain of a virtio device, a command of edu, a command of
/// the unit take far less, unless the host does not answer.
const LIMIT: Duration = Duration::from_secs(5);
/// How long to wait before vCPUs are looked at again.
const LOOK: Duration = Duration::from_millis(1);

/// A machine and its running vCPUs.
pub(in crate::vm) struct Guest<'a> {
    machine: &'a mut Machine,
    running: &'a mut Vec<JoinHandle<Vcpu>>,
    /// Where its vCPUs report.
    events: &'a Sender<Event>,
    /// While it is paused kvm-clock stands still: it shows this when it goes on.
    clock: Option<kvm_clock_data>,
    /// How long it may take to stop.
    limit: Duration,
}

impl<'a> Guest<'a> {
    pub(in crate::vm) fn new(
        machine: &'a mut Machine,
        running: &'a mut Vec<JoinHandle<Vcpu>>,
        events: &'a Sender<Event>,
    ) -> Self {
        Self {
            machine,
            running,
            events,
            clock: None,
            limit: LIMIT,
        }
    }

    /// It is paused since it was restored: kvm-clock shows the time of then when it goes on.
    pub(in crate::vm) fn is_restored(&mut self) {
        self.clock = self.machine.vm().get_clock().ok();
    }

    /// Stops everything. What it has stopped when it fails is to go on.
    fn stop(&mut self) -> Result<(), String> {
        let machine = &*self.machine;
        let until = Instant::now() + self.limit;
        machine.hold_input(true);
        stop_vcpus(&machine.shared, self.running, until)
            .map_err(|late| self.vcpu_is_late(&late))?;
        let clock = machine.vm().get_clock();
        let parked = machine.root().park(until);
        parked.map_err(|(bdf, what)| format!("{}: {what}", self.name(bdf)))?;
        // Nobody signals one any more.
        machine.routes().settle();
        if let Some(window) = machine.window()
            && !window.park(until)
        {
            return Err(
                "the remapping unit is still at work on what the guest has queued, and waits for the host; try again"
                    .to_owned(),
            );
        }
        self.clock = clock
            .inspect_err(|error| {
                log::warn!("kvm-clock goes on while the guest is paused: {error}");
            })
            .ok();
        Ok(())
    }

    /// Has kvm-clock show what it showed when the guest stopped.
    fn set_clock(&self) {
        if let Some(clock) = &self.clock {
            let clock = kvm_clock_data {
                clock: clock.clock,
                ..Default::default()
            };
            if let Err(error) = self.machine.vm().set_clock(&clock) {
                log::warn!("kvm-clock goes on with the time of the pause: {error}");
            }
        }
    }

    /// Has `work` be done with the machine, which is paused and has its vCPUs. Returns what it says, and
    /// whether the vCPUs have their threads again, without which the machine ends.
    fn with_machine<T>(
        &mut self,
        work: impl FnOnce(&mut Machine) -> T,
    ) -> (Result<T, String>, Result<(), String>) {
        self.set_clock();
        // Their threads give the vCPUs back, and new ones rest at once.
        let running = mem::take(self.running);
        let answer = vm::stop(self.machine, running).map(|()| work(self.machine));
        let started = vm::start(self.machine, self.events);
        let failed = |error: anyhow::Error| {
            let text = format!("{error:#}");
            // The main thread, which this is, hears it next.
            let _ = self.events.send(Event::Failed(text.clone()));
            text
        };
        let answer = answer.map_err(failed);
        let started = started.map_err(failed);
        (answer, started.map(|running| *self.running = running))
    }

    /// Has everything go on that has stopped.
    fn go_on(&mut self) {
        let machine = &*self.machine;
        if let Some(window) = machine.window() {
            window.resume();
        }
        machine.root().resume();
        self.set_clock();
        self.clock = None;
        machine.hold_input(false);
        machine.shared.park.release();
        machine.hotplug().thaw();
    }

    fn name(&self, bdf: Bdf) -> String {
        format!("{bdf}{}", self.machine.hotplug().describe(bdf))
    }

    fn vcpu_is_late(&self, late: &LateVcpu) -> String {
        let LateVcpu { id, target } = late;
        let Some(target) = target else {
            return format!(
                "vCPU {id} does not come out of the guest; see whether the host is overloaded, and try again"
            );
        };
        let address = target.address();
        let place = match address.and_then(|address| self.machine.root().owner_of(address)) {
            Some(bdf) => format!(", which belongs to {}", self.name(bdf)),
            None if address.is_some_and(|address| layout::VTD.contains(&address)) => {
                ", the remapping unit".to_owned()
            }
            None => String::new(),
        };
        format!(
            "vCPU {id} is in an access that takes long: {target}{place}; see whether what is behind it answers, and try again"
        )
    }
}

impl Pausable for Guest<'_> {
    fn pause(&mut self) -> Result<(), String> {
        let refusal = |why: String| format!("the guest cannot be paused: {why}");
        self.machine.hotplug().freeze().map_err(refusal)?;
        let refused = self.machine.root().parkable();
        if let Err((bdf, why)) = refused {
            let remedy = self.machine.hotplug().how_to_remove(bdf);
            self.machine.hotplug().thaw();
            return Err(refusal(format!("{}: {why}; {remedy}", self.name(bdf))));
        }
        if let Err(why) = self.stop() {
            self.go_on();
            return Err(refusal(why));
        }
        log::info!("the guest is paused");
        Ok(())
    }

    fn reclaim(&mut self) -> Result<(), String> {
        let taken = self.machine.claims().take_all();
        taken.map(drop).map_err(|error| {
            format!("the guest's disks are not this process's: {error:#}; the guest stays paused")
        })
    }

    fn resume(&mut self) {
        self.go_on();
        log::info!("the guest goes on");
    }

    fn work(&mut self, work: Work) -> Result<String, String> {
        let (answer, started) = self.with_machine(work);
        started?;
        answer?
    }

    fn hand_over(&mut self, work: HandOver, paused: bool) -> Handed {
        match self.with_machine(|machine| work(machine, paused)) {
            (Ok(Handed::Back(why)), Err(error)) => {
                Handed::Back(format!("{why}; but it cannot go on, and ends: {error}"))
            }
            (Ok(handed), _) => handed,
            (Err(why), _) => Handed::Back(why),
        }
    }

    fn kick(&self) {
        vm::kick(self.running);
    }

    fn end(&mut self) {
        // vCPUs that rest find it when they are told to look.
        self.machine.shared.stop.store(true, Ordering::SeqCst);
    }
}

/// A vCPU that does not rest.
#[derive(Debug)]
pub(crate) struct LateVcpu {
    pub(crate) id: usize,
    /// What it is accessing.
    pub(crate) target: Option<Target>,
}

/// Has the vCPUs rest, until `until` at most.
///
/// # Errors
/// The first one that does not.
pub(crate) fn stop_vcpus(
    shared: &Shared,
    running: &[JoinHandle<Vcpu>],
    until: Instant,
) -> Result<(), LateVcpu> {
    shared.park.ask();
    vm::kick(running);
    while !shared.park.is_full() {
        if Instant::now() < until {
            thread::sleep(LOOK);
            continue;
        }
        let mut late = shared.at.iter().enumerate();
        let late = late.find(|(_, current)| !current.rests());
        // It may have come to rest by now.
        if let Some((id, current)) = late {
            let target = current.target();
            return Err(LateVcpu { id, target });
        }
    }
    Ok(())
}

#[cfg(test)]
mod guest_test;
