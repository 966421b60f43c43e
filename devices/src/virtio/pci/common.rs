//! The common configuration structure (section 4.1.4.3): `struct virtio_pci_common_cfg` as a
//! register file.
//!
//! A driver must access each field at its own width. Other widths work as well: an access is split
//! along the fields that it touches, and a write to a part of a field keeps the rest.

pub(super) mod saved;

use std::ops::Range;
use std::sync::atomic::Ordering;

use virtio_queue::QueueState;

use super::link::{Link, status};

/// Length of the structure without the fields of optional features.
pub(super) const COMMON_SIZE: u32 = 56;

/// The fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    DeviceFeatureSelect,
    DeviceFeature,
    DriverFeatureSelect,
    DriverFeature,
    ConfigVector,
    NumQueues,
    Status,
    ConfigGeneration,
    QueueSelect,
    QueueSize,
    QueueVector,
    QueueEnable,
    QueueNotifyOffset,
    QueueDescriptors,
    QueueDriver,
    QueueDevice,
}

/// Field, offset, bytes.
const FIELDS: [(Field, u64, u64); 16] = [
    (Field::DeviceFeatureSelect, 0, 4),
    (Field::DeviceFeature, 4, 4),
    (Field::DriverFeatureSelect, 8, 4),
    (Field::DriverFeature, 12, 4),
    (Field::ConfigVector, 16, 2),
    (Field::NumQueues, 18, 2),
    (Field::Status, 20, 1),
    (Field::ConfigGeneration, 21, 1),
    (Field::QueueSelect, 22, 2),
    (Field::QueueSize, 24, 2),
    (Field::QueueVector, 26, 2),
    (Field::QueueEnable, 28, 2),
    (Field::QueueNotifyOffset, 30, 2),
    (Field::QueueDescriptors, 32, 8),
    (Field::QueueDriver, 40, 8),
    (Field::QueueDevice, 48, 8),
];

/// The registers except status and vectors, which the device's thread reads too and which live in
/// [`Link`].
pub(super) struct CommonRegisters {
    offered: u64,
    accepted: u64,
    device_feature_select: u32,
    driver_feature_select: u32,
    queue_select: u16,
    /// As the driver wrote them; checked when it says `DRIVER_OK`.
    queues: Vec<QueueState>,
}

impl CommonRegisters {
    pub(super) fn new(offered: u64, queue_sizes: &[u16]) -> Self {
        let queues = queue_sizes
            .iter()
            .map(|&size| QueueState {
                max_size: size,
                size,
                ..QueueState::default()
            })
            .collect();
        Self {
            offered,
            accepted: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            queue_select: 0,
            queues,
        }
    }

    pub(super) fn reset(&mut self) {
        self.accepted = 0;
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.queue_select = 0;
        for queue in &mut self.queues {
            *queue = QueueState {
                max_size: queue.max_size,
                size: queue.max_size,
                ..QueueState::default()
            };
        }
    }

    /// The features on offer.
    pub(super) fn offered(&self) -> u64 {
        self.offered
    }

    /// The features that the driver has written.
    pub(super) fn accepted(&self) -> u64 {
        self.accepted
    }

    /// The queues as the driver has set them up.
    pub(super) fn queues(&self) -> &[QueueState] {
        &self.queues
    }

    pub(super) fn read(&self, offset: u64, data: &mut [u8], link: &Link) {
        data.fill(0);
        for (field, range) in touched(offset, data.len()) {
            let value = self.get(field, link).to_le_bytes();
            for (byte, at) in value.iter().zip(range) {
                if let Some(slot) = index(at, offset).and_then(|index| data.get_mut(index)) {
                    *slot = *byte;
                }
            }
        }
    }

    /// Writes, except the device status: a value written to that is the result, for the state
    /// machine.
    pub(super) fn write(&mut self, offset: u64, data: &[u8], link: &Link) -> Option<u8> {
        let mut status_written = None;
        for (field, range) in touched(offset, data.len()) {
            let mut value = self.get(field, link).to_le_bytes();
            for (byte, at) in value.iter_mut().zip(range) {
                if let Some(new) = index(at, offset).and_then(|index| data.get(index)) {
                    *byte = *new;
                }
            }
            if field == Field::Status {
                let [low, ..] = value;
                status_written = Some(low);
            } else {
                self.set(field, u64::from_le_bytes(value), link);
            }
        }
        status_written
    }

