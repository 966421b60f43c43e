//! From a range of device addresses to pieces of host memory, translated as the consumer goes.

use std::iter::FusedIterator;
use std::ops::Deref;

use vm_memory::bitmap::MS;
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion, MemoryRegionAddress,
    Permissions, VolatileSlice,
};

use super::view::DmaTransaction;

/// The most blocks that are joined into one slice. It bounds the work of a single step, as the length of a range is
/// the guest's choice.
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

    /// The next piece: where it is in guest-physical memory, and how many bytes from there belong to the range and
    /// have the same translation.
    #[inline(always)]
    fn piece(&self, address: u64, left: u64) -> Option<(u64, u64)> {
        if self.transaction.is_identity() {
            return Some((address, left));
        }
        let found = self.transaction.lookup(address, self.access)?;
        let block = 1_u64 << found.page_shift;
        Some((found.address, left.min(block - (address & (block - 1)))))
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

    /// Extends a piece of `length` bytes by those behind it, as far as they are neighbours in `region`.
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
    /// Every access through [`vm_memory::Bytes`] comes along here. What serves all iterators moves this one and its items
    /// about, which takes longer than a translation that is cached; here, one piece is all there is in the common case.
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
