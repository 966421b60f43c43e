//! The target `state`: files that are no state of a machine, and states of which no machine is.
//!
//! A file is refused, or has sections. Sections are refused, or become those of a machine, which says the
//! same when it is saved again and restored elsewhere. Whatever it has been made, it goes on, is reset and
//! ends.

mod edit;
mod machine;

use std::sync::OnceLock;

use ::state::{MachineState, MemoryFile, Sections};
use arbitrary::Arbitrary;
use serde_json::Value;

use crate::word::decode;
use edit::Edit;
use machine::{Machine, Step};

#[derive(Arbitrary, Debug)]
enum Input {
    /// The bytes of a file.
    File(Vec<u8>),
    /// What follows the first line of one, whose checksum is right.
    Body(Vec<u8>),
    /// A file of a machine's, with other bytes in these places.
    Flips(Vec<(u16, u8)>),
    /// The state of a machine with these changes, and what a guest does then.
    Sections { edits: Vec<Edit>, steps: Vec<Step> },
}

/// Tries the input that `data` encodes.
pub fn run(data: &[u8]) {
    match decode(data) {
        Some(Input::File(bytes)) => drop(::state::decode(&bytes)),
        Some(Input::Body(bytes)) => drop(serde_json::from_slice::<MachineState>(&bytes)),
        Some(Input::Flips(flips)) => flip(&flips),
        Some(Input::Sections { edits, steps }) => restore(&edits, &steps),
        None => {}
    }
}

/// The state of a machine at work.
fn sample() -> &'static Sections {
    static SAMPLE: OnceLock<Sections> = OnceLock::new();
    SAMPLE.get_or_init(|| Machine::at_work().save())
}

/// No file that differs in a byte is taken.
fn flip(flips: &[(u16, u8)]) {
    static FILE: OnceLock<Vec<u8>> = OnceLock::new();
    let file = FILE.get_or_init(|| {
        let state = MachineState {
            writer: "nido".to_owned(),
            memory: MemoryFile {
                file: "memory.1".to_owned(),
                bytes: 1 << 20,
            },
            options: vec!["--cpus".to_owned(), "1".to_owned()],
            sections: sample().clone(),
        };
        ::state::encode(&state).expect("small")
    });
    let mut other = file.clone();
    for (place, byte) in flips {
        // Most of it is the same kind of digits: the first line, and what is spread.
        let length = other.len();
        let place = match place >> 15 {
            0 => usize::from(*place) % 128,
            _ => usize::from(*place) * 31 % length,
        };
        if let Some(old) = other.get_mut(place) {
            *old = *byte;
        }
    }
    let same = other == *file;
    assert_eq!(
        ::state::decode(&other).is_ok(),
        same,
        "a file with other bytes"
    );
}

fn restore(edits: &[Edit], steps: &[Step]) {
    let mut json = serde_json::to_value(sample()).expect("JSON");
    for edit in edits.iter().take(16) {
        edit.apply(&mut json);
    }
    let Ok(sections) = serde_json::from_value::<Sections>(json) else {
        return;
    };
    let changed = sections != *sample();
    let first = Machine::new();
    if let Err(why) = first.restore(sections) {
        assert!(changed, "what was saved is not restored: {why}");
        return;
    }
    let saved = first.save();
    if !changed {
        same(&saved, sample());
    }
    // The first one goes on as well: both have the same to do.
    let second = Machine::new();
    if let Err(why) = second.restore(saved.clone()) {
        panic!("what was restored and saved is not restored: {why}");
    }
    same(&second.save(), &saved);
    second.go_on(steps);
}

fn same(one: &Sections, other: &Sections) {
    let [one, other] = [one, other].map(|sections| serde_json::to_value(sections).expect("JSON"));
    let (Value::Array(ones), Value::Array(others)) = (one, other) else {
        panic!("sections are a list");
    };
    for (one, other) in ones.iter().zip(&others) {
        assert_eq!(one, other);
    }
    assert_eq!(ones.len(), others.len());
}
