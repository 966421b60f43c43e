//! Layout, validity and source check of interrupt remapping table entries.
