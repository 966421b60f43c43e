//! A driver for tests: a unit, its memory, and a sink that keeps what it is given.
