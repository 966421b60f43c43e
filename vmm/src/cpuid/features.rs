//! What one CPUID table promises a guest and another does not keep.

use kvm_bindings::kvm_cpuid_entry2;
use state::RestoreError;

use super::is_amd;

/// A register of a leaf.
type Register = (&'static str, fn(&kvm_cpuid_entry2) -> u32);

const EAX: Register = ("EAX", |entry| entry.eax);
const EBX: Register = ("EBX", |entry| entry.ebx);
const ECX: Register = ("ECX", |entry| entry.ecx);
const EDX: Register = ("EDX", |entry| entry.edx);

/// A register each of whose bits is something that a guest may use.
struct Word {
    leaf: u32,
    index: u32,
    register: Register,
    /// Numbers of the bits that matter most, with the names that Linux has for them.
    names: &'static str,
}

const fn word(leaf: u32, index: u32, register: Register, names: &'static str) -> Word {
    Word {
        leaf,
        index,
        register,
        names,
    }
}

/// All such registers (SDM volume 2, CPUID; APM volume 3, appendix E; KVM's own).
const WORDS: [Word; 24] = [
    word(
        1,
        0,
        ECX,
        "0 sse3, 1 pclmulqdq, 5 vmx, 9 ssse3, 12 fma, 13 cx16, 17 pcid, 19 sse4_1, 20 sse4_2, 21 x2apic, 22 movbe, 23 popcnt, 24 tsc_deadline_timer, 25 aes, 26 xsave, 28 avx, 29 f16c, 30 rdrand",
    ),
    word(1, 0, EDX, "4 tsc, 24 fxsr, 25 sse, 26 sse2"),
    word(6, 0, EAX, "2 arat"),
    word(
        7,
        0,
        EBX,
        "0 fsgsbase, 1 tsc_adjust, 3 bmi1, 4 hle, 5 avx2, 7 smep, 8 bmi2, 9 erms, 10 invpcid, 11 rtm, 16 avx512f, 17 avx512dq, 18 rdseed, 19 adx, 20 smap, 23 clflushopt, 24 clwb, 28 avx512cd, 29 sha_ni, 30 avx512bw, 31 avx512vl",
    ),
    word(
        7,
        0,
        ECX,
        "1 avx512vbmi, 2 umip, 3 pku, 5 waitpkg, 7 shstk, 8 gfni, 9 vaes, 10 vpclmulqdq, 11 avx512_vnni, 16 la57, 22 rdpid",
    ),
    word(
        7,
        0,
        EDX,
        "4 fsrm, 14 serialize, 20 ibt, 22 amx_bf16, 23 avx512_fp16, 24 amx_tile, 25 amx_int8, 26 spec_ctrl, 28 flush_l1d, 29 arch_capabilities, 31 ssbd",
    ),
    word(7, 1, EAX, "4 avx_vnni, 5 avx512_bf16, 26 lam"),
    word(7, 1, EBX, ""),
    word(7, 1, ECX, ""),
    word(7, 1, EDX, "19 avx10"),
    word(7, 2, EDX, ""),
    // The states that XSAVE knows.
    word(
        0xd,
        0,
        EAX,
        "2 the registers of avx, 5 the registers of avx512, 9 the register of pku, 17 the configuration of amx, 18 the registers of amx",
    ),
    word(0xd, 0, EDX, ""),
    word(
        0xd,
        1,
        EAX,
        "0 xsaveopt, 1 xsavec, 2 xgetbv1, 3 xsaves, 4 xfd",
    ),
    word(0xd, 1, ECX, ""),
    word(0xd, 1, EDX, ""),
    word(
        0x4000_0001,
        0,
        EAX,
        "0 kvmclock, 3 kvmclock2, 4 async_pf, 5 steal_time, 6 pv_eoi, 7 pv_unhalt, 9 pv_tlb_flush, 10 async_pf_vmexit, 11 pv_send_ipi, 13 pv_sched_yield, 14 async_pf_int, 24 kvmclock_stable",
    ),
    word(
        0x8000_0001,
        0,
        ECX,
        "0 lahf_lm, 2 svm, 5 abm, 6 sse4a, 11 xop, 16 fma4",
    ),
    word(
        0x8000_0001,
        0,
        EDX,
        "11 syscall, 20 nx, 26 pdpe1gb, 27 rdtscp, 29 lm",
    ),
    word(0x8000_0007, 0, EDX, "8 constant_tsc"),
    word(
        0x8000_0008,
        0,
        EBX,
        "0 clzero, 2 xsaveerptr, 9 wbnoinvd, 12 ibpb, 14 ibrs",
    ),
    word(
        0x8000_000a,
        0,
        EDX,
        "0 npt, 1 lbrv, 3 nrip_save, 4 tsc_scale, 6 flushbyasid",
    ),
    word(0x8000_0021, 0, EAX, "8 autoibrs"),
    word(0xc000_0001, 0, EDX, ""),
];

/// Bits that follow what a guest has written: OSXSAVE of leaf 1, OSPKE of leaf 7, and the APIC,
/// which a guest can switch off.
const FOLLOWING: [(u32, &str, u32); 3] =
    [(1, "ECX", 1 << 27), (1, "EDX", 1 << 9), (7, "ECX", 1 << 4)];

/// Numbers of which there may be more here than a guest knows of: counters for performance (leaf
/// A), and how wide they are.
const NUMBERS: [(&str, Register, u32, u32); 5] = [
    ("version of performance counters", EAX, 0, 0xff),
    ("performance counters", EAX, 8, 0xff),
    ("bits of a performance counter", EAX, 16, 0xff),
    ("fixed performance counters", EDX, 0, 0x1f),
    ("bits of a fixed performance counter", EDX, 5, 0xff),
];

/// Components of XSAVE whose places are not the same on all processors.
const FIRST_EXTENDED: u32 = 2;
const LAST_EXTENDED: u32 = 62;

/// Compares the table of a `saved` guest with the one that it would get `here`. What only describes
/// the processor may differ, and there may be more here.
///
/// # Errors
/// The first thing that the guest may rely on and that is not here.
pub(crate) fn check(
    saved: &[kvm_cpuid_entry2],
    here: &[kvm_cpuid_entry2],
) -> Result<(), RestoreError> {
    let vendor = |table: &[kvm_cpuid_entry2]| vendor(&leaf(table, 0, 0));
    RestoreError::unless_equal("the processor's vendor", vendor(saved), vendor(here))?;
    for word in &WORDS {
        word.check(saved, here)?;
    }
    check_layout(saved, here)?;
    let bits = |table: &[kvm_cpuid_entry2]| leaf(table, 0x8000_0008, 0).eax & 0xff;
    RestoreError::unless_equal("the number of address bits", bits(saved), bits(here))?;
    for (what, (_, register), shift, mask) in NUMBERS {
        let number = |table: &[kvm_cpuid_entry2]| register(&leaf(table, 0xa, 0)) >> shift & mask;
        if number(saved) > number(here) {
            RestoreError::unless_equal(what, number(saved), number(here))?;
        }
    }
    Ok(())
}

/// What XSAVE saves is where the processor has it: KVM hands it over so, and the guest has made room
/// for it so.
fn check_layout(saved: &[kvm_cpuid_entry2], here: &[kvm_cpuid_entry2]) -> Result<(), RestoreError> {
    for component in FIRST_EXTENDED..=LAST_EXTENDED {
        let place = |table| {
            let leaf = leaf(table, 0xd, component);
            format!("{} bytes at {:#x}", leaf.eax, leaf.ebx)
        };
        if leaf(saved, 0xd, component).eax != 0 {
            let what = format_args!("component {component} of what XSAVE saves");
            RestoreError::unless_equal(what, place(saved), place(here))?;
        }
    }
    Ok(())
}

impl Word {
    fn check(
        &self,
        saved: &[kvm_cpuid_entry2],
        here: &[kvm_cpuid_entry2],
    ) -> Result<(), RestoreError> {
        let (name, register) = self.register;
        let word = |table| register(&leaf(table, self.leaf, self.index));
        let missing = word(saved) & !word(here) & !self.following();
        if missing == 0 {
            return Ok(());
        }
        let names = self.names(missing).join(", ");
        let names = match names.is_empty() {
            true => names,
            false => format!(" ({names})"),
        };
        let index = match self.index {
            0 => String::new(),
            index => format!(".{index}"),
        };
        Err(RestoreError::host(
            format_args!("CPUID leaf {:#x}{index} {name}", self.leaf),
            format_args!(
                "the guest has bits {missing:#010x}{names}, which this host's KVM does not offer: restore it on a host that does"
            ),
        ))
    }

    /// The names of those of `bits` that have one.
    fn names(&self, bits: u32) -> Vec<&'static str> {
        let all = self
            .names
            .split(", ")
            .filter_map(|name| name.split_once(' '));
        let named = all.filter(|(bit, _)| bit.parse().is_ok_and(|bit: u8| bits >> bit & 1 != 0));
        named.map(|(_, name)| name).collect()
    }

    fn following(&self) -> u32 {
        let here = |(leaf, register, _): &&(u32, &str, u32)| {
            *leaf == self.leaf && *register == self.register.0 && self.index == 0
        };
        FOLLOWING.iter().find(here).map_or(0, |(_, _, bits)| *bits)
    }
}

