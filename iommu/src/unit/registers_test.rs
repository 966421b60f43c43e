//! The register file alone.
