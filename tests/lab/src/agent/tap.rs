//! Network interfaces by ioctl: a tap, and addresses.

use std::fs::{File, OpenOptions};
use std::io;
use std::net::{Ipv4Addr, UdpSocket};

use crate::sys::ioctl::{self, InterfaceRequest, ioctl, ioctl_value};

const IFF_UP: u16 = 1;
const IFF_TAP: u16 = 2;
const IFF_MULTI_QUEUE: u16 = 0x100;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const AF_INET: u16 = 2;

/// A tap interface that exists as long as the value.
pub struct Tap {
    name: String,
    several: bool,
}

impl Tap {
    /// Makes the tap `name`, with an address, up; with `several` it can have several queues. Needs
    /// CAP_NET_ADMIN.
    pub fn new(name: &str, address: Ipv4Addr, prefix: u8, several: bool) -> io::Result<Self> {
        let tap = Self::unaddressed(name, several)?;
        set_up(name, address, prefix)?;
        Ok(tap)
    }

    /// The same without an address, for a port of a bridge.
    pub(super) fn unaddressed(name: &str, several: bool) -> io::Result<Self> {
        let control = attach(name, several)?;
        ioctl_value(&control, &ioctl::TUN_SET_PERSIST, 1)?;
        // Closed again, so that nido can attach to it.
        drop(control);
        let tap = Self {
            name: name.to_owned(),
            several,
        };
        switch(name, true)?;
        Ok(tap)
    }
}

fn attach(name: &str, several: bool) -> io::Result<File> {
    let control = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun")?;
    let mut request = InterfaceRequest::new(name)?;
    let several = if several { IFF_MULTI_QUEUE } else { 0 };
    let flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | several;
    request.payload[..2].copy_from_slice(&flags.to_ne_bytes());
    ioctl(&control, &ioctl::TUN_SET_INTERFACE, &mut request)?;
    Ok(control)
}

impl Drop for Tap {
    fn drop(&mut self) {
        if let Ok(control) = attach(&self.name, self.several) {
            let _ = ioctl_value(&control, &ioctl::TUN_SET_PERSIST, 0);
        }
    }
}

/// Gives interface `name` an address and sets it up.
pub fn set_up(name: &str, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let mask = u32::MAX
        .checked_shl(32 - u32::from(prefix.min(32)))
        .unwrap_or(0);
    for (request, value) in [
        (ioctl::SET_ADDRESS, address),
        (ioctl::SET_NETMASK, Ipv4Addr::from(mask)),
    ] {
        let mut argument = InterfaceRequest::new(name)?;
        // struct sockaddr_in: family, port, address.
        argument.payload[..2].copy_from_slice(&AF_INET.to_ne_bytes());
        argument.payload[4..8].copy_from_slice(&value.octets());
        ioctl(&socket, &request, &mut argument)?;
    }
    switch(name, true)
}

/// Sets interface `name` up or down.
pub(super) fn switch(name: &str, up: bool) -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let mut flags = InterfaceRequest::new(name)?;
    ioctl(&socket, &ioctl::GET_FLAGS, &mut flags)?;
    let bit = IFF_UP.to_ne_bytes()[0];
    match up {
        true => flags.payload[0] |= bit,
        false => flags.payload[0] &= !bit,
    }
    ioctl(&socket, &ioctl::SET_FLAGS, &mut flags)?;
    Ok(())
}
