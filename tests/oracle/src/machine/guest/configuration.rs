//! A random configuration of the unit.

use intel_vtd::{AddressWidth, Interrupts, Scalable, Stages, UnitConfig, WalkFeatures};

use crate::rng::Rng;

/// Any configuration that makes a unit.
pub fn configuration(rng: &mut Rng) -> UnitConfig {
    loop {
        let interrupt_remapping = rng.chance(4, 5);
        let scalable = rng.chance(3, 4);
        let device_tlb = rng.chance(1, 2);
        let host_address_width =
            u8::try_from(rng.pick(&[32_u64, 36, 39, 46, 48, 52])).unwrap_or(46);
        let address_width = rng.pick(&[39_u64, 48, 57]);
        let narrower = rng.pick(&[0_u8, 0, 0, 1, 1, 8]);
        let [first_stage, second_stage, nested] =
            [(2, 3), (4, 5), (1, 2)].map(|(times, of)| rng.chance(times, of));
        let x2apic = interrupt_remapping && rng.chance(1, 2);
        let caching_mode = rng.chance(1, 2);
        let snoop_control = rng.chance(1, 2);
        let pasid_bits = if scalable {
            u8::try_from(rng.pick(&[0_u64, 0, 1, 3, 7, 16, 20, 20])).unwrap_or(0)
        } else {
            0
        };
        let page_requests = scalable && device_tlb && rng.chance(2, 3);
        // The walker knows no unit without SRS.
        let walks = WalkFeatures::ALL
            .with_pages_of_1g(rng.chance(7, 8))
            .with_extended_accessed(rng.chance(7, 8))
            .with_snooped(rng.chance(7, 8));
        let keep_translations = rng.chance(1, 2);

        let stages = match (first_stage, second_stage, nested) {
            (false, true, false) => Stages::Second,
            (true, false, false) => Stages::First,
            (true, true, false) => Stages::Both,
            (true, true, true) => Stages::Nested,
            _ => continue,
        };
        if !scalable && stages != Stages::Second {
            continue;
        }
        let scalable = scalable.then(|| {
            Scalable::new(stages)
                .with_pasid_bits(pasid_bits)
                .with_page_requests(page_requests)
                .with_walks(walks)
        });
        let interrupts = if interrupt_remapping {
            Interrupts::Remapped { x2apic }
        } else {
            Interrupts::Off
        };
        let width = u8::try_from(address_width).ok();
        let width = width.and_then(AddressWidth::from_bits);
        let width = width.unwrap_or(AddressWidth::Bits48);
        let config = UnitConfig::legacy(host_address_width)
            .with_address_width(width)
            .with_guest_address_width(width.bits() - narrower)
            .with_scalable(scalable)
            .with_interrupts(interrupts)
            .with_device_tlb(device_tlb)
            .with_caching_mode(caching_mode)
            .with_snoop_control(snoop_control)
            .with_keep_translations(keep_translations);
        if config.capabilities().is_ok() {
            return config;
        }
    }
}
