//! The capability words of every configuration, as they were when a configuration was a list of flags.

use super::*;

/// What a configuration was: the greatest width of an input address, the width of a PASID, and
/// flags. From bit 0 on: scalable, first stage, second stage, nested, interrupt remapping, x2APIC, caching mode, snoop
/// control, device-TLB, page requests; and of walks pages of 1 GiB, requests of supervisors, extended accessed, snooped.
type Flat = (u8, u8, u32);

/// The configuration that is `flat`, if one can be written.
fn config((address_width, pasid_bits, flags): Flat) -> Option<UnitConfig> {
    let on = |bit: u32| flags >> bit & 1 != 0;
    let stages = match (on(1), on(2), on(3)) {
        (false, true, false) => Stages::Second,
        (true, false, false) => Stages::First,
        (true, true, false) => Stages::Both,
        (true, true, true) => Stages::Nested,
        _ => return None,
    };
    let walks = WalkFeatures::ALL
        .with_pages_of_1g(on(10))
        .with_supervisor_requests(on(11))
        .with_extended_accessed(on(12))
        .with_snooped(on(13));
    let scalable = Scalable::new(stages)
        .with_pasid_bits(pasid_bits)
        .with_page_requests(on(9))
        .with_walks(walks);
    let legacy = stages == Stages::Second && pasid_bits == 0 && !on(9);
    let scalable = match on(0) {
        true => Some(scalable),
        false if legacy => None,
        false => return None,
    };
    let interrupts = match (on(4), on(5)) {
        (false, false) => Interrupts::Off,
        (true, x2apic) => Interrupts::Remapped { x2apic },
        (false, true) => return None,
    };
    let config = UnitConfig::legacy(46)
        .with_address_width(AddressWidth::from_bits(address_width)?)
        .with_scalable(scalable)
        .with_interrupts(interrupts)
        .with_caching_mode(on(6))
        .with_snoop_control(on(7))
        .with_device_tlb(on(8));
    Some(config)
}

/// CAP and ECAP of `flat`, if there is such a unit.
fn words(flat: Flat) -> Option<(u64, u64)> {
    let caps = config(flat)?.capabilities().ok()?;
    Some((caps.cap.into_bits(), caps.ecap.into_bits()))
}

#[test]
fn the_same_configurations_make_the_same_units() {
    // FNV-1a of the place, CAP and ECAP of each of the configurations that make a unit.
    let (mut hash, mut units, mut place) = (0xCBF2_9CE4_8422_2325_u64, 0, 0_u64);
    for address_width in [39, 48, 57] {
        for pasid_bits in 0..=20 {
            for flags in 0..1 << 14 {
                if let Some((cap, ecap)) = words((address_width, pasid_bits, flags)) {
                    units += 1;
                    for byte in [place, cap, ecap].map(u64::to_le_bytes).concat() {
                        hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3);
                    }
                }
                place += 1;
            }
        }
    }
    assert_eq!((units, place), (110_016, 1_032_192));
    assert_eq!(hash, 0x4DA9_EC03_6C42_DD25);
}

#[test]
fn without_page_walk_coherency_walks_of_no_mode_are_snooped() {
    const C: u64 = 1;
    const EAFS: u64 = 1 << 34;
    const SSADS: u64 = 1 << 45;
    const SMPWCS: u64 = 1 << 48;
    const ALL: u64 = C | EAFS | SSADS | SMPWCS;
    let all = config((48, 20, 0x3fff)).unwrap();
    let ecap = |config: UnitConfig| config.capabilities().unwrap().ecap.into_bits();
    let with = ecap(all.clone());
    assert_eq!(with & ALL, ALL);
    let without = ecap(all.with_page_walk_coherency(false));
    assert_eq!(without & ALL, 0);
}

#[test]
fn some_of_them_in_full() {
    for (address_width, pasid_bits, flags, cap, ecap) in WORDS {
        let flat = (address_width, pasid_bits, flags);
        assert_eq!(words(flat), Some((cap, ecap)), "{flat:x?}");
    }
}

