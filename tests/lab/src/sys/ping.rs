//! ICMP echo (RFC 792), for which the standard library has no sockets.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::AsRawFd;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

/// Bytes of the header of the message, and of the one before it (RFC 791).
const ICMP_HEADER: usize = 8;
const IP_HEADER: usize = 20;

/// Asks `host` to send `data` back, within `seconds`. Whether it did; needs CAP_NET_RAW.
pub fn ping(host: Ipv4Addr, sequence: u16, data: &[u8], seconds: i64) -> io::Result<bool> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::Icmp,
    )?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(seconds, 0))?;
    // Echo request, of a sender that has no other.
    let mut request = vec![8, 0, 0, 0, 0x4e, 0x49];
    request.extend(sequence.to_be_bytes());
    request.extend(data);
    let sum = checksum(&request).to_be_bytes();
    if let Some(field) = request.get_mut(2..4) {
        field.copy_from_slice(&sum);
    }
    let to = SockaddrIn::from(SocketAddrV4::new(host, 0));
    sendto(socket.as_raw_fd(), &request, &to, MsgFlags::empty())?;
    let mut packet = [0; 2048];
    // Others may have asked as well.
    for _ in 0..16 {
        let length = match recv(socket.as_raw_fd(), &mut packet, MsgFlags::empty()) {
            Err(nix::errno::Errno::EAGAIN) => return Ok(false),
            received => received?,
        };
        let message = packet.get(IP_HEADER..length).unwrap_or_default();
        let (header, answer) = message.split_at_checked(ICMP_HEADER).unwrap_or_default();
        if header.first() == Some(&0)
            && header.get(4..) == request.get(4..ICMP_HEADER)
            && answer == data
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The one's complement of the sum of all words (RFC 1071).
fn checksum(message: &[u8]) -> u16 {
    let words = message.chunks(2).map(|word| match *word {
        [high, low] => u32::from_be_bytes([0, 0, high, low]),
        [high] => u32::from_be_bytes([0, 0, high, 0]),
        _ => 0,
    });
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let [_, _, high, low] = sum.to_be_bytes();
    !u16::from_be_bytes([high, low])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_that_of_the_example_of_rfc_1071() {
        let sum = checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum, !0xddf2);
    }
}
