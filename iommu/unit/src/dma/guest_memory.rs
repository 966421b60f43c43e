//! [`vm_memory::GuestMemory`] for a transaction: a range of device addresses becomes pieces of host
//! memory, translated as the consumer goes.

use std::iter::FusedIterator;
use std::ops::Deref;

use vm_memory::bitmap::{BS, MS};
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion,
    MemoryRegionAddress, Permissions, VolatileSlice,
};

use super::transaction::DmaTransaction;
use crate::translate::Access;

/// The most bytes that [`DmaTransaction::check_range`] looks at: whatever is longer is declared
/// bad, so that a guest cannot make one check take arbitrarily long. The largest ring of virtio has
/// half a mebibyte.
const CHECK_LIMIT: usize = 64 << 20;

impl<M> GuestMemory for DmaTransaction<'_, M>
where
    M: Deref<Target: GuestMemoryBackend>,
{
    type PhysicalMemory = M::Target;
    type Bitmap = <<M::Target as GuestMemoryBackend>::R as GuestMemoryRegion>::B;

    /// Whether the tables permit `access` to the whole range. It reports no fault, as it makes no
    /// request.
    ///
    /// It sets no dirty bit either. So a write can still be blocked where a dirty bit is due that
    /// cannot be set, as the guest forbids the unit to snoop (section 7.1.3: SFS.9, SSS.5) or to
    /// write to that first-stage table (SFS.8).
    ///
    /// Ranges of more than 64 MiB are not looked at while translation is on; they count as
    /// inaccessible.
    fn check_range(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        if !self.is_open() {
            return false;
        }
        if self.is_identity() {
            return GuestMemoryBackend::check_range(self.memory(), addr, count);
        }
        if count > CHECK_LIMIT {
            return false;
        }
        let mut address = addr.0;
        let mut left = count as u64;
        while left != 0 {
            let Some(length) = self.reach(address, left, access) else {
                return false;
            };
            left -= length;
            match address.checked_add(length) {
                Some(next) => address = next,
                None => return left == 0,
            }
        }
        true
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, BS<'a, Self::Bitmap>>, GuestMemoryError> {
        if !self.is_open() {
            return Err(GuestMemoryError::InvalidGuestAddress(addr));
        }
        Ok(DmaSlices::new(self, addr, count, access))
    }

    fn physical_memory(&self) -> Option<&Self::PhysicalMemory> {
        (self.is_identity() && self.is_open()).then(|| self.memory())
    }
}

impl<M: Deref<Target: GuestMemoryBackend>> DmaTransaction<'_, M> {
    /// How many of the `left` bytes from `address` on are within one block that permits `access`, and
    /// are memory.
    fn reach(&self, address: u64, left: u64, access: Permissions) -> Option<u64> {
        // What is retained may answer a read with one page, and a write, which walks the tables to
        // mark it, with another.
        let accesses: &[Access] = match access {
            Permissions::Write => &[Access::Write],
            Permissions::ReadWrite => &[Access::Read, Access::Write],
            Permissions::Read | Permissions::No => &[Access::Read],
        };
        let mut reach = left;
        for access in accesses {
            let found = self.probe(address, *access)?;
            let block = 1_u64 << found.page_shift;
            let length = left.min(block - (address & (block - 1)));
            let bytes = usize::try_from(length).ok()?;
            let memory = self.memory();
            if !GuestMemoryBackend::check_range(memory, GuestAddress(found.address), bytes) {
                return None;
            }
            reach = reach.min(length);
        }
        Some(reach)
    }
}

/// The most blocks that are joined into one slice. It bounds the work of a single step, as the
/// length of a range is the guest's choice.
const JOIN_LIMIT: usize = 32;

/// The slices of one access. Ends with the first error.
pub struct DmaSlices<'a, 'v, M: Deref<Target: GuestMemoryBackend>> {
    transaction: &'a DmaTransaction<'v, M>,
    address: u64,
    left: u64,
    access: Permissions,
    /// The page at `address` is known to be blocked, and that has been reported.
    blocked: bool,
}

