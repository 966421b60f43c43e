//! What the guest has made of a configuration space: the bits that it may change.

use state::{Bytes, RestoreError};

use super::VirtualConfig;
use crate::vfio::image::Image;

impl VirtualConfig {
    /// All of it, as the guest would read it where it reads none of the host's.
    pub(in crate::vfio) fn save(&self) -> Bytes {
        Bytes::new(&self.bytes[..])
    }

    /// Makes one that nobody has written to like the one that was [saved](Self::save). Nothing is done
    /// about it.
    ///
    /// # Errors
    /// The first thing in which the functions differ that the guest cannot change; nothing has changed.
    pub(in crate::vfio) fn restore(&mut self, saved: &Bytes) -> Result<(), RestoreError> {
        let saved: Image = saved.array("configuration space")?;
        let mut restored = self.initial.clone();
        let own = self.own();
        let masks = self.writable.iter().zip(&own[..]);
        let bytes = restored.iter_mut().zip(saved).zip(masks);
        for (offset, ((byte, saved), (writable, own))) in bytes.enumerate() {
            let fixed = !(writable | own);
            if (*byte ^ saved) & fixed != 0 {
                let what = format!("configuration space at {offset:#x}");
                let [saved, here] = [saved, *byte].map(|byte| format!("{:#04x}", byte & fixed));
                return RestoreError::unless_equal(what, saved, here);
            }
            *byte = *byte & !writable | saved & writable;
        }
        self.bytes = restored;
        if let Some(offset) = self.layout.pri {
            self.settle_page_requests(offset);
        }
        Ok(())
    }

    /// Bits that change by themselves: those of the host's device, pending bits of MSI, and the status of
    /// page requests.
    fn own(&self) -> Box<Image> {
        let mut own = self.live.clone();
        let msi = self.layout.msi.filter(|msi| msi.maskable);
        let pending = msi.map(|msi| (msi.mask() + 4, 4));
        let status = self
            .layout
            .pri
            .map(|offset| (offset + pci::capability::pri::STATUS, 2));
        for (offset, length) in pending.into_iter().chain(status) {
            own.iter_mut()
                .skip(usize::from(offset))
                .take(length)
                .for_each(|byte| *byte = 0xff);
        }
        own
    }
}
