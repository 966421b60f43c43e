//! The arithmetic of clocks, and clocks that go on elsewhere on the host's KVM, where there is one.

use std::sync::Arc;

use super::*;
use crate::config::MemoryConfig;
use crate::{kvm, memory};

fn tsc(value: u64, adjust: u64) -> Tsc {
    Tsc { value, adjust }
}

#[test]
fn a_counter_that_wraps_is_still_compared() {
    assert!(is_before(1, 2));
    assert!(!is_before(2, 2));
    assert!(!is_before(3, 2));
    assert!(is_before(u64::MAX - 1, 3));
    assert!(!is_before(3, u64::MAX - 1));
}

#[test]
fn the_latest_of_the_counters_is_found_without_what_the_guest_added() {
    assert_eq!(latest(&[tsc(100, 0), tsc(107, 0), tsc(103, 0)]), 107);
    assert_eq!(latest(&[tsc(100, 0), tsc(1107, 1000), tsc(103, 0)]), 107);
    let back = 0_u64.wrapping_sub(50);
    assert_eq!(latest(&[tsc(100, 0), tsc(58, back)]), 108);
    assert_eq!(latest(&[tsc(u64::MAX, 0), tsc(4, 0)]), 4, "it has wrapped");
    assert_eq!(latest(&[]), 0);
}

#[test]
fn a_time_in_cycles_does_not_overflow() {
    assert_eq!(cycles(1_000_000_000, 2_500_000), Some(2_500_000_000));
    assert_eq!(cycles(1, 2_500_000), Some(2));
    assert_eq!(cycles(0, 0), Some(0));
    // 200 years at 5 GHz.
    assert_eq!(cycles(6_307_200_000_000_000_000, 5_000_000), None);
}

/// Whatever the host's TSC is: the guest's go on by the time that kvm-clock went on.
#[test]
fn offsets_follow_the_hosts_counter_and_the_clock() {
    let moment = Moment {
        host_tsc: 1_000_000,
        offsets: vec![0_u64.wrapping_sub(900_000), 7],
    };
    for host_tsc in [5, 1_000_000, 1_234_567, u64::MAX - 3] {
        let offsets = moment.offsets_after(Some(250), host_tsc).expect("some");
        let here: Vec<u64> = offsets
            .iter()
            .map(|offset| host_tsc.wrapping_add(*offset))
            .collect();
        assert_eq!(here, [100_250, 1_000_257]);
    }
    assert_eq!(moment.offsets_after(None, 5), None);
}

#[test]
fn a_moment_is_none_if_the_counters_were_elsewhere() {
    let moment = Moment {
        host_tsc: 1000,
        offsets: vec![5, 0_u64.wrapping_sub(10)],
    };
    let between = |before: [u64; 2], after: [u64; 2]| {
        let tscs = |values: [u64; 2]| values.map(|value| tsc(value, 0));
        moment.is_between(&tscs(before), &tscs(after))
    };
    assert!(between([1000, 980], [1010, 1000]));
    assert!(between([1005, 990], [1005, 990]));
    assert!(!between([1006, 980], [1010, 1000]));
    assert!(!between([1000, 980], [1010, 989]), "the second is scaled");
}

#[test]
fn frequencies_are_close_up_to_the_tolerance() {
    assert!(is_close(2_500_000, 2_500_000, 0));
    assert!(is_close(2_500_625, 2_500_000, 250));
    assert!(!is_close(2_500_626, 2_500_000, 250));
    assert!(is_close(2_499_375, 2_500_000, 250));
    assert!(!is_close(1, 0, 250));
}

/// A virtual machine with two vCPUs that have not run.
struct Machine {
    vm: Arc<VmFd>,
    vcpus: Vec<VcpuFd>,
}

impl Machine {
    /// `None` on a host without KVM, or whose KVM gives guests the host's TSC as it is.
    fn new() -> Option<Self> {
        let Ok(host) = kvm::open(2) else {
            eprintln!("skipped: this host has no usable /dev/kvm");
            return None;
        };
        let config = MemoryConfig::plain(4 << 20);
        let memory =
            memory::allocate(&config, 0, memory::Backing::Anonymous, None).expect("memory");
        let vm = kvm::create_vm(&host, &memory).expect("a virtual machine");
        let vcpu = |id| {
            let vcpu = vm.create_vcpu(id).expect("a vCPU");
            msrs::set(&vcpu, msrs::TSC, 0).expect("taken");
            vcpu
        };
        let vcpus: Vec<VcpuFd> = (0..2).map(vcpu).collect();
        let now = msrs::get(&vcpus[0], msrs::TSC).expect("there");
        if now > FAR {
            eprintln!("skipped: this host's KVM does not let a guest have its own TSC");
            return None;
        }
        Some(Self { vm, vcpus })
    }

    fn vcpus(&self) -> Vec<&VcpuFd> {
        self.vcpus.iter().collect()
    }

    fn save(&self) -> ClockState {
        let section = save(&self.vm, &self.vcpus()).expect("readable");
        section.read(KIND, VERSION).expect("of this version")
    }

