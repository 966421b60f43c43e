//! Access of the unit to guest memory.

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{MemoryError, Nearby, TableMemory};

/// 1000h to 3000h, and 3000h to 4000h as a region of its own.
fn memory() -> GuestMemoryMmap<()> {
    GuestMemoryMmap::from_ranges(&[
        (GuestAddress(0x1000), 0x2000),
        (GuestAddress(0x3000), 0x1000),
    ])
    .unwrap()
}

#[test]
fn words_are_little_endian_and_in_ascending_order() {
    let memory = memory();
    let tables = Nearby::new(&memory);
    memory
        .write_slice(&[1, 2, 3, 4, 5, 6, 7, 8, 9], GuestAddress(0x1ff8))
        .unwrap();
    assert_eq!(tables.read_words(0x1ff8), Ok([0x0807_0605_0403_0201, 9]));
    tables
        .write_words(0x2ff0, &[0x1122_3344_5566_7788, 0x99])
        .unwrap();
    let mut bytes = [0; 16];
    memory.read_slice(&mut bytes, GuestAddress(0x2ff0)).unwrap();
    assert_eq!(
        bytes,
        [
            0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0x99, 0, 0, 0, 0, 0, 0, 0
        ]
    );
    tables.write_u32(0x3ffc, 0x0403_0201).unwrap();
    assert_eq!(tables.read_u64(0x3ff8), Ok(0x0403_0201_0000_0000));
}

#[test]
fn what_is_no_memory_or_not_aligned_is_an_error() {
    let memory = memory();
    let tables = Nearby::new(&memory);
    for address in [0, 0xff8, 0x4000, u64::MAX - 7, u64::MAX, 0x1001, 0x1004] {
        assert_eq!(tables.read_u64(address), Err(MemoryError { address }));
        assert!(tables.compare_exchange_u64(address, 0, 1).is_err());
        assert!(tables.write_words(address, &[0]).is_err());
    }
    assert!(tables.read_words::<2>(0x3ff8).is_err());
    assert!(tables.write_u32(0x1002, 0).is_err());
    assert!(tables.write_u32(0x4000, 0).is_err());
}

#[test]
fn a_word_is_exchanged_only_if_it_is_the_expected_one() {
    let memory = memory();
    let tables = Nearby::new(&memory);
    tables.write_words(0x1000, &[5]).unwrap();
    assert_eq!(tables.compare_exchange_u64(0x1000, 4, 6), Ok(Err(5)));
    assert_eq!(tables.compare_exchange_u64(0x1000, 5, 6), Ok(Ok(5)));
    assert_eq!(tables.read_u64(0x1000), Ok(6));
}
