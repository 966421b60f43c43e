//! Errors of virtqueues and descriptor chains (section 2.7).

use vm_memory::GuestMemoryError;

/// What is wrong with a queue or a chain. Each of them puts the device into `DEVICE_NEEDS_RESET`.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    /// The rings do not satisfy 2.7.
    #[error("queue setup is invalid: {0}")]
    Setup(virtio_queue::Error),
    /// A ring operation failed.
    #[error("ring access failed: {0}")]
    Ring(virtio_queue::Error),
    /// A descriptor or a buffer cannot be reached; with an IOMMU, usually because it is not mapped
    /// for this access.
    #[error("guest memory access failed: {0}")]
    Memory(#[from] GuestMemoryError),
    /// The available index ran more than the queue's size ahead.
    #[error("available index is {pending} entries ahead in a queue of {size}")]
    AvailableIndex {
        /// How far ahead.
        pending: u16,
        /// The queue's size.
        size: u16,
    },
    /// A descriptor index lies beyond its table.
    #[error("descriptor index {index} in a table of {size}")]
    DescriptorIndex {
        /// The index.
        index: u16,
        /// Entries in the table.
        size: u16,
    },
    /// A loop, more descriptors than the queue has, or more than 4 GiB.
    #[error("descriptor chain loops or is too long")]
    ChainTooLong,
    /// An indirect descriptor that is nested, has a successor, was not negotiated, or names a table
    /// of odd length.
    #[error("indirect descriptor breaks the rules of 2.7.5.3")]
    Indirect,
    /// A readable descriptor after a writable one.
    #[error("readable descriptor follows a writable one")]
    Order,
    /// An address wraps around.
    #[error("buffer address overflows")]
    Address,
    /// A chain that is empty, or too short for what its queue carries.
    #[error("buffer is too short for a request")]
    Length,
    /// Receive buffers of which a packet would take hundreds, in a thousand descriptors.
    #[error("receive buffers are cut too small: a packet finds no room in 1024 descriptors")]
    Scattered,
    /// The kernel serves the queue, and has stopped.
    #[error("vhost has given queue {0} up")]
    GivenUp(usize),
    /// The process that serves the queues has ended.
    #[error("the vhost-user back end has closed the connection")]
    Gone,
    /// The host's doing: the kernel, which serves the queues, refuses something.
    #[error("host error: {what}: {error}")]
    Host {
        /// What was asked of it.
        what: &'static str,
        /// Its reason.
        error: std::io::Error,
    },
    /// Whoever serves the queue knows split ones only.
    #[error("queue is packed")]
    Packed,
    /// The device looked at a queue that the driver has not enabled.
    #[error("queue is not enabled")]
    Disabled,
    /// The driver has taken the right to access memory from the device.
    #[error("bus mastering is off")]
    Closed,
    /// The device is being reset.
    #[error("device is being reset")]
    Stopped,
}
