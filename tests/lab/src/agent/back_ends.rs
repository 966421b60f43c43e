//! The processes that serve devices of the guest by vhost-user: QEMU's storage daemon for a disk, and
//! passt for the network.

use std::fs::{self, File};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Task;

/// Where the stage has the programs, each with its libraries.
pub const DIRECTORY: &str = "back-ends";
/// The one for disks.
pub const STORAGE: &str = "qemu-storage-daemon";
/// The one for the network.
pub const NETWORK: &str = "passt";

/// Longest time until a back end listens.
const PATIENCE: Duration = Duration::from_secs(30);

/// Both of them.
pub(super) struct BackEnds {
    /// Serves the disk.
    pub(super) disk: BackEnd,
    /// Serves the network.
    pub(super) network: BackEnd,
}

/// Of the guest's network: its address, that of this machine, and the length of their prefix.
pub(super) struct Addresses {
    pub(super) guest: Ipv4Addr,
    pub(super) host: Ipv4Addr,
    pub(super) prefix: u8,
}

impl BackEnds {
    /// Serves `image` with `queues` queues, and a network in which the guest reaches what this machine
    /// does by its interface `tap`.
    pub(super) fn start(
        task: &Task,
        image: &Path,
        queues: u32,
        tap: &str,
        addresses: &Addresses,
    ) -> Result<Self> {
        let disk = BackEnd::start(task, STORAGE, |socket| {
            [
                "--blockdev".to_owned(),
                format!(
                    "driver=file,node-name=disk,discard=unmap,filename={}",
                    image.display()
                ),
                "--export".to_owned(),
                format!(
                    "type=vhost-user-blk,id=disk,node-name=disk,writable=on,num-queues={queues},\
                     addr.type=unix,addr.path={}",
                    socket.display()
                ),
            ]
            .to_vec()
        })?;
        let Addresses {
            guest,
            host,
            prefix,
        } = addresses;
        let network = BackEnd::start(task, NETWORK, |socket| {
            let options = format!(
                "--foreground --vhost-user --ipv4-only --no-map-gw --interface {tap} \
                 --address {guest} --netmask {prefix} --gateway {host} --runas 65534:65534 \
                 --socket {}",
                socket.display()
            );
            options.split_whitespace().map(str::to_owned).collect()
        })?;
        Ok(Self { disk, network })
    }
}

/// One of them, for as long as the value lives.
pub(super) struct BackEnd {
    /// Where it listens.
    pub(super) socket: PathBuf,
    child: Child,
}

impl BackEnd {
    /// Starts `name` with `arguments`, which is told the socket, and waits until it listens.
    fn start(
        task: &Task,
        name: &str,
        arguments: impl FnOnce(&Path) -> Vec<String>,
    ) -> Result<Self> {
        let socket = task.scratch.join(format!("{name}.sock"));
        let directory = task.files.join(DIRECTORY).join(name);
        let log = task.output.join(format!("{name}.log"));
        let child = Command::new(directory.join("lib/ld.so"))
            .arg("--library-path")
            .arg(directory.join("lib"))
            .arg(directory.join(name))
            .args(arguments(&socket))
            .stderr(File::create(&log)?)
            .spawn()
            .with_context(|| name.to_owned())?;
        let mut back_end = Self { socket, child };
        let deadline = Instant::now() + PATIENCE;
        while !back_end.socket.exists() {
            if back_end.child.try_wait()?.is_some() || Instant::now() > deadline {
                let said = fs::read_to_string(&log).unwrap_or_default();
                bail!("{name} does not listen: {said}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(back_end)
    }
}

impl Drop for BackEnd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
