//! States of vCPUs: whole, odd and impossible ones, on the host's KVM, where there is one.

use zerocopy::IntoBytes as _;

use super::machine::Machine;
use super::*;

/// What a vCPU says of itself, but for its deadline.
fn state_of(vcpu: &Vcpu) -> VcpuState {
    let section = vcpu.save().expect("readable");
    section.read(KIND, VERSION).expect("of this version")
}

fn section(state: &VcpuState) -> Section {
    Section::new(KIND, VERSION, state).expect("a section")
}

fn change(bytes: &mut Bytes, at: usize, with: &[u8]) {
    let mut changed = bytes.as_slice().to_vec();
    changed[at..at + with.len()].copy_from_slice(with);
    *bytes = Bytes::from(changed);
}

/// Fails with the name of what is not the same.
fn assert_same(one: &VcpuState, other: &VcpuState) {
    for (index, value) in &other.msrs {
        let here = one.msrs.iter().find(|(other, _)| other == index);
        assert_eq!(here, Some(&(*index, *value)), "MSR {index:#x}");
    }
    assert_eq!(one.cpuid, other.cpuid);
    assert!(one.sregs == other.sregs, "segment registers");
    assert!(one.xsave == other.xsave, "FPU");
    assert!(one.lapic == other.lapic, "local APIC");
    assert!(one == other, "other registers");
}

fn has_svm(cpuid: &[[u32; 7]]) -> bool {
    let svm = |leaf: &[u32; 7]| leaf[0] == 0x8000_0001 && leaf[5] & 4 != 0;
    cpuid.iter().any(svm)
}

/// A state in which nothing is as it is at power-on.
fn odd(mut state: VcpuState) -> VcpuState {
    let words = |first: u64, count: u64| -> Vec<u8> {
        let words = (first..first + count).map(|word| word * 0x0101_0203_0105_0709);
        words.flat_map(u64::to_le_bytes).collect()
    };
    // All but RIP and RFLAGS.
    change(&mut state.regs, 0, &words(1, 16));
    change(&mut state.regs, 128, &0x1234_5678_u64.to_le_bytes());
    // CR2.
    let cr2 = std::mem::offset_of!(kvm_sregs, cr2);
    change(&mut state.sregs, cr2, &0x9876_5000_u64.to_le_bytes());
    // CR8, which is the task priority below.
    let cr8 = std::mem::offset_of!(kvm_sregs, cr8);
    change(&mut state.sregs, cr8, &4_u64.to_le_bytes());
    // The control word, the registers of SSE, and what of the area is in use (x87 and SSE).
    change(&mut state.xsave, 0, &0x0c7f_u16.to_le_bytes());
    change(&mut state.xsave, 160, &words(20, 16));
    change(&mut state.xsave, 512, &[3]);
    let avx = |leaf: &[u32; 7]| leaf[0] == 0xd && leaf[1] == 0 && leaf[3] & 4 != 0;
    if state.cpuid.iter().any(avx) {
        // The upper halves of AVX's registers (SDM volume 1, 13.5.3).
        change(&mut state.xsave, 576, &words(40, 32));
        change(&mut state.xsave, 512, &[7]);
        state.xcrs = vec![(0, 7)];
    }
    change(&mut state.debug, 0, &0x0040_0000_u64.to_le_bytes());
    change(&mut state.debug, 40, &0x401_u64.to_le_bytes());
    // Logical destination, the priorities of the task and of the processor, that it is on, and the
    // error entry of the local vector table.
    change(&mut state.lapic, 0xd0, &0x0200_0000_u32.to_le_bytes());
    change(&mut state.lapic, 0x80, &0x40_u32.to_le_bytes());
    change(&mut state.lapic, 0xa0, &0x40_u32.to_le_bytes());
    change(&mut state.lapic, 0xf0, &0x1ff_u32.to_le_bytes());
    change(&mut state.lapic, 0x370, &0xfe_u32.to_le_bytes());
    if let Some(nested) = state.nested.as_mut().filter(|_| has_svm(&state.cpuid)) {
        // EFER with SVME, and interrupts held back by CLGI: none of the flags.
        let efer = std::mem::offset_of!(kvm_sregs, efer);
        change(&mut state.sregs, efer, &0x1000_u64.to_le_bytes());
        change(nested, 0, &[0, 0]);
    }
    for (index, value) in &mut state.msrs {
        *value = match *index {
            // SYSENTER, LSTAR, CSTAR, the kernel's GS base.
            0x174 => 0x10,
            0x175 | 0x176 | 0xc000_0082 | 0xc000_0083 | 0xc000_0102 => 0x7000 + u64::from(*index),
            // A memory type and its range, and a bank of machine checks.
            0x200 => 0x8000_0000,
            0x201 => 0xf_8000_0800,
            0x400 => u64::MAX,
            // PAT.
            0x277 => 0x0007_0106_0407_0106,
            msrs::TSC_ADJUST => 12_345,
            // Steal time.
            0x4b56_4d03 => 0x30_0001,
            // Until the end of an interrupt need not be told.
            0x4b56_4d04 => 0x30_1001,
            _ => *value,
        };
    }
    state.mp_state = kvm_bindings::KVM_MP_STATE_HALTED;
    state
}

