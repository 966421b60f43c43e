//! Queue pairs (section 5.1.2): which queues a device has, and which of them belong together.

use virtio_bindings::virtio_net::{VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ};

use super::QUEUE_SIZE;
use super::feature::FEATURES;
use crate::virtio::feature::{has, mask};

/// The most pairs that a device can have.
pub const MAX_PAIRS: u16 = 16;

/// Of as many pairs, and the control queue.
static QUEUE_SIZES: [u16; 2 * MAX_PAIRS as usize + 1] = [QUEUE_SIZE; 2 * MAX_PAIRS as usize + 1];

/// How many pairs a device is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairs {
    /// So many, 1 to [`MAX_PAIRS`].
    Exactly(u16),
    /// So many, or one if the tap has but one queue.
    UpTo(u16),
}

impl Pairs {
    pub(super) fn most(self) -> u16 {
        let (Self::Exactly(pairs) | Self::UpTo(pairs)) = self;
        pairs.clamp(1, MAX_PAIRS)
    }
}

/// One of a device's pairs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pair {
    index: u16,
    of: u16,
}

impl Pair {
    /// The first pair of a device, and the `others` that it has, fewer than [`MAX_PAIRS`].
    pub(super) fn all(others: usize) -> (Self, impl Iterator<Item = Self>) {
        let others = u16::try_from(others).unwrap_or(u16::MAX);
        let of = others.saturating_add(1);
        let pair = move |index| Self { index, of };
        (pair(0), (1..of).map(pair))
    }

    /// Whether it is the one that serves the control queue as well, and whatever concerns all of them.
    pub(super) fn is_first(self) -> bool {
        self.index == 0
    }

    /// Its queue for packets to the guest.
    pub(super) fn receive(self) -> usize {
        2 * usize::from(self.index)
    }

    /// Its queue for packets of the guest.
    pub(super) fn transmit(self) -> usize {
        self.receive() + 1
    }

    /// The sizes of all queues of the device.
    pub(super) fn queue_sizes(self) -> &'static [u16] {
        let queues = match self.of {
            1 => 2,
            pairs => 2 * usize::from(pairs) + 1,
        };
        QUEUE_SIZES.get(..queues).unwrap_or_default()
    }

    /// What the device offers.
    pub(super) fn features(self) -> u64 {
        match self.of {
            1 => FEATURES,
            _ => FEATURES | mask(&[VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ]),
        }
    }

    /// How many pairs the device's configuration says there are, if it says so.
    pub(super) fn count(self) -> Option<u16> {
        (self.of > 1).then_some(self.of)
    }

    /// The control queue, which is behind the pairs. A driver that does not accept `MQ` knows of one
    /// pair.
    pub(super) fn control(self, features: u64) -> Option<usize> {
        let pairs = match has(features, VIRTIO_NET_F_MQ) {
            true => self.of,
            false => 1,
        };
        has(features, VIRTIO_NET_F_CTRL_VQ).then_some(2 * usize::from(pairs))
    }

    /// The queues that this pair serves for a driver that has accepted `features`.
    pub(super) fn queues(self, features: u64) -> Vec<usize> {
        match self.is_first() {
            true => [0, 1].into_iter().chain(self.control(features)).collect(),
            false if has(features, VIRTIO_NET_F_MQ) => vec![self.receive(), self.transmit()],
            false => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CTRL_VQ: u64 = 1 << 17;
    const MQ: u64 = 1 << 22;

    #[test]
    fn the_control_queue_is_behind_the_pairs_that_the_driver_knows_of() {
        let (first, others) = Pair::all(2);
        let pairs: Vec<_> = std::iter::once(first).chain(others).collect();
        let queues = |features| pairs.iter().map(move |pair| pair.queues(features));
        let of = |features| queues(features).collect::<Vec<_>>();
        assert_eq!(of(CTRL_VQ | MQ), [vec![0, 1, 6], vec![2, 3], vec![4, 5]]);
        assert_eq!(of(CTRL_VQ), [vec![0, 1, 2], vec![], vec![]]);
        assert_eq!(of(0), [vec![0, 1], vec![], vec![]]);
        assert_eq!(pairs[0].queue_sizes().len(), 7);
    }

    #[test]
    fn a_device_with_one_pair_has_no_control_queue() {
        let (pair, mut others) = Pair::all(0);
        assert!(others.next().is_none());
        assert_eq!(pair.queue_sizes().len(), 2);
        assert_eq!(pair.features() & (CTRL_VQ | MQ), 0);
        assert_eq!(pair.count(), None);
    }
}
