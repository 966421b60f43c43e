//! What keeps a guest's memory where it is: none of it can be given back to the host.

use super::{FunctionConfig, FunctionKind, MemoryConfig};

/// Why none can beside devices that other processes serve.
pub(crate) const SERVED: &str = "beside vhost-user no memory can be given back: the process that serves the device may have it pinned, and would go on with pages that are the guest's no more; leave one of both out";

impl MemoryConfig {
    /// Why no memory can be given back page by page, if that is so, and what to do. `assigns` tells whether devices
    /// of the host are assigned, or may be later.
    pub(crate) fn stays(
        &self,
        functions: &[FunctionConfig],
        assigns: bool,
    ) -> Option<&'static str> {
        if assigns {
            return Some(
                "beside --object iommufd no page of it can be given back: devices of the host reach all of it, so that it stays pinned; have memory come and go by --device virtio-mem",
            );
        }
        self.cannot_be_plugged(functions)
    }

    /// Why memory cannot come and go by blocks, if that is so, and what to do.
    pub(crate) fn cannot_be_plugged(&self, functions: &[FunctionConfig]) -> Option<&'static str> {
        let mut kinds = functions.iter().map(|function| &function.kind);
        if kinds.any(|kind| matches!(kind, FunctionKind::VhostUser(_))) {
            return Some(SERVED);
        }
        self.hugepages.then_some(
            "of --memory hugepages=on nothing can be given back: its huge pages are reserved for this guest, and could not be had again; write hugepages=off",
        )
    }
}
