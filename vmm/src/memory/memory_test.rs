//! What guest memory is made of, and where.

use vm_memory::{Address, Bytes, GuestMemoryRegion};

use super::*;

#[test]
fn memory_beyond_what_the_machine_has_is_refused_with_a_remedy() {
    let config = MemoryConfig::plain(1 << 60);
    let message = allocate(&config, 0, Backing::File, None)
        .expect_err("too much")
        .to_string();
    assert!(
        message.starts_with("--memory 1099511627776M: this machine has "),
        "{message}"
    );
    assert!(message.ends_with("write a smaller size"), "{message}");
}

#[test]
fn both_sides_of_the_hole_are_backed_and_the_hole_is_not() {
    let config = MemoryConfig::plain(0xc020_0000);
    let memory = allocate(&config, 0, Backing::Anonymous, None).expect("memory");
    memory
        .write_obj(1u64, GuestAddress(0xbfff_fff8))
        .expect("last word below the hole");
    memory
        .write_obj(2u64, GuestAddress(0x1_0000_0000))
        .expect("first word above the hole");
    assert!(memory.write_obj(3u64, GuestAddress(0xc000_0000)).is_err());
    assert_eq!(
        memory
            .read_obj::<u64>(GuestAddress(0xbfff_fff8))
            .expect("read"),
        1
    );
}

#[test]
fn pieces_tell_where_each_byte_is_in_the_file() {
    use std::os::unix::fs::FileExt;
    let config = MemoryConfig::plain(0xc020_0000);
    let memory = allocate(&config, 0, Backing::File, None).expect("memory");
    let pieces = pieces(&memory, 2);
    assert_eq!(
        pieces.iter().map(|piece| piece.length).sum::<u64>(),
        config.size
    );
    for piece in &pieces {
        let last = piece.length - 8;
        memory
            .write_obj(
                piece.guest_address,
                GuestAddress(piece.guest_address + last),
            )
            .expect("memory");
        let mut word = [0; 8];
        piece
            .file
            .read_exact_at(&mut word, piece.offset + last)
            .expect("file");
        assert_eq!(u64::from_ne_bytes(word), piece.guest_address);
    }
}

#[test]
fn prefaulted_memory_is_resident() {
    let config = MemoryConfig {
        prefault: true,
        ..MemoryConfig::plain(0x100_0000)
    };
    for backing in [Backing::Anonymous, Backing::File] {
        assert!(allocate(&config, 0, backing, None).is_ok());
    }
}

#[test]
fn anonymous_memory_is_zero_and_has_no_file() {
    let config = MemoryConfig::plain(0x100_0000);
    let memory = allocate(&config, 0, Backing::Anonymous, None).expect("memory");
    assert!(pieces(&memory, 2).is_empty());
    let word: u64 = memory.read_obj(GuestAddress(0)).expect("memory");
    assert_eq!(word, 0);
}

#[test]
fn memory_is_mapped_where_huge_pages_can_be() {
    let config = MemoryConfig::plain(0xc020_0000);
    for backing in [Backing::Anonymous, Backing::File] {
        let memory = allocate(&config, 0, backing, None).expect("memory");
        for region in memory.iter() {
            assert_eq!(region.as_ptr().addr() % 0x20_0000, 0);
            assert_eq!(region.start_addr().raw_value() % 0x20_0000, 0);
            let offset = region.file_offset().map_or(0, FileOffset::start);
            assert_eq!(offset % 0x20_0000, 0);
        }
    }
}

#[test]
fn memory_keeps_its_contents_when_it_is_put_into_huge_pages() {
    let config = MemoryConfig::plain(0x100_0000);
    let memory = allocate(&config, 0, Backing::File, None).expect("memory");
    for page in (0..config.size).step_by(0x5000) {
        memory
            .write_obj(page | 1, GuestAddress(page))
            .expect("memory");
    }
    collapse(&memory, 1);
    for page in (0..config.size).step_by(0x5000) {
        let word: u64 = memory.read_obj(GuestAddress(page)).expect("memory");
        assert_eq!(word, page | 1);
        let word: u64 = memory.read_obj(GuestAddress(page + 8)).expect("memory");
        assert_eq!(word, 0);
    }
}

#[test]
fn memory_that_is_to_be_plugged_is_behind_all_ram_and_takes_none_of_the_host() {
    use vm_memory::GuestMemoryBackend as _;
    let config = MemoryConfig {
        prefault: true,
        ..MemoryConfig::plain(4 << 20)
    };
    for backing in [Backing::Anonymous, Backing::File] {
        let memory = allocate(&config, 64 << 20, backing, None).expect("memory");
        let touched = saved::Touched::new(&memory, None).pages().expect("pagemap");
        assert_eq!(touched.count(), 1024, "{backing:?}");
        let region = memory.iter().last().expect("a region");
        assert_eq!(region.start_addr(), GuestAddress(0x1_0000_0000));
        assert_eq!(region.len(), 64 << 20);
        let last = GuestAddress(0x1_03ff_fff8);
        memory.write_obj(7_u64, last).expect("memory");
        assert_eq!(memory.read_obj::<u64>(last).expect("memory"), 7);
    }
}

#[test]
fn blocks_of_plugged_memory_are_pieces_of_their_own_of_its_file() {
    use std::os::unix::fs::FileExt as _;
    let config = MemoryConfig::plain(4 << 20);
    let memory = allocate(&config, 64 << 20, Backing::File, None).expect("memory");
    assert_eq!(pieces(&memory, 1).len(), 1);
    let start = GuestAddress(0x1_0040_0000);
    let blocks = blocks(&memory, start, 6 << 20, 2 << 20);
    let places = blocks
        .iter()
        .map(|block| (block.guest_address, block.offset, block.length));
    assert_eq!(
        places.collect::<Vec<_>>(),
        [
            (0x1_0040_0000, 8 << 20, 2 << 20),
            (0x1_0060_0000, 10 << 20, 2 << 20),
            (0x1_0080_0000, 12 << 20, 2 << 20)
        ]
    );
    memory
        .write_obj(5_u8, GuestAddress(0x1_0060_0000))
        .expect("memory");
    let mut byte = [0];
    blocks[1]
        .file
        .read_exact_at(&mut byte, blocks[1].offset)
        .expect("data");
    assert_eq!(byte, [5]);
}
