//! Interrupts that are on their way when a guest is paused.

use pci::{Bdf, MsiMessage, MsiSink as _};

use super::{MessageRoutes, Path, Shared};

impl MessageRoutes {
    /// Has interrupts arrive that were signalled before: those that KVM is about to send, and those
    /// that the loop is to send. None of them comes after this returns. Nobody signals any meanwhile.
    /// Not for the loop's thread.
    pub(crate) fn settle(&self) {
        let Self(shared) = self;
        for (source, MsiMessage { address, data }) in shared.take_signalled() {
            shared.remapper.signal(source, address, data);
        }
        // It may have taken one itself.
        shared.watcher.settle();
    }
}

impl Shared {
    /// The messages of events that wait for the loop. KVM has sent its own when this returns: it does
    /// so before it lets go of an event.
    fn take_signalled(&self) -> Vec<(Bdf, MsiMessage)> {
        let mut state = self.lock();
        let mut signalled = Vec::new();
        let mut of_kvm = Vec::new();
        for (gsi, route) in &state.routes {
            match (route.path, route.message) {
                (Path::Loop, Some(message)) if route.event.read().is_ok() => {
                    signalled.push((route.source, message));
                }
                (Path::Kvm(_), _) => of_kvm.push((*gsi, route.path)),
                _ => {}
            }
        }
        for (gsi, path) in of_kvm {
            self.leave(&mut state, gsi);
            self.enter(&mut state, gsi, path);
        }
        signalled
    }
}
