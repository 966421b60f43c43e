use super::*;
use crate::vfio::fake;

fn part(range: Range<u64>) -> Vec<Range<u64>> {
    std::iter::once(range).collect()
}

#[test]
fn bars_take_their_kind_from_the_host_and_their_size_from_vfio() {
    let bars = decode(&fake::image(), &[0x4000, 0x9999, 0x20, 0x100, 0, 0]);
    let expected = [
        Bar {
            index: 0,
            kind: BarKind::Memory64 {
                prefetchable: false,
            },
            size: 0x4000,
        },
        Bar {
            index: 3,
            kind: BarKind::Memory32,
            size: 0x100,
        },
    ];
    // BAR 1 is the upper half of BAR 0, BAR 2 is I/O.
    assert_eq!(bars, expected);
}

#[test]
fn bars_that_cannot_be_are_left_out() {
    let mut image = fake::image();
    image[0x24] = 0x04; // a 64-bit BAR whose upper half does not exist
    image[0x20] = 0x00;
    let bars = decode(&image, &[1 << 60, 0, 0, 8, 1 << 40, 0x1000]);
    assert_eq!(bars, []);
    let bars = decode(&image, &[u64::MAX, 0, 0, 0x1001, 0, 0]);
    assert_eq!(bars.len(), 1);
    assert_eq!(bars[0].size, 0x2000, "rounded up to what decodes");
}

#[test]
fn pages_of_the_table_and_of_the_pending_bits_are_trapped() {
    let all = part(0..0x10000);
    assert_eq!(direct_parts(0x10000, &all, &[]), all);
    assert_eq!(
        direct_parts(0x10000, &all, &[0x2000..0x2010, 0x3ff8..0x4008]),
        [0..0x2000, 0x5000..0x10000]
    );
    assert_eq!(
        direct_parts(0x10000, &all, &part(0xf800..0xf810)),
        part(0..0xf000)
    );
    assert_eq!(direct_parts(0x1000, &part(0..0x1000), &part(0..16)), []);
}

#[test]
fn only_whole_pages_that_vfio_offers_are_mapped() {
    let areas = [0x3800..0x6000, 0x800..0x2fff, 0x5000..0x9000];
    assert_eq!(
        direct_parts(0x8000, &areas, &part(0x7000..0x7001)),
        [0x1000..0x2000, 0x4000..0x6000, 0x6000..0x7000]
    );
    // A BAR smaller than a page, an area beyond the BAR, areas at the end of the world.
    assert_eq!(direct_parts(0x100, &part(0..0x100), &[]), []);
    assert_eq!(direct_parts(0x1000, &part(0x4000..0x8000), &[]), []);
    let end = [u64::MAX - 1..u64::MAX, 0..u64::MAX];
    assert_eq!(
        direct_parts(0x2000, &end, &part(u64::MAX - 5..u64::MAX)),
        part(0..0x2000)
    );
}

#[test]
fn the_pending_bits_of_65_vectors_take_16_bytes() {
    let layout = MsixLayout {
        offset: 0x40,
        vectors: 65,
        table_bar: 0,
        table: 0x2000,
        pba_bar: 0,
        pba: 0x3000,
    };
    assert_eq!(msix_ranges(0, &layout), [0x2000..0x2410, 0x3000..0x3010]);
    assert_eq!(msix_ranges(3, &layout), []);
}
