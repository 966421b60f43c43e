//! The events of a running device: notifications of its queues, readable descriptors of its back
//! end, and the stop event, dispatched by event-manager.

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;

use event_manager::{
    EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberOps as _,
};
use log::warn;
use state::{SaveError, Section};
use vmm_sys_util::eventfd::EventFd;

use crate::limit::LogLimit;
use crate::park::Park;
use crate::virtio::device::VirtioDevice;
use crate::virtio::error::QueueError;
use crate::virtio::queue::RingState;
use crate::virtio::session::{Progress, Session};
use crate::virtio::worker::Job;

/// Data of the stop event.
const STOP: u32 = u32::MAX;
/// Data of the device's sources starts here; smaller values are queues.
const SOURCES: u32 = 1 << 16;

/// What a device leaves behind when it is given back.
pub(in crate::virtio) struct Returned {
    pub(in crate::virtio) device: Box<dyn VirtioDevice>,
    pub(in crate::virtio) limit: LogLimit,
}

impl Returned {
    pub(in crate::virtio) fn new(device: Box<dyn VirtioDevice>) -> Self {
        Self {
            device,
            limit: LogLimit::default(),
        }
    }

    /// What the part is like.
    pub(in crate::virtio) fn save(&mut self) -> Result<PartState, SaveError> {
        Ok(PartState {
            rings: Vec::new(),
            device: self.device.save()?,
        })
    }
}

/// What a part of a device is like.
pub(in crate::virtio) struct PartState {
    /// By queue: where those go on that it serves at the moment.
    pub(in crate::virtio) rings: Vec<(usize, RingState)>,
    pub(in crate::virtio) device: Section,
}

/// Where a thread says what its part is like.
pub(super) type States = Sender<Result<PartState, SaveError>>;

/// A device, or a part of one, from activation to reset, or until it cannot go on.
pub(super) struct Run {
    name: String,
    device: Box<dyn VirtioDevice>,
    limit: LogLimit,
    session: Session,
    /// By queue.
    kicks: Vec<(usize, EventFd)>,
    /// By source of the device: its descriptor, and whether it is watched.
    sources: Vec<(RawFd, bool)>,
    /// Signalled after the session's stop flag is set, and when its [`Park`] says something else.
    wake: EventFd,
    states: States,
    /// How many of the times that the thread was to stop for a while are over.
    rests: u64,
}

impl Run {
    pub(super) fn new(
        name: String,
        returned: Returned,
        Job { session, kicks }: Job,
        wake: EventFd,
        states: States,
    ) -> Self {
        let Returned { device, limit } = returned;
        Self {
            name,
            device,
            limit,
            session,
            kicks,
            sources: Vec::new(),
            wake,
            states,
            rests: 0,
        }
    }

    /// Serves the device's events until it is stopped or cannot go on; then gives it back.
    pub(super) fn serve(self, mut manager: EventManager<Self>) -> Option<Returned> {
        let stop = self.session.stop_flag();
        let park = self.session.park();
        let id = manager.add_subscriber(self);
        while !stop.load(Ordering::Acquire) {
            if let Err(error) = manager.run() {
                manager.subscriber_mut(id).ok()?.fail(&error.into());
            }
            let run = manager.subscriber_mut(id).ok()?;
            if park.times() != run.rests
                && let Err(failure) = run.rest(&park, &stop)
            {
                run.fail(&failure);
            }
        }
        let Self {
            mut device,
            limit,
            session,
            ..
        } = manager.remove_subscriber(id).ok()?;
        device.deactivate();
        // No translation may be held, and no access be possible, once the device counts as reset.
        drop(session);
        Some(Returned { device, limit })
    }

    /// Stops for as long as `park` wants it, once nothing is under way; then looks at all queues.
    fn rest(&mut self, park: &Park, stop: &AtomicBool) -> Result<(), Failure> {
        let times = park.times();
        if park.is_wanted() {
            if self.device.in_flight() {
                return Ok(());
            }
            self.device.suspend(&mut self.session)?;
            let Self {
                device,
                session,
                states,
                ..
            } = self;
            park.stay_on_call(stop, || {
                // Nobody listens any more if the whole device is being dropped.
                let _ = states.send(save(&mut **device, session));
            });
            if self.session.stopping() {
                return Ok(());
            }
        }
        self.device.go_on(&mut self.session)?;
        self.rests = times;
        // No notification is lost, whatever was read and left because of the rest.
        for (index, kick) in &self.kicks {
            if self.session.enabled(*index) {
                notify(kick)?;
            }
        }
        Ok(())
    }