/// Address width, PASID bits, flags, CAP, ECAP.
const WORDS: [(u8, u8, u32, u64, u64); 41] = [
    (39, 0, 0x0004, 0x80D2_078C_2266_0206, 0x0000_0000_0000_0F43),
    (39, 4, 0x0715, 0xC0D2_078C_2266_0206, 0x0002_4D1A_20F0_0F4F),
    (39, 8, 0x3835, 0xC0D2_078C_2266_0206, 0x0003_6938_80F0_0F5B),
    (39, 13, 0x2945, 0x80D2_078C_2266_0286, 0x0003_6962_8000_0F47),
    (39, 18, 0x1b55, 0xC0D2_078C_2266_0286, 0x0002_4D8A_A0F0_0F4F),
    (48, 0, 0x1d7f, 0xC1D2_078C_226F_0686, 0x0000_C802_04F0_0F5F),
    (48, 1, 0x2497, 0xC1D2_078C_226F_0606, 0x0003_E900_00F0_0FCB),
    (48, 2, 0x30df, 0xC0D2_078C_226F_0686, 0x0003_E90C_04F0_0FCB),
    (48, 3, 0x3d33, 0xC1D2_078C_226F_0606, 0x0003_8916_80F0_0F5F),
    (48, 5, 0x0975, 0xC0D2_078C_226F_0686, 0x0002_4922_80F0_0F5F),
    (48, 6, 0x15b7, 0xC1D2_078C_226F_0606, 0x0002_C92A_00F0_0FDF),
    (48, 7, 0x21ff, 0xC0D2_078C_226F_0686, 0x0003_E932_04F0_0FDF),
    (48, 8, 0x2f43, 0x81D2_078C_226F_0686, 0x0003_8D3A_A000_0F47),
    (48, 9, 0x3b85, 0x80D2_078C_226F_0606, 0x0003_6D42_A000_0FC7),
    (48, 11, 0x07c7, 0x81D2_078C_226F_0686, 0x0002_CD52_2000_0FC7),
    (48, 12, 0x140f, 0x81D2_078C_226F_0606, 0x0002_C958_0400_0F43),
    (48, 13, 0x2053, 0xC0D2_078C_226F_0686, 0x0003_8960_00F0_0F4B),
    (48, 14, 0x2c95, 0xC0D2_078C_226F_0606, 0x0003_6968_80F0_0FCB),
    (48, 15, 0x38d7, 0xC0D2_078C_226F_0686, 0x0003_E974_80F0_0FCB),
    (48, 17, 0x051f, 0xC1D2_078C_226F_0606, 0x0002_C982_04F0_0F4F),
    (48, 18, 0x1173, 0xC0D2_078C_226F_0686, 0x0002_898A_00F0_0F5F),
    (48, 19, 0x1db5, 0xC0D2_078C_226F_0606, 0x0002_4992_80F0_0FDF),
    (48, 20, 0x29f7, 0xC0D2_078C_226F_0686, 0x0003_E99A_80F0_0FDF),
    (57, 0, 0x2f3f, 0xD1D2_078C_2278_0E06, 0x0001_EC02_24F0_0F5F),
    (57, 1, 0x3883, 0x90D2_078C_2278_0E06, 0x0003_8904_8000_0FC3),
    (57, 3, 0x04c5, 0x80D2_078C_2278_0E86, 0x0002_4910_0000_0FC3),
    (57, 4, 0x1107, 0x90D2_078C_2278_0E06, 0x0002_C91A_0000_0F47),
    (57, 5, 0x1d4f, 0x91D2_078C_2278_0E86, 0x0002_C922_8400_0F47),
    (57, 6, 0x2993, 0xD0D2_078C_2278_0E06, 0x0003_892A_80F0_0FCF),
    (57, 7, 0x35d5, 0xC0D2_078C_2278_0E86, 0x0003_6932_00F0_0FCF),
    (57, 9, 0x0317, 0xD0D2_078C_2278_0E06, 0x0002_CD42_20F0_0F4F),
    (57, 10, 0x0f5f, 0xD1D2_078C_2278_0E86, 0x0002_CD4A_A4F0_0F4F),
    (57, 11, 0x1bb3, 0xD0D2_078C_2278_0E06, 0x0002_8D52_A0F0_0FDF),
    (57, 12, 0x27f5, 0xC0D2_078C_2278_0E86, 0x0003_6D5A_20F0_0FDF),
    (57, 13, 0x3437, 0xD1D2_078C_2278_0E06, 0x0003_E964_00F0_0F5B),
    (57, 15, 0x007f, 0xD0D2_078C_2278_0E86, 0x0002_C970_04F0_0F5B),
    (57, 16, 0x0cc3, 0x91D2_078C_2278_0E86, 0x0002_8978_8000_0FC3),
    (57, 17, 0x1905, 0x80D2_078C_2278_0E06, 0x0002_4982_8000_0F47),
    (57, 18, 0x2547, 0x91D2_078C_2278_0E86, 0x0003_E98A_0000_0F47),
    (57, 19, 0x318f, 0x90D2_078C_2278_0E06, 0x0003_E996_0400_0FC7),
    (57, 20, 0x3dd3, 0xD1D2_078C_2278_0E86, 0x0003_899E_80F0_0FCF),
];