    fn restore(&self, state: &ClockState) -> Result<(), RestoreError> {
        let section = Section::new(KIND, VERSION, state).expect("a section");
        restore(&self.vm, &self.vcpus(), &section)
    }

    /// Has the guest change a TSC.
    fn adjust(&self, vcpu: usize, by: u64) {
        let vcpu = &self.vcpus[vcpu];
        let value = msrs::get(vcpu, msrs::TSC).expect("there");
        set_exactly(vcpu, value.wrapping_add(by)).expect("possible");
        // Only a vCPU whose CPUID has it has this register.
        let mut table = Kvm::new()
            .and_then(|kvm| kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES))
            .expect("a table");
        for entry in table.as_mut_slice() {
            if entry.function == 7 && entry.index == 0 {
                entry.ebx |= 1 << 1;
            }
        }
        vcpu.set_cpuid2(&table).expect("taken");
        msrs::set(vcpu, msrs::TSC_ADJUST, by).expect("taken");
    }
}

/// Whether the host's TSC drives kvm-clock, so that vCPUs are in step exactly.
fn is_stable(machine: &Machine) -> bool {
    host_tsc(&machine.vm.get_clock().expect("readable")).is_some()
}

/// The clocks of `state` go on in a fresh machine.
#[track_caller]
fn assert_goes_on(state: &ClockState) {
    let other = Machine::new().expect("there was one");
    other.restore(state).expect("possible");
    let then = other.save();
    assert!(then.kvm_clock >= state.kvm_clock, "kvm-clock");
    for (then, now) in then.tscs.iter().zip(&state.tscs) {
        assert!(!is_before(then.value, now.value), "{then:?} {now:?}");
    }
    // It has gone on by what has passed, and not by as much as a machine that began anew.
    let plain = |tsc: &Tsc| tsc.value.wrapping_sub(tsc.adjust);
    let passed = then.tscs[0].value.wrapping_sub(state.tscs[0].value);
    assert!(passed < 1 << 40, "{passed:#x}");
    if is_stable(&other) {
        let [first, second] = [0, 1].map(|vcpu| {
            let value = msrs::get(&other.vcpus[vcpu], msrs::TSC).expect("there");
            Tsc {
                value,
                adjust: state.tscs[vcpu].adjust,
            }
        });
        let again = msrs::get(&other.vcpus[0], msrs::TSC).expect("there");
        let again = Tsc {
            value: again,
            adjust: first.adjust,
        };
        assert!(
            !is_before(plain(&second), plain(&first)),
            "{first:?} {second:?}"
        );
        assert!(
            !is_before(plain(&again), plain(&second)),
            "{second:?} {again:?}"
        );
    }
}

/// In both ways, whatever the guest has added to a TSC. Machines this young have TSCs that KVM
/// takes for those that it has given the fresh one.
#[test]
fn clocks_of_another_machine_go_on_and_stay_in_step() {
    let far_back = 0_u64.wrapping_sub(1 << 50);
    for by in [0, 1 << 20, 1 << 50, far_back] {
        let Some(machine) = Machine::new() else {
            return;
        };
        if by != 0 {
            machine.adjust(1, by);
        }
        let mut state = machine.save();
        assert_eq!(state.moment.is_some(), is_stable(&machine));
        if by != 0 {
            // This test moves them less exactly than KVM does for a guest.
            state.moment = None;
        }
        assert_goes_on(&state);
        state.moment = None;
        assert_goes_on(&state);
    }
}

#[test]
fn a_clock_goes_on_from_where_it_was_long_ago() {
    let Some(machine) = Machine::new() else {
        return;
    };
    let mut state = machine.save();
    // 100 days, and a TSC that is about to wrap.
    state.kvm_clock = 8_640_000_000_000_000;
    for value in [1 << 52, u64::MAX - 1000] {
        let offset = value - state.tscs[0].value;
        for tsc in &mut state.tscs {
            tsc.value = tsc.value.wrapping_add(offset);
        }
        if let Some(moment) = &mut state.moment {
            for other in &mut moment.offsets {
                *other = other.wrapping_add(offset);
            }
        }
        assert_goes_on(&state);
        let moment = state.moment.take();
        assert_goes_on(&state);
        state.moment = moment;
    }
}

#[test]
fn another_number_of_vcpus_or_another_frequency_is_refused() {
    let Some(machine) = Machine::new() else {
        return;
    };
    let mut state = machine.save();
    let here = state.tsc_khz.expect("known");
    state.tsc_khz = Some(here * 2);
    if !Kvm::new().expect("there").check_extension(Cap::TscControl) {
        let error = machine.restore(&state).expect_err("refused").to_string();
        let start =
            "the frequency of the time stamp counter, which this host's CPU cannot scale, is";
        assert!(error.starts_with(start), "{error}");
    }
    state.tscs.pop();
    let error = machine.restore(&state).expect_err("refused").to_string();
    assert_eq!(
        error,
        "the number of vCPUs is 1 in the saved machine and 2 here"
    );
}
