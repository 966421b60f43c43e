//! Machines that are moved while they run, on the host's KVM, where there is one.

use std::thread;
use std::time::Duration;

use vm_memory::{Bytes as _, GuestAddress};

use super::machine::Machine;
use super::*;

/// Counts in ECX, has a number that follows from the count in EAX, and combines all of these in
/// memory, where EBX points to. Tells 1 and the count, in the third word there, when the second is
/// not zero; the fourth is the count in between. Tells 2 if the time stamp counter goes back.
#[rustfmt::skip]
const COUNT: &[u8] = &[
    0x31, 0xc9, // xor ecx,ecx
    0xb8, 0x01, 0x00, 0x00, 0x00, // mov eax,0x1
    0x31, 0xf6, // xor esi,esi
    0x31, 0xff, // xor edi,edi
    0x69, 0xc0, 0x0d, 0x66, 0x19, 0x00, // imul eax,eax,0x19660d
    0x05, 0x5f, 0xf3, 0x6e, 0x3c, // add eax,0x3c6ef35f
    0x31, 0x03, // xor DWORD PTR [ebx],eax
    0x41, // inc ecx
    0x89, 0x4b, 0x0c, // mov DWORD PTR [ebx+0xc],ecx
    0x89, 0xc5, // mov ebp,eax
    0x0f, 0x31, // rdtsc
    0x39, 0xfa, // cmp edx,edi
    0x72, 0x21, // jb 0x45
    0x77, 0x04, // ja 0x2a
    0x39, 0xf0, // cmp eax,esi
    0x72, 0x1b, // jb 0x45
    0x89, 0xc6, // mov esi,eax
    0x89, 0xd7, // mov edi,edx
    0x89, 0xe8, // mov eax,ebp
    0x83, 0x7b, 0x04, 0x00, // cmp DWORD PTR [ebx+0x4],0x0
    0x74, 0xd5, // je 0xb
    0x89, 0x4b, 0x08, // mov DWORD PTR [ebx+0x8],ecx
    0xc7, 0x05, 0x00, 0x00, 0x00, 0xd0, 0x01, 0x00, 0x00, 0x00, // mov DWORD PTR ds:0xd0000000,0x1
    0xeb, 0x0a, // jmp 0x4f
    0xc7, 0x05, 0x00, 0x00, 0x00, 0xd0, 0x02, 0x00, 0x00, 0x00, // mov DWORD PTR ds:0xd0000000,0x2
    0xf4, // hlt
    0xeb, 0xfd, // jmp 0x4f
];

/// Where each vCPU's words are.
fn words(id: u8) -> u64 {
    0x20_0000 + 0x1000 * u64::from(id)
}

fn counting(cpus: u8) -> Option<Machine> {
    let machine = Machine::new(cpus)?;
    machine.load(COUNT, |id, regs| regs.rbx = words(id));
    Some(machine)
}

/// What [`COUNT`] has in memory after `count` turns.
fn combined(count: u32) -> u32 {
    let mut number = 1_u32;
    let mut all = 0;
    for _ in 0..count {
        number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        all ^= number;
    }
    all
}

#[test]
fn guests_that_are_moved_again_and_again_count_on_and_see_no_time_go_back() {
    for cpus in [1, 2] {
        let Some(mut machine) = counting(cpus) else {
            return;
        };
        for turn in 1..=24 {
            let counts = |machine: &Machine| -> Vec<u32> {
                (0..cpus).map(|id| machine.word(words(id) + 12)).collect()
            };
            let before = counts(&machine);
            let goes_on = |machine: &Machine| {
                let mut each = counts(machine).into_iter().zip(&before);
                each.all(|(after, before)| after != *before)
            };
            let mut time = Duration::from_micros(100 * turn);
            while !goes_on(&machine) {
                machine.run(Some(time));
                assert!(!machine.has_told(2), "the TSC went back");
                time *= 2;
            }
            machine = machine.moved();
        }
        for id in 0..cpus {
            let end = GuestAddress(words(id) + 4);
            machine.memory.write_obj(1_u32, end).expect("in RAM");
        }
        let ended = |machine: &Machine| (0..cpus).all(|id| machine.word(words(id) + 8) != 0);
        while !ended(&machine) {
            machine.run(Some(Duration::from_millis(5)));
            machine = machine.moved();
        }
        assert!(machine.has_told(1) && !machine.has_told(2));
        for id in 0..cpus {
            let count = machine.word(words(id) + 8);
            assert_eq!(
                machine.word(words(id)),
                combined(count),
                "vCPU {id}: {count}"
            );
        }
    }
}

