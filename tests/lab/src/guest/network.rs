//! The network device: data echoed by a server on the other side of the tap.
//!
//! `lab.net=ADDRESS/PREFIX,SERVER:PORT` on the command line names the guest's address and the
//! server; `lab.link=` does for an interface that is assigned.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::Guest;
use crate::agent::tap;
use crate::sys::{self, ioctl};

/// Bytes exchanged over TCP.
const STREAM: usize = 4 << 20;
/// The same over the link of an assigned interface, each of whose interrupts goes through all
/// levels.
const LINK_STREAM: usize = 1 << 20;
/// Longest time until an interface has found its link.
const LINK: Duration = Duration::from_secs(15);
/// Longest wait for one piece of data.
const PATIENCE: Duration = Duration::from_secs(20);

/// An interface address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Address {
    address: Ipv4Addr,
    prefix: u8,
}

pub(super) fn parse(text: &str) -> Result<(Address, SocketAddrV4)> {
    let (own, server) = text
        .split_once(',')
        .context("lab.net=ADDRESS/PREFIX,SERVER:PORT")?;
    let (address, prefix) = own.split_once('/').context("lab.net: no prefix")?;
    Ok((
        Address {
            address: address.parse()?,
            prefix: prefix.parse()?,
        },
        server.parse()?,
    ))
}

/// The guest's address from a kernel command line, if there is one.
pub(super) fn first_address(command_line: &str) -> Option<Address> {
    let text = command_line
        .split_whitespace()
        .find_map(|word| word.strip_prefix("lab.net="))?;
    parse(text).ok().map(|(address, _)| address)
}

/// Gives the first virtio interface its address and sets it up; returns the interface's name.
pub(super) fn configure(address: &Address) -> Result<String> {
    configure_of(address, "virtio_net")
}

/// The same for the first interface of `driver`.
fn configure_of(address: &Address, driver: &str) -> Result<String> {
    let name = interface(driver)?;
    tap::set_up(&name, address.address, address.prefix)?;
    Ok(name)
}

/// The first interface of `driver`, which may take a while to appear.
fn interface(driver: &str) -> Result<String> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let found = fs::read_dir("/sys/class/net")?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| {
                let link = fs::read_link(path.join("device/driver"));
                link.is_ok_and(|link| link.ends_with(driver))
            })
            .and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        match found {
            Some(name) => break Ok(name),
            None if Instant::now() < deadline => thread::sleep(Duration::from_millis(20)),
            None => bail!("no network interface of {driver}"),
        }
    }
}

/// A byte stream in which every place differs from its neighbours and blocks never repeat.
fn pattern(length: usize) -> Vec<u8> {
    let mut data = vec![0; length];
    super::disk::transform(0, &mut data);
    data
}

/// Datagrams of every size class and a long stream, or one of as many KiB as the argument says,
/// come back as they were sent.
pub(super) fn check(guest: &Guest, argument: &str) -> Result<String> {
    let length = match argument {
        "" => STREAM,
        kib => 1024 * kib.parse::<usize>().context("net=KIB")?,
    };
    exchange(guest, "lab.net", "virtio_net", Duration::ZERO, length)
}

/// The host answers pings of several sizes.
pub(super) fn ping(guest: &Guest, _argument: &str) -> Result<String> {
    let text = guest.parameter("lab.net");
    let (address, server) = parse(text.context("lab.net= is missing on the command line")?)?;
    configure(&address)?;
    let data = pattern(1472);
    let sizes = [0, 1, 56, 1000, 1472];
    for (size, sequence) in sizes.into_iter().zip(1..) {
        let sent = data.get(..size).unwrap_or_default();
        // One may be lost, while the neighbour is looked for.
        let mut answered = false;
        for _ in 0..3 {
            answered = answered || sys::ping::ping(*server.ip(), sequence, sent, 5)?;
        }
        ensure!(answered, "a ping of {size} bytes was not answered");
    }
    Ok(format!("{} pings of {}", sizes.len(), server.ip()))
}

/// As [`check`], through the assigned interface, with level 1 itself on the other end of the link.
pub(super) fn assigned(guest: &Guest, _argument: &str) -> Result<String> {
    // QEMU's e1000e drops a frame of which a piece lies on two pages that are not neighbours in
    // level 1's memory (net_tx_pkt_add_raw_fragment of 7.2), each time that it is sent again. A
    // frame that is one piece is on one page.
    let name = interface("e1000e")?;
    ioctl::set_scatter_gather(UdpSocket::bind("0.0.0.0:0")?, &name, false)
        .with_context(|| format!("{name}: scatter-gather off"))?;
    exchange(guest, "lab.link", "e1000e", LINK, LINK_STREAM)
}

