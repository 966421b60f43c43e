//! The limit on log messages.
