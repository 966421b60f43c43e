//! Interrupt requests in both formats, and every reason to block one.
