//! The targets on known inputs and on random ones, without libFuzzer.

use std::panic;

use fuzz::{TARGETS, seeds};

/// Inputs of each target.
const ROUNDS: u64 = 3000;

/// xorshift64*: the same inputs every time.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let words = std::iter::repeat_with(|| self.next().to_le_bytes());
        words.flatten().take(length).collect()
    }
}

fn try_input(name: &str, body: fn(&[u8]), input: &[u8]) {
    if let Err(cause) = panic::catch_unwind(|| body(input)) {
        let digits: String = input.iter().map(|byte| format!("{byte:02x}")).collect();
        eprintln!("{name} fails on {digits}");
        panic::resume_unwind(cause);
    }
}

#[test]
fn seeds_break_no_invariant() {
    for (name, body, text) in TARGETS {
        let mut count = 0;
        for seed in seeds(text) {
            try_input(name, *body, &seed.expect("a line of hexadecimal digits"));
            count += 1;
        }
        assert!(count > 0, "{name} has no seeds");
    }
}

#[test]
fn random_inputs_break_no_invariant() {
    for (name, body, _) in TARGETS {
        let mut random = Random(0x9E37_79B9_7F4A_7C15);
        for round in 0..ROUNDS {
            let length = usize::try_from(round % 600).unwrap();
            try_input(name, *body, &random.bytes(length));
        }
    }
}

#[test]
fn changed_seeds_break_no_invariant() {
    for (name, body, text) in TARGETS {
        let known: Vec<Vec<u8>> = seeds(text).flatten().collect();
        let mut random = Random(0xD1B5_4A32_D192_ED03);
        for _ in 0..ROUNDS {
            let [first, second] = [random.next(), random.next()].map(|choice| {
                let index = usize::try_from(choice % known.len() as u64).unwrap();
                known[index].as_slice()
            });
            let mut input = [first, second].concat();
            for _ in 0..random.next() % 8 {
                let place = usize::try_from(random.next() % input.len().max(1) as u64).unwrap();
                if let (Some(byte), [new, ..]) = (input.get_mut(place), random.next().to_le_bytes())
                {
                    *byte = new;
                }
            }
            try_input(name, *body, &input);
        }
    }
}
