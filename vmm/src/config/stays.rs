//! What keeps a guest's memory where it is: none of it can be given back to the host.

use super::MemoryConfig;

impl MemoryConfig {
    /// Why no memory can be given back, if that is so, and what to do. `assigns` tells whether devices of
    /// the host are assigned, or may be later.
    pub(crate) fn stays(&self, assigns: bool) -> Option<&'static str> {
        if assigns {
            return Some(
                "beside --object iommufd no memory can be given back: devices of the host reach all of it, so that it stays pinned; leave one of both out",
            );
        }
        self.hugepages.then_some(
            "of --memory hugepages=on nothing can be given back: its huge pages are reserved for this guest, and could not be had again; write hugepages=off",
        )
    }
}
