//! Fault records, overflow, and the rules of the fault event.
