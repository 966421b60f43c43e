//! The server that a guest measures its network with, over TCP. The first byte of a connection says
//! what is wanted of it.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::thread;

/// Takes what comes; at its end, how many bytes there were is sent back (64 bits, little-endian).
pub(crate) const TAKE: u8 = b'T';
/// Sends until the other side leaves.
pub(crate) const GIVE: u8 = b'G';
/// Sends each byte back.
pub(crate) const ANSWER: u8 = b'A';
/// Bytes that are read or written at once.
pub(crate) const PIECE: usize = 64 * 1024;

/// Serves any free port of `address` until the process ends; returns the port.
pub(super) fn serve(address: Ipv4Addr) -> io::Result<u16> {
    let listener = TcpListener::bind(SocketAddrV4::new(address, 0))?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || {
                // Most of them end because the other side has left.
                let _ = carry_out(stream);
            });
        }
    });
    Ok(port)
}

fn carry_out(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut wanted = [0];
    stream.read_exact(&mut wanted)?;
    let mut piece = vec![0; PIECE];
    match wanted[0] {
        TAKE => {
            let mut total = 0_u64;
            loop {
                match stream.read(&mut piece)? {
                    0 => return stream.write_all(&total.to_le_bytes()),
                    length => total += length as u64,
                }
            }
        }
        GIVE => loop {
            stream.write_all(&piece)?;
        },
        ANSWER => {
            let mut byte = [0];
            loop {
                stream.read_exact(&mut byte)?;
                stream.write_all(&byte)?;
            }
        }
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect(wanted: u8) -> TcpStream {
        let port = serve(Ipv4Addr::LOCALHOST).unwrap();
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        stream.write_all(&[wanted]).unwrap();
        stream
    }

    #[test]
    fn what_was_taken_is_counted_without_the_byte_that_asked() {
        let mut stream = connect(TAKE);
        stream.write_all(&[0; 100_000]).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut count = [0; 8];
        stream.read_exact(&mut count).unwrap();
        assert_eq!(u64::from_le_bytes(count), 100_000);
    }

    #[test]
    fn each_byte_is_answered() {
        let mut stream = connect(ANSWER);
        let mut byte = [0];
        for sent in [7, 9] {
            stream.write_all(&[sent]).unwrap();
            stream.read_exact(&mut byte).unwrap();
            assert_eq!(byte, [sent]);
        }
    }
}
