//! Topology as guests compute it from the leaves.

use super::*;

fn leaf(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
    let [eax, ebx, ecx, edx] = registers;
    kvm_cpuid_entry2 {
        function,
        index,
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    }
}

fn template(cpus: u8, vendor: &[u8; 12]) -> Template {
    let word = |at: usize| {
        u32::from_le_bytes([vendor[at], vendor[at + 1], vendor[at + 2], vendor[at + 3]])
    };
    Template {
        entries: vec![
            leaf(0, 0, [0xd, word(0), word(8), word(4)]),
            leaf(1, 0, [0x663, 0x0702_0800, 1 << 5, 0x0fff_fbff]),
            leaf(4, 0, [0xfc00_c121, 0x1c0_003f, 0x3f, 0]),
            leaf(4, 1, [0xfc1f_c163, 0x1c0_003f, 0x3f, 0]),
            leaf(4, 2, [0; 4]),
            leaf(
                0x4000_0000,
                0,
                [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d],
            ),
            leaf(0x8000_0001, 0, [0, 0, 1 << 2, 0]),
            leaf(0x8000_0008, 0, [0x3028, 0, 0x7007, 0]),
            leaf(0x8000_001e, 0, [9, 0x109, 0x100, 0]),
        ],
        cpus,
        tsc_deadline: true,
    }
}

fn find(table: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
    let entry = table
        .as_slice()
        .iter()
        .find(|entry| entry.function == function && entry.index == index);
    *entry.expect("leaf")
}

#[test]
fn leaf_1_holds_the_vcpus_own_identity() {
    let table = template(4, b"GenuineIntel")
        .for_vcpu(3, None)
        .expect("table");
    let leaf = find(&table, 1, 0);
    assert_eq!(leaf.ebx, 0x0304_0800);
    assert_eq!(
        leaf.ecx,
        1 << 5 | 1 << 21 | 1 << 24 | 1 << 31,
        "VMX as the host has it"
    );
    assert_eq!(leaf.edx, 0x1fff_fbff);
}

#[test]
fn a_single_vcpu_has_no_siblings() {
    let table = template(1, b"GenuineIntel")
        .for_vcpu(0, None)
        .expect("table");
    assert_eq!(find(&table, 1, 0).ebx, 0x0001_0800);
    assert_eq!(find(&table, 1, 0).edx, 0x0fff_fbff);
    assert_eq!(find(&table, 0xb, 1).eax, 0);
}

#[test]
fn the_x2apic_leaf_counts_one_thread_per_core_and_all_cores() {
    let table = template(5, b"GenuineIntel")
        .for_vcpu(4, None)
        .expect("table");
    let registers = |index| {
        let leaf = find(&table, 0xb, index);
        assert_eq!(leaf.flags, 1);
        [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]
    };
    assert_eq!(registers(0), [0, 1, 0x100, 4]);
    assert_eq!(registers(1), [3, 5, 0x201, 4]);
    assert_eq!(registers(2), [0, 0, 2, 4]);
    assert!(
        !table.as_slice().iter().any(|entry| entry.function == 0x1f),
        "the host has no leaf 1F"
    );
}

#[test]
fn the_largest_machine_has_ids_up_to_254() {
    let table = template(255, b"AuthenticAMD")
        .for_vcpu(254, None)
        .expect("table");
    assert_eq!(find(&table, 1, 0).ebx, 0xfeff_0800);
    assert_eq!(find(&table, 0xb, 1).eax, 8);
    assert_eq!(find(&table, 0x8000_0008, 0).ecx, 0x80fe);
}

#[test]
fn first_level_caches_are_private_and_the_last_one_is_shared() {
    let table = template(4, b"GenuineIntel")
        .for_vcpu(0, None)
        .expect("table");
    assert_eq!(find(&table, 4, 0).eax, 3 << 26 | 0x121);
    assert_eq!(find(&table, 4, 1).eax, 3 << 26 | 3 << 14 | 0x163);
    assert_eq!(find(&table, 4, 2).eax, 0);
}

#[test]
fn amd_leaves_agree_with_the_x2apic_leaf() {
    let table = template(4, b"AuthenticAMD")
        .for_vcpu(2, None)
        .expect("table");
    assert_eq!(
        find(&table, 0x8000_0001, 0).ecx,
        1 << 2 | 1 << 1,
        "SVM as the host has it"
    );
    assert_eq!(find(&table, 0x8000_0008, 0).ecx, 0x2003);
    let leaf = find(&table, 0x8000_001e, 0);
    assert_eq!([leaf.eax, leaf.ebx, leaf.ecx], [2, 2, 0]);
}

#[test]
fn frequencies_are_reported_when_known() {
    let table = template(1, b"GenuineIntel")
        .for_vcpu(0, Some(2_500_000))
        .expect("table");
    assert_eq!(find(&table, 0x4000_0000, 0).eax, 0x4000_0010);
    let leaf = find(&table, 0x4000_0010, 0);
    assert_eq!((leaf.eax, leaf.ebx), (2_500_000, 1_000_000));
}

#[test]
fn physical_bits_are_those_of_the_host() {
    assert_eq!(template(1, b"GenuineIntel").physical_bits(), 40);
}