#[test]
fn a_state_is_the_same_after_it_was_put_into_another_vcpu() {
    let (Some(one), Some(other)) = (Machine::new(1), Machine::new(1)) else {
        return;
    };
    let (one, other) = (&one.vcpus[0], &other.vcpus[0]);
    let mut odd = odd(state_of(one));
    one.restore(&section(&odd)).expect("possible");
    let first = state_of(one);
    // One of its numbers, the size of what XSAVE writes, follows XCR0.
    odd.cpuid.clone_from(&first.cpuid);
    assert_same(&first, &odd);
    other.restore(&section(&first)).expect("possible");
    assert_same(&state_of(other), &first);
}

#[test]
fn a_restored_vcpu_can_be_reset() {
    let Some(machine) = Machine::new(1) else {
        return;
    };
    let mut vcpus = machine.vcpus;
    let vcpu = &mut vcpus[0];
    let fresh = state_of(vcpu);
    vcpu.restore(&section(&odd(state_of(vcpu))))
        .expect("possible");
    vcpu.reset().expect("possible");
    let mut reset = state_of(vcpu);
    // The TSC goes on, and with it what the guest has added to it.
    for (index, value) in &mut reset.msrs {
        if *index == msrs::TSC_ADJUST {
            *value = 0;
        }
    }
    assert_same(&reset, &fresh);
}

#[test]
fn a_table_with_what_kvm_does_not_have_is_refused_by_name() {
    let Some(machine) = Machine::new(1) else {
        return;
    };
    let vcpu = &machine.vcpus[0];
    let mut state = state_of(vcpu);
    // A bit that is reserved.
    let leaf = state.cpuid.iter_mut().find(|leaf| leaf[0] == 1);
    leaf.expect("leaf 1")[6] |= 1 << 10;
    let error = vcpu.restore(&section(&state)).expect_err("refused");
    let text = error.to_string();
    assert!(
        text.starts_with("CPUID leaf 0x1 EDX: the guest has bits 0x00000400, which"),
        "{text}"
    );
}

/// Each field of a state that cannot be is told, and nothing worse happens.
#[test]
fn states_that_cannot_be_are_refused() {
    let Some(machine) = Machine::new(1) else {
        return;
    };
    type Spoil = fn(&mut VcpuState);
    let cases: [(&str, Spoil); 13] = [
        ("the number of the vCPU is 3", |state| state.id = 3),
        ("registers cannot be: 143 bytes", |state| {
            shorten(&mut state.regs)
        }),
        ("segment registers cannot be", |state| {
            shorten(&mut state.sregs)
        }),
        ("FPU and vector registers cannot be: 4095", |state| {
            shorten(&mut state.xsave);
        }),
        ("FPU and vector registers: ", |state| {
            state.xsave = Bytes::from(vec![1; 1 << 20]);
        }),
        ("debug registers cannot be", |state| {
            shorten(&mut state.debug)
        }),
        ("the local APIC cannot be", |state| {
            shorten(&mut state.lapic)
        }),
        ("pending events cannot be", |state| {
            shorten(&mut state.events)
        }),
        ("the run state", |state| state.mp_state = 77),
        ("CPUID cannot be: 257 leaves", |state| {
            state.cpuid = vec![[0; 7]; 257];
        }),
        ("MSR 0x12345: this host's KVM does not know it", |state| {
            state.msrs.push((0x12345, 0));
        }),
        ("extended control registers cannot be", |state| {
            state.xcrs = vec![(0, 1); 17];
        }),
        (
            "the state of a nested guest cannot be: it is too long",
            |state| {
                state.nested = Some(Bytes::from(vec![0; 8321]));
            },
        ),
    ];
    let state = state_of(&machine.vcpus[0]);
    for (start, spoil) in cases {
        let mut state: VcpuState = section(&state).read(KIND, VERSION).expect("the same");
        spoil(&mut state);
        let fresh = Machine::new(1).expect("there was one");
        let error = fresh.vcpus[0].restore(&section(&state));
        let text = error.expect_err(start).to_string();
        assert!(text.starts_with(start), "{text}");
    }
}

fn shorten(bytes: &mut Bytes) {
    let length = bytes.as_slice().len() - 1;
    *bytes = Bytes::new(&bytes.as_slice()[..length]);
}

#[test]
fn interrupts_that_no_handler_has_ended_are_told_with_those_that_wait_for_theirs() {
    let Some(machine) = Machine::new(2) else {
        return;
    };
    let vectors = |machine: &Machine| -> Vec<u8> {
        let vectors = crate::vcpu::unfinished(&machine.vcpus).expect("readable");
        vectors.iter().collect()
    };
    assert!(vectors(&machine).is_empty());
    for (vcpu, register, bit) in [(0, 0x110, 1_u32), (1, 0x270, 1 << 31)] {
        let fd = &machine.vcpus[vcpu].fd;
        let mut lapic = Bytes::new(fd.get_lapic().expect("readable").as_bytes());
        change(&mut lapic, 0xf0, &0x1ff_u32.to_le_bytes());
        change(&mut lapic, register, &bit.to_le_bytes());
        let lapic: kvm_lapic_state = structure("the local APIC", &lapic).expect("whole");
        fd.set_lapic(&lapic).expect("taken");
    }
    assert_eq!(vectors(&machine), [32, 255]);
    assert_eq!(vectors(&machine.moved()), [32, 255]);
}
