//! The invalidation queue as a driver sees it.
