//! The control socket: what `--control path=SOCKET` listens on, for whoever wants to look at a running machine or end it.
//!
//! # Protocol
//! A client connects and writes requests, each a line of text; each is answered, in order, by lines of text and an empty line. An
//! answer whose first line begins with `error: ` means that nothing was done. `help` lists the commands. With socat:
//!
//! ```text
//! $ echo bindings | socat -t 10 - UNIX-CONNECT:/run/nido.sock
//! $ socat READLINE UNIX-CONNECT:/run/nido.sock
//! ```
//!
//! # Devices that come and go
//! `device-add TYPE,bus=PORT[,key=value]...` takes what `--device` takes, and puts the device into the slot of the root port with
//! the id PORT; the answer comes when it is there, and the guest, which is told, powers it on in its own time. `device-del ID` asks
//! the guest for the device with that id, or behind the port with that id, and answers when the guest has let go and nothing of
//! the device is left, or after 30 seconds that it has not. `device-del ID,force=on` does not ask.
//!
//! # Bounds
//! One thread of its own serves all clients and never waits for one: up to 8 connections, requests of up to 1024 bytes. A connection
//! is closed when a request is not complete, or an answer not read, within 10 seconds, and after 10 minutes without a request. What
//! takes time to carry out has a thread of its own, 16 of them at most and each for up to 2 minutes; other clients do not notice. The
//! thread holds no lock of the machine while it talks to a client, so no client can hold up a vCPU or a device.
//!
//! The socket is its owner's alone (mode 0600): who can connect to it can end the machine, and see where the guest's tables are.

mod commands;
mod connection;
mod hotplug;
mod parser;
mod server;
mod socket;
mod workers;

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::{self, JoinHandle};
use std::time::Instant;

use pci::RootComplex;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::assign::Assigner;
use crate::irq::Unit;
use crate::machine::HotPlug;
use crate::vm::Event;
use server::Server;

pub(crate) use socket::Socket;
pub(crate) use workers::Workers;

/// What commands look at.
pub(crate) struct Monitor {
    /// Number of vCPUs.
    pub(crate) cpus: u8,
    /// Bytes of guest memory.
    pub(crate) memory: u64,
    /// When the machine was started.
    pub(crate) started: Instant,
    /// The PCI functions.
    pub(crate) root: Arc<RootComplex>,
    /// The remapping unit, if there is one.
    pub(crate) unit: Option<Arc<Unit>>,
    /// What assigns devices of the host, if there are iommufds.
    pub(crate) assigner: Option<Arc<Assigner>>,
    /// What can be plugged in and out.
    pub(crate) hotplug: Arc<HotPlug>,
    /// For what takes time.
    pub(crate) workers: Workers,
    /// Where the wish to end the machine goes.
    pub(crate) events: Sender<Event>,
}

/// The control socket at work. Dropping it ends its thread, closes all connections and removes the socket.
pub(crate) struct Control {
    stop: EventFd,
    thread: Option<JoinHandle<()>>,
}

impl Control {
    /// Starts to serve clients of `socket`.
    ///
    /// # Errors
    /// When the host has no descriptor or thread left.
    pub(crate) fn start(socket: Socket, monitor: Monitor) -> io::Result<Self> {
        let stop = EventFd::new(EFD_NONBLOCK)?;
        let server = Server::new(socket, stop.try_clone()?, monitor)?;
        let thread = thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || server.run())?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        // It fails only if the counter is at its end, which stops the thread as well.
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take() {
            // A panic has been reported by then.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
#[path = "control/control_test.rs"]
mod control_test;
