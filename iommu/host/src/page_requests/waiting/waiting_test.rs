//! Groups that wait, beside a list of them.

use proptest::prelude::*;

use super::*;

fn group(number: u16) -> Group {
    Group {
        source: SourceId(number % 2),
        pasid: Pasid::new(u32::from(number / 2 % 2)),
        index: number / 4 % 2,
    }
}

/// The same by looking through all of them.
#[derive(Default)]
struct List(Vec<(Group, u32)>);

impl List {
    fn take(&mut self, group: Group) -> Option<u32> {
        let place = self.0.iter().position(|(of, _)| *of == group)?;
        Some(self.0.remove(place).1)
    }

    fn forget(&mut self, group: Group, cookie: u32) -> bool {
        let before = self.0.len();
        self.0.retain(|is| *is != (group, cookie));
        self.0.len() < before
    }
}

proptest! {
    #[test]
    fn groups_are_answered_oldest_first_whatever_came_between(
        steps in prop::collection::vec((0..4_u8, 0..8_u16, 0..12_u32), 0..200)
    ) {
        let (mut waiting, mut list) = (WaitingGroups::default(), List::default());
        for (step, number, cookie) in steps {
            let group = group(number);
            match step {
                0 => {
                    waiting.add(group, cookie);
                    list.0.retain(|(_, other)| *other != cookie);
                    list.0.push((group, cookie));
                }
                1 => prop_assert_eq!(waiting.take(group), list.take(group)),
                2 => prop_assert_eq!(waiting.forget(group, cookie), list.forget(group, cookie)),
                _ if cookie == 0 => {
                    waiting.forget_all(group.source);
                    list.0.retain(|(of, _)| of.source != group.source);
                }
                _ => {}
            }
            for source in [0, 1].map(SourceId) {
                let count = list.0.iter().filter(|(of, _)| of.source == source).count();
                prop_assert_eq!(waiting.counts.get(&source).copied().unwrap_or(0), count);
            }
            prop_assert_eq!(waiting.cookies.len(), list.0.len());
            prop_assert_eq!(waiting.places.len(), list.0.len());
        }
    }
}

#[test]
fn a_device_has_room_again_when_one_of_its_groups_was_answered() {
    let mut waiting = WaitingGroups::default();
    let cookies = u32::try_from(GROUPS).unwrap();
    for cookie in 0..cookies {
        assert!(waiting.has_room(SourceId(0)));
        waiting.add(group(0), cookie);
    }
    assert!(!waiting.has_room(SourceId(0)));
    assert!(waiting.has_room(SourceId(1)));
    assert_eq!(waiting.take(group(0)), Some(0));
    assert!(waiting.has_room(SourceId(0)));
    // The host gives a cookie to another that it has answered.
    waiting.add(group(1), 1);
    waiting.add(group(0), cookies);
    waiting.add(group(0), cookies + 1);
    assert!(!waiting.has_room(SourceId(0)));
}
