//! Where the capabilities of a configuration space lie whose registers act.

/// Offsets of the capabilities that [`ConfigSpace`](crate::ConfigSpace) itself understands.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Layout {
    pub(crate) pcie: Option<u16>,
    pub(crate) msi: Option<u16>,
    pub(crate) msix: Option<u16>,
}
