//! Every descriptor, well-formed and malformed.
