//! The layout of a configuration space: its size, and the offsets of the capabilities whose
//! registers act.

/// Bytes of one function's configuration space.
pub const CONFIG_SPACE_SIZE: usize = 4096;

/// Offsets of the capabilities that [`ConfigSpace`](crate::ConfigSpace) itself understands.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Layout {
    pub(crate) pcie: Option<u16>,
    pub(crate) msi: Option<u16>,
    pub(crate) msix: Option<u16>,
}
