//! The process that serves a disk of the guest by vhost-user: QEMU's storage daemon.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Task;

/// Its name, and that of the directory of the stage that has it with its libraries.
pub const STORAGE: &str = "qemu-storage-daemon";

/// Longest time until it listens.
const PATIENCE: Duration = Duration::from_secs(30);

/// The process, for as long as the value lives.
pub(super) struct BackEnd {
    /// Where it listens.
    pub(super) socket: PathBuf,
    child: Child,
}

impl BackEnd {
    /// Serves `image` with `queues` queues.
    pub(super) fn start(task: &Task, image: &Path, queues: u32) -> Result<Self> {
        let socket = task.scratch.join("disk.sock");
        let directory = task.files.join(STORAGE);
        let log = task.output.join(format!("{STORAGE}.log"));
        let child = Command::new(directory.join("lib/ld.so"))
            .arg("--library-path")
            .arg(directory.join("lib"))
            .arg(directory.join(STORAGE))
            .arg("--blockdev")
            .arg(format!(
                "driver=file,node-name=disk,discard=unmap,filename={}",
                image.display()
            ))
            .arg("--export")
            .arg(format!(
                "type=vhost-user-blk,id=disk,node-name=disk,writable=on,num-queues={queues},\
                 addr.type=unix,addr.path={}",
                socket.display()
            ))
            .stderr(File::create(&log)?)
            .spawn()
            .context(STORAGE)?;
        let mut back_end = Self { socket, child };
        let deadline = Instant::now() + PATIENCE;
        while !back_end.socket.exists() {
            if back_end.child.try_wait()?.is_some() || Instant::now() > deadline {
                let said = fs::read_to_string(&log).unwrap_or_default();
                bail!("{STORAGE} does not listen: {said}");
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
