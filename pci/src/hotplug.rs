//! The state of a hot-plug slot, outcomes of removals, and the errors of plugging (section 6.7).

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::bar_assignment::AssignError;
use crate::bdf::Bdf;
use crate::slot::Indicator;

/// What a slot looks like from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotState {
    /// There is a function in it.
    pub occupied: bool,
    /// The guest has power on.
    pub powered: bool,
    /// The function can be reached.
    pub link_up: bool,
    /// Blinks while the guest is about to change the power.
    pub power_indicator: Indicator,
    /// Lit when the guest found a problem.
    pub attention_indicator: Indicator,
    /// The guest was asked to give the function up, and has not yet done or declined it.
    pub removal_requested: bool,
}

/// How a request for removal ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemovalOutcome {
    /// The slot is powered off: [`RootComplex::unplug`](crate::RootComplex::unplug) succeeds.
    PoweredOff,
    /// The guest cancelled it or was reset, or nothing was requested.
    Declined,
    /// Nothing happened in time. The request is withdrawn if the guest has not reacted to it; else
    /// it may still be followed.
    TimedOut,
}

/// A function cannot be put into a slot.
#[derive(Debug, PartialEq, Eq, Error)]
pub enum PlugError {
    /// One function is all there is room for.
    #[error("root port {0} has a device already; remove that first, or choose another port")]
    Occupied(Bdf),
    /// Its BARs do not go with those that are there already.
    #[error("the machine has too little room for its BARs: {0}")]
    NoRoom(#[from] AssignError),
}

/// A function cannot be taken out of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum UnplugError {
    /// There is none.
    #[error("there is no device behind root port {0}")]
    Empty(Bdf),
    /// The guest may still use it.
    #[error(
        "the guest has not powered off the slot of root port {0}; ask for the removal, and wait for it"
    )]
    Powered(Bdf),
    /// Pressing the button once more would cancel the removal.
    #[error(
        "the removal of the device behind root port {0} has been requested already; wait for it"
    )]
    Requested(Bdf),
    /// The power indicator blinks: pressing the button now would cancel what the guest does.
    #[error(
        "the guest is changing the power of the slot of root port {0}; try again in a few seconds"
    )]
    Busy(Bdf),
}

/// A request for removal.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Removal {
    None,
    /// The button was pressed.
    Requested,
    /// The guest makes the power indicator blink: it counts the seconds in which another press
    /// cancels.
    Noticed,
}