/// `patience` is how long the link may take until it carries anything.
fn exchange(
    guest: &Guest,
    parameter: &str,
    driver: &str,
    patience: Duration,
    length: usize,
) -> Result<String> {
    let text = guest.parameter(parameter);
    let (address, server) =
        parse(text.with_context(|| format!("{parameter}= is missing on the command line"))?)?;
    let name = configure_of(&address, driver)?;
    wait_for_carrier(&name, patience)?;
    let datagrams = datagrams(server).context("UDP")?;
    let started = Instant::now();
    stream(server, length).with_context(|| format!("TCP, with {}", counters(&name)))?;
    let seconds = started.elapsed().as_secs_f64();
    Ok(format!(
        "{name}: {datagrams} datagrams, {} KiB of stream both ways in {seconds:.1} s",
        length / 1024
    ))
}

/// What the interface has carried and lost so far, and its interrupts.
fn counters(name: &str) -> String {
    let statistics = format!("/sys/class/net/{name}/statistics");
    let mut text: Vec<_> = fs::read_dir(statistics)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let value = fs::read_to_string(entry.path()).ok()?;
            (value.trim() != "0")
                .then(|| format!("{} {}", entry.file_name().display(), value.trim()))
        })
        .collect();
    text.sort();
    let interrupts = fs::read_to_string("/proc/interrupts").unwrap_or_default();
    text.extend(
        interrupts
            .lines()
            .filter(|line| line.contains(name))
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")),
    );
    text.join(", ")
}

fn wait_for_carrier(name: &str, patience: Duration) -> Result<()> {
    let deadline = Instant::now() + patience;
    while !patience.is_zero() {
        let carrier = fs::read_to_string(format!("/sys/class/net/{name}/carrier"));
        if carrier.is_ok_and(|carrier| carrier.trim() == "1") {
            break;
        }
        ensure!(Instant::now() < deadline, "{name} has no link");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn datagrams(server: SocketAddrV4) -> Result<usize> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(server)?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    let data = pattern(1472);
    let sizes = [1, 2, 17, 63, 64, 65, 255, 512, 1000, 1024, 1471, 1472];
    for size in sizes {
        let sent = data.get(..size).unwrap_or_default();
        // A datagram may be lost; five in a row are not.
        let answered = (0..5).any(|_| {
            let mut answer = [0; 2048];
            socket.send(sent).is_ok()
                && matches!(socket.recv(&mut answer), Ok(length) if answer.get(..length) == Some(sent))
        });
        ensure!(answered, "a datagram of {size} bytes was not echoed");
    }
    Ok(sizes.len())
}

/// A stream of `length` bytes comes back as it was sent.
pub(super) fn stream(server: SocketAddrV4, length: usize) -> Result<()> {
    let receiver = TcpStream::connect_timeout(&server.into(), PATIENCE)?;
    receiver.set_read_timeout(Some(PATIENCE))?;
    receiver.set_write_timeout(Some(PATIENCE))?;
    let mut sender = receiver.try_clone()?;
    echoed(&receiver, length, move |data| {
        sender.write_all(data)?;
        sender.shutdown(std::net::Shutdown::Write)
    })
}

/// Has `send` send `length` bytes and end the stream, and sees them come back at `receiver` as they
/// were.
pub(super) fn echoed(
    mut receiver: impl Read,
    length: usize,
    send: impl FnOnce(&[u8]) -> std::io::Result<()> + Send + 'static,
) -> Result<()> {
    let data = pattern(length);
    let sending = data.clone();
    let writer = thread::spawn(move || send(&sending));
    let mut received = Vec::with_capacity(length);
    receiver
        .read_to_end(&mut received)
        .with_context(|| format!("after {} bytes", received.len()))?;
    writer.join().ok().context("the sender failed")??;
    ensure!(
        received.len() == data.len(),
        "{} of {} bytes came back",
        received.len(),
        data.len()
    );
    if let Some(place) = received
        .iter()
        .zip(&data)
        .position(|(got, sent)| got != sent)
    {
        bail!("byte {place:#x} came back changed");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parameter_names_both_sides() {
        let (own, server) = parse("192.0.2.2/24,192.0.2.1:7").unwrap();
        assert_eq!(
            own,
            Address {
                address: Ipv4Addr::new(192, 0, 2, 2),
                prefix: 24
            }
        );
        assert_eq!(server.port(), 7);
        assert_eq!(
            first_address("a=b lab.net=192.0.2.2/24,192.0.2.1:7 quiet"),
            Some(own)
        );
    }
}
