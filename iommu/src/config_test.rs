//! Capability words and refusals.