    fn get(&self, field: Field, link: &Link) -> u64 {
        let queue = self.queues.get(usize::from(self.queue_select));
        match field {
            Field::DeviceFeatureSelect => self.device_feature_select.into(),
            Field::DeviceFeature => half(self.offered, self.device_feature_select).into(),
            Field::DriverFeatureSelect => self.driver_feature_select.into(),
            Field::DriverFeature => half(self.accepted, self.driver_feature_select).into(),
            Field::ConfigVector => link.config_vector().into(),
            Field::NumQueues => self.queues.len() as u64,
            Field::Status => link.status.load(Ordering::Acquire).into(),
            Field::ConfigGeneration => link.generation().into(),
            Field::QueueSelect => self.queue_select.into(),
            // 4.1.4.3.1: a queue that does not exist has size 0.
            Field::QueueSize => queue.map_or(0, |queue| queue.size).into(),
            Field::QueueVector => link.queue_vector(self.queue_select.into()).into(),
            Field::QueueEnable => queue.is_some_and(|queue| queue.ready).into(),
            Field::QueueNotifyOffset => queue.map_or(0, |_| self.queue_select).into(),
            Field::QueueDescriptors => queue.map_or(0, |queue| queue.desc_table),
            Field::QueueDriver => queue.map_or(0, |queue| queue.avail_ring),
            Field::QueueDevice => queue.map_or(0, |queue| queue.used_ring),
        }
    }

    fn set(&mut self, field: Field, value: u64, link: &Link) {
        let [v0, v1, v2, v3, ..] = value.to_le_bytes();
        let word = u32::from_le_bytes([v0, v1, v2, v3]);
        let short = u16::from_le_bytes([v0, v1]);
        let status = link.status.load(Ordering::Acquire);
        let negotiated = status & status::FEATURES_OK != 0;
        let running = status & status::DRIVER_OK != 0;
        match field {
            Field::DeviceFeatureSelect => self.device_feature_select = word,
            Field::DriverFeatureSelect => self.driver_feature_select = word,
            // 2.2.1: negotiation is over once FEATURES_OK is set.
            Field::DriverFeature if !negotiated => {
                self.accepted = match self.driver_feature_select {
                    0 => self.accepted & !0xffff_ffff | u64::from(word),
                    1 => self.accepted & 0xffff_ffff | u64::from(word) << 32,
                    _ => self.accepted,
                };
            }
            Field::ConfigVector => link.set_config_vector(short),
            Field::QueueSelect => self.queue_select = short,
            Field::QueueVector => link.set_queue_vector(self.queue_select.into(), short),
            Field::QueueSize
            | Field::QueueEnable
            | Field::QueueDescriptors
            | Field::QueueDriver
            | Field::QueueDevice
                if !running =>
            {
                let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) else {
                    return;
                };
                // 4.1.4.3.2: everything is set before the queue is enabled, and it cannot be
                // disabled.
                if queue.ready {
                    return;
                }
                match field {
                    Field::QueueSize => queue.size = short,
                    Field::QueueEnable => queue.ready = short == 1,
                    Field::QueueDescriptors => queue.desc_table = value,
                    Field::QueueDriver => queue.avail_ring = value,
                    _ => queue.used_ring = value,
                }
            }
            // Read-only, or too late.
            _ => {}
        }
    }
}

/// The 32 bits that a feature selector names; there are none from selector 2 on.
fn half(features: u64, select: u32) -> u32 {
    let [a, b, c, d, e, f, g, h] = features.to_le_bytes();
    match select {
        0 => u32::from_le_bytes([a, b, c, d]),
        1 => u32::from_le_bytes([e, f, g, h]),
        _ => 0,
    }
}

/// The fields that an access of `length` bytes at `offset` touches, in order, and where they are.
fn touched(offset: u64, length: usize) -> impl Iterator<Item = (Field, Range<u64>)> {
    let end = offset.saturating_add(length as u64);
    FIELDS
        .into_iter()
        .filter(move |&(_, start, size)| offset < start + size && start < end)
        .map(|(field, start, size)| (field, start..start + size))
}

/// Where byte `at` of the structure is in an access that starts at `offset`.
fn index(at: u64, offset: u64) -> Option<usize> {
    usize::try_from(at.checked_sub(offset)?).ok()
}
