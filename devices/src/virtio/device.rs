//! The interface of a device model to its transport and its thread.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use virtio_bindings::virtio_ids::{
    VIRTIO_ID_BALLOON, VIRTIO_ID_BLOCK, VIRTIO_ID_CONSOLE, VIRTIO_ID_MEM, VIRTIO_ID_NET,
    VIRTIO_ID_RNG, VIRTIO_ID_VSOCK,
};

use state::{RestoreError, SaveError, Section};
use vmm_sys_util::eventfd::EventFd;

use super::error::QueueError;
use super::feature;
use super::session::{Progress, Session};

/// The kinds of devices that exist here, by virtio device ID (section 5), which is 16 bits wide.
#[allow(clippy::cast_possible_truncation)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum DeviceKind {
    /// Network card, section 5.1.
    Net = VIRTIO_ID_NET as u16,
    /// Block device, section 5.2.
    Block = VIRTIO_ID_BLOCK as u16,
    /// Console, section 5.3.
    Console = VIRTIO_ID_CONSOLE as u16,
    /// Entropy source, section 5.4.
    Entropy = VIRTIO_ID_RNG as u16,
    /// Memory balloon, section 5.5.
    Balloon = VIRTIO_ID_BALLOON as u16,
    /// Memory device, section 5.15.
    Memory = VIRTIO_ID_MEM as u16,
    /// Socket device, section 5.10.
    Vsock = VIRTIO_ID_VSOCK as u16,
}

/// Stops what accesses guest memory for a device without its thread.
pub trait Halt: Send + Sync {
    /// No access is made when this returns, nor later, until the device is activated again. Tells
    /// whether there was anything to stop.
    fn halt(&self) -> bool;
}

/// Device-specific configuration that changes, or that the driver writes.
pub trait LiveConfig: Send + Sync {
    /// Reads from `offset` on; what is beyond its end is left as it is.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// The driver writes from `offset` on. What it cannot write keeps its value.
    fn write(&self, offset: u64, data: &[u8]);
}

/// A device model, independent of the transport.
///
/// The first group of methods is called when the device is created or while it is idle. The second
/// group is called by the device's own thread between `DRIVER_OK` and reset.
///
/// A device whose queues are served by several threads consists of as many parts. Each is a
/// `VirtioDevice`, and what parts share is theirs to guard. The one that the transport is given
/// speaks for all of them in the first group.
pub trait VirtioDevice: Send {
    /// Which device this is.
    fn kind(&self) -> DeviceKind;
    /// Device-specific feature bits on offer (bits 0 to 23 and 50 to 63). The transport adds its
    /// own.
    fn features(&self) -> u64;
    /// Features of the queues on offer: what those who serve them can do. Who does so elsewhere knows
    /// split queues.
    fn ring_features(&self) -> u64 {
        if self.halt().is_some() {
            feature::SPLIT_RINGS
        } else {
            feature::RINGS
        }
    }
    /// Features without which there is no negotiation, on offer as well. A device for which they do not
    /// have `VIRTIO_F_ACCESS_PLATFORM` is to be given a port that does not translate.
    fn mandatory_features(&self) -> u64 {
        feature::MANDATORY
    }
    /// Whether the driver's choice is consistent. `accepted` is a subset of what was offered.
    fn check_features(&self, _accepted: u64) -> bool {
        true
    }
    /// Largest size of each queue; powers of two.
    fn queue_sizes(&self) -> &'static [u16];
    /// The queues that this part of the device serves, by index, for a driver that has accepted
    /// `features`.
    fn queues(&self, _features: u64) -> Vec<usize> {
        (0..self.queue_sizes().len()).collect()
    }
    /// The parts that serve the queues that are left. Asked once, when the device is created. A part
    /// of whose queues the driver enables none is not activated.
    fn take_parts(&mut self) -> Vec<Box<dyn VirtioDevice>> {
        Vec::new()
    }
    /// The device-specific configuration, at most 256 bytes. It is read once: these devices never
    /// change it, but for those that have a [live one](Self::live_config).
    fn config(&self) -> Vec<u8>;
    /// What takes the place of [`config`](Self::config) if it changes. Whoever changes it tells the driver
    /// by `Session::config_changed`.
    fn live_config(&self) -> Option<Arc<dyn LiveConfig>> {
        None
    }

