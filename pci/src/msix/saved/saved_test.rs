use std::sync::Arc;

use parking_lot::Mutex;
use proptest::collection::vec;
use proptest::prelude::*;

use crate::{Bdf, MsiSink, MsixState, MsixTable};

#[derive(Default)]
struct Sent(Mutex<Vec<(u64, u32)>>);

impl MsiSink for Sent {
    fn signal(&self, _requester: Bdf, address: u64, data: u32) {
        self.0.lock().push((address, data));
    }
}

const VECTORS: u16 = 67;

fn table() -> (MsixTable, Arc<Sent>) {
    let sent = Arc::<Sent>::default();
    let sink = Arc::clone(&sent) as _;
    let table = MsixTable::new(VECTORS, Bdf::from_requester_id(0x10), sink);
    (table, sent)
}

#[derive(Clone, Debug)]
enum Step {
    Write(u64, Vec<u8>),
    Control(bool, bool),
    Notify(u16),
}

fn step() -> impl Strategy<Value = Step> {
    let few = prop_oneof![0..3_u64, 64..68_u64];
    prop_oneof![
        4 => (few.clone(), 0..16_u64, vec(any::<u8>(), 1..9))
            .prop_map(|(vector, at, data)| Step::Write(16 * vector + at, data)),
        2 => any::<(bool, bool)>().prop_map(|(enabled, masked)| Step::Control(enabled, masked)),
        4 => few.prop_map(|vector| Step::Notify(u16::try_from(vector).expect("small"))),
    ]
}

fn act(table: &MsixTable, step: &Step) {
    match step {
        Step::Write(offset, data) => {
            table.write_table(*offset, data);
        }
        Step::Control(enabled, masked) => table.set_control(*enabled, *masked),
        Step::Notify(vector) => table.notify(*vector),
    }
}

/// All that can be read.
fn read(table: &MsixTable) -> (Vec<u8>, Vec<u8>, bool) {
    let (mut entries, mut pending) = (vec![0; 16 * 68], vec![0; 16]);
    table.read_table(0, &mut entries);
    table.read_pba(0, &mut pending);
    (entries, pending, table.enabled())
}

proptest! {
    #[test]
    fn a_restored_one_goes_on_as_the_saved_one_does(
        before in vec(step(), 0..60),
        after in vec(step(), 0..60),
    ) {
        let ((saved, expected), (restored, sent)) = (table(), table());
        let mut control = (false, false);
        for step in &before {
            act(&saved, step);
            if let Step::Control(enabled, masked) = step {
                control = (*enabled, *masked);
            }
        }
        expected.0.lock().clear();
        restored.restore(&saved.save(), control).expect("the same table");
        prop_assert_eq!(&*sent.0.lock(), &[]);
        prop_assert_eq!(read(&restored), read(&saved));
        for step in &after {
            act(&saved, step);
            act(&restored, step);
            prop_assert_eq!(&*sent.0.lock(), &*expected.0.lock(), "{:?}", step);
        }
        prop_assert_eq!(read(&restored), read(&saved));
    }
}

#[test]
fn what_no_such_table_is_like_is_refused_with_the_reason() {
    let (saved, _) = table();
    let refusal = |change: &dyn Fn(&mut MsixState)| {
        let mut state = saved.save();
        change(&mut state);
        let (here, _) = table();
        let before = read(&here);
        let error = here.restore(&state, (true, false)).expect_err("refused");
        assert_eq!(read(&here), before, "nothing has changed");
        error.to_string()
    };
    let entries = |count: usize, byte: u8| vec![byte; count].into();
    let cases = [
        (
            refusal(&|state| state.entries = entries(16 * 66, 0)),
            "the number of MSI-X vectors is 66 in the saved machine and 67 here",
        ),
        (
            refusal(&|state| state.entries = entries(16 * 67 + 1, 0)),
            "the MSI-X table cannot be: it has bits that it never has",
        ),
        (
            refusal(&|state| state.entries = entries(16 * 67, 1)),
            "the MSI-X table cannot be: it has bits that it never has",
        ),
        (
            refusal(&|state| state.pending = vec![0, 0, 0]),
            "MSI-X pending bits cannot be: they are not those of 67 vectors",
        ),
        (
            refusal(&|state| state.pending = vec![0, 8]),
            "MSI-X pending bits cannot be: they are not those of 67 vectors",
        ),
    ];
    for (found, expected) in cases {
        assert_eq!(found, expected);
    }
}
