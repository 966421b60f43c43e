//! What the kernel takes for the calls of iommufd by which nido follows a guest that maps a page and
//! unmaps it: `IOMMU_IOAS_COPY`, what there is in its place, and `IOMMU_IOAS_UNMAP`.

use std::fs::File;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::vfio::{Access, Function, Space};
use crate::sys::memory::{self, Buffer};

const PAGE: u64 = 4096;
/// Bytes of memory that pages are shared from.
const MEMORY: u64 = 64 << 20;
/// Where pages are mapped: any address that level 1's unit translates.
const AT: u64 = 0x1_0000_0000;
/// How often each is done.
const TIMES: u32 = 2000;

/// Lines of `key=value` words, for the function at `address`, which vfio-pci has.
pub(crate) fn measure(address: &str) -> Result<Vec<String>> {
    let mut function = Function::open(address)?;
    let memory = memory::file("measured", MEMORY).context("memfd")?;
    let shadow = Rc::new(function.space()?.sibling()?);
    let source = Rc::new(shadow.sibling()?);
    // Pinned, as guest memory is.
    let _pinned = function.second_stage_table(&source)?;
    source.map_file(&memory, 0, MEMORY, 0)?;
    let table = function.second_stage_table(&shadow)?;
    function.attach_table(&table)?;
    let kernel = Kernel {
        shadow: &shadow,
        source: &source,
        memory: &memory,
        buffer: &Buffer::new(4096)?,
    };
    kernel.lines()
}

struct Kernel<'a> {
    /// What the function is attached to.
    shadow: &'a Space,
    /// Has all of the memory.
    source: &'a Space,
    memory: &'a File,
    buffer: &'a Buffer,
}

impl Kernel<'_> {
    fn lines(&self) -> Result<Vec<String>> {
        let at_once = |pages: u64| {
            self.pair(
                self.shadow,
                &|_| AT,
                pages * PAGE,
                &|space, iova, length| space.copy(self.source, 0, length, iova),
            )
        };
        let (map_1, unmap_1) = at_once(1)?;
        let (map_256, unmap_256) = at_once(256)?;
        let copy = |space: &Space, iova: u64, length: u64| {
            space.copy(self.source, iova % MEMORY / PAGE * PAGE, length, iova)
        };
        // Others have their pages between these, in the same table.
        for page in 0..256 {
            copy(self.shadow, AT + page * 2 * PAGE, PAGE)?;
        }
        let among = |turn: u32| AT + PAGE + u64::from(turn % 256) * 2 * PAGE;
        let (among_map, among_unmap) = self.pair(self.shadow, &among, PAGE, &copy)?;
        // Each in a table of its own.
        let apart = |turn: u32| AT + (1 << 30) + u64::from(turn) * (2 << 20);
        let (apart_map, apart_unmap) = self.pair(self.shadow, &apart, PAGE, &copy)?;
        let nowhere = self.source.sibling()?;
        let (free_map, free_unmap) = self.pair(&nowhere, &|_| AT, PAGE, &copy)?;
        let (file_map, file_unmap) =
            self.pair(self.shadow, &|_| AT + PAGE, PAGE, &|space, iova, length| {
                space.map_file(self.memory, 0, length, iova)
            })?;
        let (buffer_map, buffer_unmap) =
            self.pair(self.shadow, &|_| AT + PAGE, PAGE, &|space, iova, _| {
                space.map(self.buffer, iova, Access::ReadWrite)
            })?;
        Ok(vec![
            format!(
                "map_1_ns={map_1} unmap_1_ns={unmap_1} map_256_ns={map_256} unmap_256_ns={unmap_256}"
            ),
            format!("copy_among_others_ns={among_map} unmap_among_others_ns={among_unmap}"),
            format!("copy_apart_ns={apart_map} unmap_apart_ns={apart_unmap}"),
            format!("copy_without_table_ns={free_map} unmap_without_table_ns={free_unmap}"),
            format!("map_file_ns={file_map} unmap_file_ns={file_unmap}"),
            format!("map_ns={buffer_map} unmap_ns={buffer_unmap}"),
        ])
    }

    /// Nanoseconds that a map and an unmap take, each turn at the address that `place` says.
    fn pair(
        &self,
        space: &Space,
        place: &dyn Fn(u32) -> u64,
        length: u64,
        map: &dyn Fn(&Space, u64, u64) -> Result<()>,
    ) -> Result<(u128, u128)> {
        let (mut mapping, mut unmapping) = (Duration::ZERO, Duration::ZERO);
        for turn in 0..TIMES {
            let iova = place(turn);
            let begin = Instant::now();
            map(space, iova, length)?;
            let between = Instant::now();
            space.unmap(iova, length)?;
            mapping += between - begin;
            unmapping += between.elapsed();
        }
        let each = |total: Duration| total.as_nanos() / u128::from(TIMES);
        Ok((each(mapping), each(unmapping)))
    }
}
