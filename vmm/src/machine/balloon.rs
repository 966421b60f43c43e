//! The place of a machine's balloon, which may be behind a root port, and come and go.

use devices::virtio::balloon::BalloonControl;
use parking_lot::Mutex;

/// What changes the size of the balloon, if there is one.
#[derive(Default)]
pub(crate) struct BalloonSlot(Mutex<Option<BalloonControl>>);

impl BalloonSlot {
    /// There is this one from here on, for as long as its device is there.
    ///
    /// # Errors
    /// There is another.
    pub(crate) fn set(&self, control: BalloonControl) -> anyhow::Result<()> {
        let mut slot = self.0.lock();
        let other = slot.as_ref().and_then(BalloonControl::figures);
        anyhow::ensure!(
            other.is_none(),
            "the guest has a balloon already, and needs one only; remove that before"
        );
        *slot = Some(control);
        Ok(())
    }

    /// The balloon, if there is one.
    pub(crate) fn get(&self) -> Option<BalloonControl> {
        let slot = self.0.lock();
        slot.clone().filter(|one| one.figures().is_some())
    }
}