/// A leaf, or one of zeros.
fn leaf(table: &[kvm_cpuid_entry2], function: u32, index: u32) -> kvm_cpuid_entry2 {
    let found = table
        .iter()
        .find(|entry| entry.function == function && entry.index == index);
    found.copied().unwrap_or_default()
}

/// Who made the processor, as far as a guest can see. Hygon's processors are AMD's.
fn vendor(leaf0: &kvm_cpuid_entry2) -> String {
    if is_amd(leaf0) {
        return "AMD".to_owned();
    }
    let words = [leaf0.ebx, leaf0.edx, leaf0.ecx].map(u32::to_le_bytes);
    String::from_utf8_lossy(&words.concat()).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(leaves: &[(u32, u32, [u32; 4])]) -> Vec<kvm_cpuid_entry2> {
        let entry =
            |(function, index, [eax, ebx, ecx, edx]): &(u32, u32, [u32; 4])| kvm_cpuid_entry2 {
                function: *function,
                index: *index,
                eax: *eax,
                ebx: *ebx,
                ecx: *ecx,
                edx: *edx,
                ..Default::default()
            };
        leaves.iter().map(entry).collect()
    }

    const INTEL: (u32, u32, [u32; 4]) = (0, 0, [0xd, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]);
    const AMD: (u32, u32, [u32; 4]) = (0, 0, [0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65]);

    fn refusal(saved: &[(u32, u32, [u32; 4])], here: &[(u32, u32, [u32; 4])]) -> String {
        let result = check(&table(saved), &table(here));
        result.expect_err("something is missing").to_string()
    }

    #[test]
    fn what_is_more_here_or_only_describes_is_no_obstacle() {
        let saved = [
            INTEL,
            (1, 0, [0x50654, 0x800, 1 << 26 | 1 << 27, 1 << 25 | 1 << 9]),
            (2, 0, [1, 2, 3, 4]),
            (7, 0, [0, 1 << 5, 1 << 4, 0]),
            (0xa, 0, [0x0730_0402, 0x7f, 0, 0x603]),
            (0x8000_0008, 0, [0x3028, 0, 0, 0]),
        ];
        let here = [
            INTEL,
            (1, 0, [0x60000, 0x400, 1 << 26 | 1 << 5, 3 << 25]),
            (7, 0, [0, 1 << 5 | 1 << 16, 0, 0]),
            (0xa, 0, [0x0830_0805, 0, 0, 0x604]),
            (0x8000_0008, 0, [0x2828, 0, 0, 0]),
        ];
        assert_eq!(check(&table(&saved), &table(&here)), Ok(()));
        assert_eq!(check(&table(&saved), &table(&saved)), Ok(()));
    }

    #[test]
    fn the_first_leaf_with_bits_that_are_not_here_is_named() {
        let saved = [INTEL, (7, 0, [0, 1 << 5 | 1 << 16 | 1 << 12 | 1, 0, 7])];
        let here = [INTEL, (7, 0, [0, 1, 0, 0])];
        assert_eq!(
            refusal(&saved, &here),
            "CPUID leaf 0x7 EBX: the guest has bits 0x00011020 (avx2, avx512f), which this host's KVM does not offer: restore it on a host that does"
        );
        let saved = [INTEL, (7, 1, [0, 0, 1 << 3, 0])];
        let text = refusal(&saved, &[INTEL]);
        assert!(
            text.starts_with("CPUID leaf 0x7.1 ECX: the guest has bits 0x00000008, which"),
            "{text}"
        );
    }

    #[test]
    fn each_word_is_compared() {
        for word in &WORDS {
            let registers = ["EAX", "EBX", "ECX", "EDX"].map(|name| match name {
                name if name == word.register.0 => 1 << 31,
                _ => 0,
            });
            let text = refusal(&[INTEL, (word.leaf, word.index, registers)], &[INTEL]);
            assert!(text.contains(&format!("leaf {:#x}", word.leaf)), "{text}");
            let named = word.names(u32::MAX).len();
            let listed = word.names.split(", ").filter(|name| !name.is_empty());
            assert_eq!(named, listed.count(), "{}", word.names);
        }
    }

    #[test]
    fn a_guest_stays_with_its_vendor_its_address_bits_and_its_counters() {
        assert_eq!(
            refusal(&[AMD], &[INTEL]),
            "the processor's vendor is AMD in the saved machine and GenuineIntel here"
        );
        assert_eq!(
            refusal(
                &[INTEL, (0x8000_0008, 0, [0x3028, 0, 0, 0])],
                &[INTEL, (0x8000_0008, 0, [0x3027, 0, 0, 0])]
            ),
            "the number of address bits is 40 in the saved machine and 39 here"
        );
        assert_eq!(
            refusal(
                &[INTEL, (0xa, 0, [0x0730_0402, 0, 0, 0])],
                &[INTEL, (0xa, 0, [0x0730_0202, 0, 0, 0])]
            ),
            "performance counters is 4 in the saved machine and 2 here"
        );
    }
}
