//! The queues of a tap that a device has: attached to when it is made, or given by the process that has
//! had the guest before.

use std::fs::File;
use std::io;

use super::control::Control;
use super::steering::TapQueues;
use super::tap::{QueueFile, Tap};
use super::{NetError, NetOptions};

/// All queues of a device, and what its control queue does with those but the first, if there are any.
pub(super) struct Attached {
    pub(super) first: Tap,
    pub(super) others: Vec<Tap>,
    pub(super) control: Option<Control>,
}

impl Attached {
    /// Attaches to the tap. Those but the first are not used from here on.
    pub(super) fn open(options: &NetOptions) -> Result<Self, NetError> {
        let (first, others) = Tap::open(&options.tap, options.pairs)?;
        let attach = |error| NetError::attach(&options.tap, error);
        let queues = |files| TapQueues::new(files).map_err(attach);
        Self::with(first, others, queues)
    }

    /// Of queues that another process has, whose guest may be using them: nothing changes for it.
    pub(super) fn of(options: &NetOptions, files: Vec<File>) -> Result<Self, NetError> {
        let mut taps = files.into_iter().map(Tap::of);
        let first = taps.next();
        let first = first.ok_or_else(|| NetError::Missing(options.tap.clone()))?;
        Self::with(first, taps.collect(), |files| {
            Ok(TapQueues::of_others(files))
        })
    }

    fn with(
        first: Tap,
        others: Vec<Tap>,
        queues: impl FnOnce(Vec<File>) -> Result<TapQueues, NetError>,
    ) -> Result<Self, NetError> {
        let control = match others.len() {
            0 => None,
            count => {
                let files = others.iter().map(Tap::file).collect::<io::Result<_>>();
                let queues = queues(files.map_err(NetError::Descriptors)?)?;
                Some(Control::new(Box::new(queues), count + 1))
            }
        };
        Ok(Self {
            first,
            others,
            control,
        })
    }

    /// The same for whoever is to have them next, in their order.
    pub(super) fn files(&self) -> Vec<QueueFile> {
        let all = std::iter::once(&self.first).chain(&self.others);
        all.map(Tap::queue).collect()
    }
}
