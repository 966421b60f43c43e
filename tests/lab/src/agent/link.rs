//! What a guest's network is joined to: a tap, or two taps of one bridge for a guest that goes from one
//! nido to another.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};

use super::tap::{self, Tap};
use crate::sys::ioctl::{self, InterfaceRequest, ioctl};

/// The taps exist as long as the value.
pub(super) struct Link {
    /// Their names. The first is that of the nido with which a guest begins.
    pub(super) names: Vec<String>,
    /// It goes before its ports.
    _bridge: Option<Bridge>,
    _taps: Vec<Tap>,
}

impl Link {
    /// One tap, with an address of this side. With `several` it can have several queues.
    pub(super) fn one(
        name: &str,
        address: Ipv4Addr,
        prefix: u8,
        several: bool,
    ) -> io::Result<Self> {
        Ok(Self {
            names: vec![name.to_owned()],
            _bridge: None,
            _taps: vec![Tap::new(name, address, prefix, several)?],
        })
    }

    /// Two taps and a bridge, which has the address. All their names begin with `name`.
    pub(super) fn two(
        name: &str,
        address: Ipv4Addr,
        prefix: u8,
        several: bool,
    ) -> io::Result<Self> {
        let names: Vec<String> = ["a", "b"].map(|end| format!("{name}{end}")).into();
        let taps = names.iter().map(|name| Tap::unaddressed(name, several));
        let taps = taps.collect::<io::Result<_>>()?;
        let bridge = Bridge::new(&format!("{name}br"), &names)?;
        tap::set_up(&bridge.name, address, prefix)?;
        Ok(Self {
            names,
            _bridge: Some(bridge),
            _taps: taps,
        })
    }
}

/// A bridge that exists as long as the value.
struct Bridge {
    name: String,
}

impl Bridge {
    fn new(name: &str, ports: &[String]) -> io::Result<Self> {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        let mut padded = InterfaceRequest::new(name)?.name;
        ioctl(&socket, &ioctl::BRIDGE_ADD, &mut padded)?;
        let bridge = Self {
            name: name.to_owned(),
        };
        for port in ports {
            let mut index = InterfaceRequest::new(port)?;
            ioctl(&socket, &ioctl::GET_INDEX, &mut index)?;
            let mut request = InterfaceRequest::new(name)?;
            request.payload = index.payload;
            ioctl(&socket, &ioctl::BRIDGE_ADD_PORT, &mut request)?;
        }
        Ok(bridge)
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        // One that is up cannot be removed.
        let _ = tap::switch(&self.name, false);
        if let (Ok(socket), Ok(mut request)) = (
            UdpSocket::bind("0.0.0.0:0"),
            InterfaceRequest::new(&self.name),
        ) {
            let _ = ioctl(&socket, &ioctl::BRIDGE_REMOVE, &mut request.name);
        }
    }
}
