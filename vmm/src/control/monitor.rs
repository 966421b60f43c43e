//! The running machine, as the commands of the control socket see it.

use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Instant;

use devices::virtio::mem::MemControl;
use pci::RootComplex;

use super::turns::Turns;
use super::workers::Workers;
use crate::assign::Assigner;
use crate::event::Event;
use crate::irq::Unit;
use crate::machine::{BalloonSlot, HotPlug};
use crate::memory::dirty::Follow;
use crate::migration::{Here, Migrations};
use crate::snapshot::Snapshots;
use crate::suspension::Suspension;
use crate::upgrade::Upgrades;
use crate::vcpu::AccessTimes;

/// What commands look at.
pub(crate) struct Monitor {
    /// Number of vCPUs.
    pub(crate) cpus: u8,
    /// Bytes of RAM.
    pub(crate) memory: u64,
    /// The same with what can be plugged.
    pub(crate) all_memory: u64,
    /// Whether nobody but this process maps it.
    pub(crate) private_memory: bool,
    /// When the machine was started.
    pub(crate) started: Instant,
    /// The PCI functions.
    pub(crate) root: Arc<RootComplex>,
    /// The remapping unit, if there is one.
    pub(crate) unit: Option<Arc<Unit>>,
    /// How long vCPUs' accesses took.
    pub(crate) accesses: Arc<AccessTimes>,
    /// What assigns devices of the host, if there are iommufds.
    pub(crate) assigner: Option<Arc<Assigner>>,
    /// What writes to guest memory.
    pub(crate) writers: Arc<dyn Follow>,
    /// What can be plugged in and out.
    pub(crate) hotplug: Arc<HotPlug>,
    /// The balloon, if there is one.
    pub(crate) balloon: Arc<BalloonSlot>,
    /// Memory that can be plugged, if there is any.
    pub(crate) plugged: Option<MemControl>,
    /// For what takes time.
    pub(crate) workers: Workers,
    /// Where the wish to pause it goes.
    pub(crate) suspension: Arc<Suspension>,
    /// Whose turn it is to take long.
    pub(crate) turns: Arc<Turns>,
    /// The snapshot that is being written.
    pub(crate) snapshots: Arc<Snapshots>,
    /// The migration that is under way.
    pub(crate) migrations: Arc<Migrations>,
    /// What has another nido go on with the guest.
    pub(crate) upgrades: Arc<Upgrades>,
    /// Where the wish to end the machine goes.
    pub(crate) events: Sender<Event>,
}

impl Monitor {
    /// The guest, for what may have it go on elsewhere.
    pub(super) fn here(&self) -> Here {
        Here {
            suspension: Arc::clone(&self.suspension),
            events: self.events.clone(),
            hotplug: Arc::clone(&self.hotplug),
        }
    }
}