    /// What accesses guest memory besides the device's thread, if anything does.
    fn halt(&self) -> Option<Arc<dyn Halt>> {
        None
    }

    /// The events by which others say that they have used buffers of queues, by queue. The transport
    /// has the hypervisor interrupt when one is signalled, if it can.
    ///
    /// # Errors
    /// When the host gives no descriptors.
    fn calls(&self) -> io::Result<Vec<(usize, EventFd)>> {
        Ok(Vec::new())
    }

    /// Why the device cannot be stopped for a while, if that is so.
    fn unstoppable(&self) -> Option<&'static str> {
        None
    }

    /// Why the device cannot be saved, if that is so, and what to do.
    fn unsavable(&self) -> Option<&'static str> {
        Some("such a device cannot be saved yet")
    }

    /// What this part is like besides its queues, while it is not active, or its thread is stopped for
    /// a while.
    ///
    /// # Errors
    /// What the host refuses.
    fn save(&mut self) -> Result<Section, SaveError> {
        let why = self
            .unsavable()
            .unwrap_or("it does not say what it is like");
        Err(SaveError::new(why))
    }

    /// Makes a part that was just created like the one that was [saved](Self::save). It may be
    /// activated next, and goes on then.
    ///
    /// # Errors
    /// `state` is not of such a part, or what the host refuses.
    fn restore(&mut self, _state: &Section) -> Result<(), RestoreError> {
        Err(RestoreError::Missing)
    }

    /// The driver is ready. An error leaves the device in need of a reset.
    fn activate(&mut self, features: u64) -> io::Result<()>;
    /// Has somebody else serve queues, who hears of notifications by `kicks`, which are those of the
    /// part's queues by index. Called after [`VirtioDevice::activate`].
    fn hand_over(
        &mut self,
        _session: &mut Session,
        _kicks: &[(usize, EventFd)],
    ) -> Result<(), QueueError> {
        Ok(())
    }
    /// Whether the device model itself serves queue `index`, once it is active.
    fn serves(&self, _index: usize) -> bool {
        true
    }
    /// File descriptors of the device's back end to wait for (readable), in an order that stays the
    /// same while active.
    fn sources(&self) -> Vec<RawFd> {
        Vec::new()
    }
    /// Whether `source` (an index into [`VirtioDevice::sources`]) is to be waited for at the
    /// moment.
    fn wants(&self, _source: usize) -> bool {
        true
    }
    /// The driver notified queue `index`, or the last turn ended with [`Progress::More`]. One turn
    /// handles a bounded number of chains. An error means that the rings are
    /// broken.
    fn queue_ready(&mut self, index: usize, session: &mut Session) -> Result<Progress, QueueError>;
    /// Source `source` is readable. It is polled level-triggered: what is left over is reported
    /// again.
    fn source_ready(&mut self, _source: usize, _session: &mut Session) -> Result<(), QueueError> {
        Ok(())
    }
    /// Whether requests are under way without the thread, whose ends it learns of by a source. The
    /// thread does not stop before that.
    fn in_flight(&self) -> bool {
        false
    }
    /// The thread stops for a while. Whoever serves queues for the part stops, too: no access to guest
    /// memory is under way when this returns, and the driver was told of all that was used.
    fn suspend(&mut self, _session: &mut Session) -> Result<(), QueueError> {
        Ok(())
    }
    /// The thread goes on: after [`VirtioDevice::suspend`], or because it need not stop any more.
    fn go_on(&mut self, _session: &mut Session) -> Result<(), QueueError> {
        Ok(())
    }
    /// The device was reset; the next call is `activate` again.
    fn deactivate(&mut self) {}
}