/// Sets the local APIC's timer to the mode and vector in ESI and the count or the distance of its
/// deadline in EDI, tells 3, waits for interrupt 0xec to be requested, and tells 4.
#[rustfmt::skip]
const TIMER: &[u8] = &[
    0xc7, 0x05, 0xf0, 0x00, 0xe0, 0xfe, 0xff, 0x01, 0x00, 0x00, // mov DWORD PTR ds:0xfee000f0,0x1ff
    0xc7, 0x05, 0xe0, 0x03, 0xe0, 0xfe, 0x0b, 0x00, 0x00, 0x00, // mov DWORD PTR ds:0xfee003e0,0xb
    0x89, 0x35, 0x20, 0x03, 0xe0, 0xfe, // mov DWORD PTR ds:0xfee00320,esi
    0xf7, 0xc6, 0x00, 0x00, 0x04, 0x00, // test esi,0x40000
    0x74, 0x10, // je 0x32
    0x0f, 0x31, // rdtsc
    0x01, 0xf8, // add eax,edi
    0x83, 0xd2, 0x00, // adc edx,0x0
    0xb9, 0xe0, 0x06, 0x00, 0x00, // mov ecx,0x6e0
    0x0f, 0x30, // wrmsr
    0xeb, 0x06, // jmp 0x38
    0x89, 0x3d, 0x80, 0x03, 0xe0, 0xfe, // mov DWORD PTR ds:0xfee00380,edi
    0xc7, 0x05, 0x00, 0x00, 0x00, 0xd0, 0x03, 0x00, 0x00, 0x00, // mov DWORD PTR ds:0xd0000000,0x3
    0xf3, 0x90, // pause
    0xf7, 0x05, 0x70, 0x02, 0xe0, 0xfe, 0x00, 0x10, 0x00, 0x00, // test DWORD PTR ds:0xfee00270,0x1000
    0x74, 0xf2, // je 0x42
    0xc7, 0x05, 0x00, 0x00, 0x00, 0xd0, 0x04, 0x00, 0x00, 0x00, // mov DWORD PTR ds:0xd0000000,0x4
    0xf4, // hlt
];

const ONE_SHOT: u64 = 0xec;
const DEADLINE: u64 = 0x4_00ec;

/// A machine that has set its timer.
fn waiting(mode: u64, distance: u64) -> Option<Machine> {
    let mut machine = Machine::new(1)?;
    machine.load(TIMER, |_, regs| (regs.rsi, regs.rdi) = (mode, distance));
    machine.run(None);
    assert!(machine.has_told(3) && !machine.has_told(4));
    Some(machine)
}

#[test]
fn a_timer_that_runs_fires_after_a_move() {
    for mode in [ONE_SHOT, DEADLINE] {
        for moves in [1, 3] {
            let Some(mut machine) = waiting(mode, 200_000_000) else {
                return;
            };
            for _ in 0..moves {
                machine = machine.moved();
            }
            machine.run(None);
            assert!(machine.has_told(4), "mode {mode:#x}");
        }
    }
}

#[test]
fn a_timer_that_ran_out_while_its_vcpu_stood_still_fires_after_a_move() {
    for mode in [ONE_SHOT, DEADLINE] {
        let Some(machine) = waiting(mode, 1_000_000) else {
            return;
        };
        thread::sleep(Duration::from_millis(50));
        let mut machine = machine.moved();
        machine.run(None);
        assert!(machine.has_told(4), "mode {mode:#x}");
    }
}

/// A deadline that KVM has taken for passed, and whose interrupt nobody has got.
#[test]
fn a_deadline_of_zero_does_not_stay_one_in_a_timer_that_waits_for_one() {
    let Some(machine) = waiting(DEADLINE, 10_000_000_000) else {
        return;
    };
    let mut sections = machine.save();
    let section = sections.take("vcpu0").expect("saved");
    let mut state: VcpuState = section.read(KIND, VERSION).expect("of this version");
    for (index, value) in &mut state.msrs {
        if *index == msrs::TSC_DEADLINE {
            assert_ne!(*value, 0);
            *value = 0;
        }
    }
    let section = Section::new(KIND, VERSION, &state).expect("a section");
    sections.add("vcpu0", section);
    let mut machine = machine.restored(sections);
    machine.run(None);
    assert!(machine.has_told(4));
}
