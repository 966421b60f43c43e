//! The server that sends back what it receives, over UDP and TCP.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, UdpSocket};
use std::thread;

/// Serves `port` of `address` (0: any free one) for both protocols until the process ends; returns
/// the port.
pub(super) fn serve(address: Ipv4Addr, port: u16) -> io::Result<u16> {
    let listener = TcpListener::bind(SocketAddrV4::new(address, port))?;
    let port = listener.local_addr()?.port();
    let socket = UdpSocket::bind(SocketAddrV4::new(address, port))?;
    thread::spawn(move || {
        let mut datagram = vec![0; 65536];
        while let Ok((length, sender)) = socket.recv_from(&mut datagram) {
            let _ = socket.send_to(datagram.get(..length).unwrap_or_default(), sender);
        }
    });
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || echo(stream));
        }
    });
    Ok(port)
}

/// Sends back what comes, until that ends.
pub(super) fn echo(mut stream: impl Read + Write) {
    let mut data = vec![0; 65536];
    while let Ok(length) = stream.read(&mut data) {
        if length == 0
            || stream
                .write_all(data.get(..length).unwrap_or_default())
                .is_err()
        {
            return;
        }
    }
}
