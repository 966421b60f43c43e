//! Pairs that are added and removed.

use super::*;

#[test]
fn a_pair_is_there_until_it_was_removed_as_often_as_added() {
    let mut index = Index::default();
    index.add(5, 'a');
    index.add(5, 'a');
    index.add(5, 'b');
    index.add(6, 'a');
    assert_eq!(index.of(&5).collect::<String>(), "ab");
    assert_eq!(index.count(&5), 3);
    assert!(!index.remove(&5, &'a'));
    assert_eq!(index.of(&5).collect::<String>(), "ab");
    assert!(!index.remove(&5, &'a'));
    assert_eq!(index.of(&5).collect::<String>(), "b");
    assert!(index.remove(&5, &'b'));
    assert!(index.firsts().eq([&6]));
    assert!(index.remove(&5, &'b'));
    assert!(!index.is_empty());
}