impl<'a, 'v, M: Deref<Target: GuestMemoryBackend>> DmaSlices<'a, 'v, M> {
    pub(super) fn new(
        transaction: &'a DmaTransaction<'v, M>,
        address: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Self {
        Self {
            transaction,
            address: address.0,
            left: count as u64,
            access,
            blocked: false,
        }
    }

    /// The next piece: where it is in guest-physical memory, and how many bytes from there belong
    /// to the range and have the same translation.
    #[inline(always)]
    fn piece(&self, address: u64, left: u64) -> Option<(u64, u64)> {
        self.transaction.stretch(address, left, self.access)
    }

    #[inline(always)]
    fn advance(&mut self) -> Result<VolatileSlice<'a, MS<'a, M::Target>>, GuestMemoryError> {
        let start = self.address;
        if self.blocked {
            return Err(invalid(start));
        }
        let (physical, length) = self.piece(start, self.left).ok_or_else(|| invalid(start))?;
        let near = self.transaction.near();
        let (region, offset) = near.find(physical).ok_or_else(|| invalid(start))?;
        // All that is left has one translation: mostly it is in one region, too.
        if length == self.left
            && let Ok(bytes) = usize::try_from(length)
            && let Ok(slice) = region.get_slice(offset, bytes)
        {
            self.left = 0;
            return Ok(slice);
        }
        self.join(physical, length, region, offset)
    }

    /// The next slice of an access that takes several, unless it is an error, which is the end.
    #[inline(never)]
    fn further(&mut self) -> Option<VolatileSlice<'a, MS<'a, M::Target>>> {
        self.next()?.ok()
    }

    /// Extends a piece of `length` bytes by those behind it, as far as they are neighbours in
    /// `region`.
    #[inline(never)]
    fn join(
        &mut self,
        physical: u64,
        mut length: u64,
        region: &'a <M::Target as GuestMemoryBackend>::R,
        offset: MemoryRegionAddress,
    ) -> Result<VolatileSlice<'a, MS<'a, M::Target>>, GuestMemoryError> {
        let start = self.address;
        let most = region.len().saturating_sub(offset.0).min(self.left);
        for _ in 1..JOIN_LIMIT {
            if length >= most {
                break;
            }
            let Some(next) = start.checked_add(length) else {
                break;
            };
            match self.piece(next, self.left - length) {
                Some((more, more_length)) if physical.checked_add(length) == Some(more) => {
                    length += more_length
                }
                Some(_) => break,
                None => {
                    self.blocked = true;
                    break;
                }
            }
        }
        let length = length.min(most);
        let bytes = usize::try_from(length).map_err(|_| GuestMemoryError::GuestAddressOverflow)?;
        let slice = region.get_slice(offset, bytes)?;

        self.left -= length;
        match start.checked_add(length) {
            Some(next) => self.address = next,
            None if self.left == 0 => {}
            None => return Err(GuestMemoryError::GuestAddressOverflow),
        }
        Ok(slice)
    }
}

#[cold]
fn invalid(address: u64) -> GuestMemoryError {
    GuestMemoryError::InvalidGuestAddress(GuestAddress(address))
}

impl<'a, M: Deref<Target: GuestMemoryBackend>> Iterator for DmaSlices<'a, '_, M> {
    type Item = Result<VolatileSlice<'a, MS<'a, M::Target>>, GuestMemoryError>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let item = self.advance();
        if item.is_err() {
            self.left = 0;
        }
        Some(item)
    }
}

impl<M: Deref<Target: GuestMemoryBackend>> FusedIterator for DmaSlices<'_, '_, M> {}

impl<'a, M: Deref<Target: GuestMemoryBackend>> GuestMemorySliceIterator<'a, MS<'a, M::Target>>
    for DmaSlices<'a, '_, M>
{
    /// Every access through [`vm_memory::Bytes`] comes along here. What serves all iterators moves
    /// this one and its items about, which takes longer than a translation that is cached; here,
    /// one piece is all there is in the common case.
    #[inline(always)]
    fn stop_on_error(
        mut self,
    ) -> Result<impl Iterator<Item = VolatileSlice<'a, MS<'a, M::Target>>>, GuestMemoryError> {
        let first = if self.left == 0 {
            None
        } else {
            Some(self.advance()?)
        };
        Ok(Accessible { first, rest: self })
    }
}

/// The slices up to the first error, the first of them found already.
struct Accessible<'a, 'v, M: Deref<Target: GuestMemoryBackend>> {
    first: Option<VolatileSlice<'a, MS<'a, M::Target>>>,
    rest: DmaSlices<'a, 'v, M>,
}

impl<'a, M: Deref<Target: GuestMemoryBackend>> Iterator for Accessible<'a, '_, M> {
    type Item = VolatileSlice<'a, MS<'a, M::Target>>;

    #[inline(always)]
    fn next(&mut self) -> Option<Self::Item> {
        match self.first.take() {
            None if self.rest.left != 0 => self.rest.further(),
            first => first,
        }
    }
}
