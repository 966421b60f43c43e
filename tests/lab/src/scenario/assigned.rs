//! The scenarios whose guests have devices of level 1.

use super::Scenario;

/// All of them.
pub const ASSIGNED: &[Scenario] = &[];
