//! Host devices, assigned through VFIO.

mod platform;

pub use platform::{EndOfInterrupt, GuestMappings, InterruptRoute, InterruptRoutes};
