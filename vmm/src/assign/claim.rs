//! Claims: which devices of the host this machine uses, so that none is given to it twice.

use std::collections::BTreeSet;
use std::sync::Arc;

use devices::vfio::HostAddress;
use parking_lot::Mutex;

use super::error::Why;

/// Devices in use. Leaf lock.
pub(super) type Claimed = Arc<Mutex<BTreeSet<HostAddress>>>;

/// A device of the host, for as long as this machine uses it.
#[derive(Debug)]
pub(super) struct Claim {
    address: Option<HostAddress>,
    claimed: Claimed,
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(address) = &self.address {
            self.claimed.lock().remove(address);
        }
    }
}

/// Refuses a device that is claimed already. One without a known address is told apart by the kernel.
pub(super) fn claim(claimed: &Claimed, address: Option<HostAddress>) -> Result<Claim, Why> {
    if address.is_some_and(|address| !claimed.lock().insert(address)) {
        return Err(Why::Taken);
    }
    Ok(Claim {
        address,
        claimed: Arc::clone(claimed),
    })
}
