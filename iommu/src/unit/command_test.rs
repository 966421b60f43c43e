//! Registers and commands as a driver sees them.