    /// Starts the device and watches everything that it is to hear of.
    fn activate(&mut self, ops: &mut EventOps) -> Result<(), Failure> {
        ops.add(Events::with_data(&self.wake, STOP, EventSet::IN))?;
        self.device.activate(self.session.features())?;
        self.device.hand_over(&mut self.session, &self.kicks)?;
        for (index, kick) in &self.kicks {
            if !self.device.serves(*index) {
                continue;
            }
            let data = u32::try_from(*index).unwrap_or(STOP);
            ops.add(Events::with_data(kick, data, EventSet::IN))?;
            // Buffers that were made available before DRIVER_OK count as well.
            if self.session.enabled(*index) {
                notify(kick)?;
            }
        }
        self.sources = self
            .device
            .sources()
            .into_iter()
            .map(|fd| (fd, false))
            .collect();
        self.watch_sources(ops)
    }

    /// Does what an event with `data` asks for.
    fn handle(&mut self, data: u32) -> Result<(), Failure> {
        match data.checked_sub(SOURCES) {
            Some(source) => {
                let source = usize::try_from(source).unwrap_or(usize::MAX);
                Ok(self.device.source_ready(source, &mut self.session)?)
            }
            None => self.turn(usize::try_from(data).unwrap_or(usize::MAX)),
        }
    }

    /// Whether an event with `data` is served although the thread is to stop for a while: it tells of
    /// the end of what that has to wait for. Other sources stay as they are. Notifications are read,
    /// or they would come again and again until then: [`rest`](Self::rest) makes up for them.
    fn is_due(&self, data: u32) -> bool {
        let queue = usize::try_from(data).unwrap_or(usize::MAX);
        if let Some((_, kick)) = self.kicks.iter().find(|(index, _)| *index == queue) {
            let _ = kick.read();
            return false;
        }
        self.device.in_flight()
    }

    /// Gives queue `index`, whose event is ready, one turn.
    fn turn(&mut self, index: usize) -> Result<(), Failure> {
        let Some((_, kick)) = self.kicks.iter().find(|(queue, _)| *queue == index) else {
            return Ok(());
        };
        // Non-blocking, and another reader may have been faster: an error means that it is empty.
        let _ = kick.read();
        if self.session.enabled(index)
            && self.device.queue_ready(index, &mut self.session)? == Progress::More
        {
            // The rest waits until every other event that is ready has been served.
            notify(kick)?;
        }
        Ok(())
    }

    /// Brings what is watched in line with what the device wants to hear of. A descriptor that is
    /// not wanted is taken out, since a hang-up is reported whatever the event set says.
    fn watch_sources(&mut self, ops: &mut EventOps) -> Result<(), Failure> {
        for (data, (fd, watched)) in (SOURCES..).zip(&mut self.sources) {
            let wanted = self
                .device
                .wants(usize::try_from(data - SOURCES).unwrap_or(usize::MAX));
            if wanted == *watched {
                continue;
            }
            if wanted {
                ops.add(Events::with_data_raw(*fd, data, EventSet::IN))?;
            } else {
                ops.remove(Events::empty_raw(*fd))?;
            }
            *watched = wanted;
        }
        Ok(())
    }

    /// Ends the run: the driver learns that the device needs a reset. What fails because of a stop
    /// is no failure.
    fn fail(&mut self, failure: &Failure) {
        if self.session.stopping() {
            return;
        }
        if let Some(held_back) = self.limit.pass() {
            warn!(
                "virtio {}: device needs reset: {failure} ({held_back} messages held back)",
                self.name
            );
        }
        self.session.fail();
    }
}

impl MutEventSubscriber for Run {
    fn init(&mut self, ops: &mut EventOps) {
        if let Err(failure) = self.activate(ops) {
            self.fail(&failure);
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        if events.data() == STOP {
            // It says that there are flags to look at, which comes next. Unread, it would say so for
            // ever after a rest.
            let _ = self.wake.read();
            return;
        }
        if self.session.stopping() {
            return;
        }
        if self.session.parking() && !self.is_due(events.data()) {
            return;
        }
        let outcome = self.handle(events.data());
        if let Err(failure) = outcome.and_then(|()| self.watch_sources(ops)) {
            self.fail(&failure);
        }
    }
}

/// What a part and its queues are like.
fn save(device: &mut dyn VirtioDevice, session: &Session) -> Result<PartState, SaveError> {
    Ok(PartState {
        rings: session.rings()?,
        device: device.save()?,
    })
}

/// Makes the event of a queue ready.
fn notify(kick: &EventFd) -> io::Result<()> {
    match kick.write(1) {
        // It has been signalled as often as it can count.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        result => result,
    }
}

/// Why a device stopped before it was told to.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// The guest's doing.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// The host's doing: a system call of the device.
    #[error("host error: {0}")]
    Host(#[from] io::Error),
    /// The host's doing: an event cannot be watched.
    #[error("host error: {0}")]
    Events(#[from] event_manager::Error),
}
