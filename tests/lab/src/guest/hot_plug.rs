//! Devices that come and go while the guest runs and uses them.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Guest;
use super::agent::Agent;
use super::disk::{CHUNK, Chunk};
use super::nvme;

/// A device that comes and goes.
struct Guise {
    /// Its id, and what the agent is asked for.
    id: &'static str,
    add: &'static str,
    /// The disk that it is.
    disk: &'static str,
    /// Its driver lets go of requests that a device which is gone never answers. Linux's
    /// virtio-blk waits for them for ever.
    pulled_out: bool,
}

const DISKS: &[Guise] = &[
    Guise {
        id: "plugged-nvme",
        add: "device-add vfio-pci,id=plugged-nvme,host={nvme0},iommufd=iommufd0,bus=rp0",
        disk: "/dev/nvme0n1",
        pulled_out: true,
    },
    Guise {
        id: "plugged-virtio",
        add: "device-add virtio-blk-pci,id=plugged-virtio,path={spare},bus=rp1",
        disk: "/dev/vdd",
        pulled_out: false,
    },
    Guise {
        id: "plugged-virtio-2",
        add: "device-add virtio-blk-pci,id=plugged-virtio-2,path={spare}.2,bus=rp2",
        disk: "/dev/vde",
        pulled_out: false,
    },
];
/// Longest time until a device has come or gone.
const PATIENCE: Duration = Duration::from_secs(20);
const SIZE: u64 = 1 << 20;
/// Pause after a device was pulled out.
pub(super) const SETTLE: Duration = Duration::from_secs(3);

/// As often as the argument says, both disks are added, used, and removed while they are read: the
/// guest is asked to let go of them, or, every second time, not.
pub(super) fn check(_guest: &Guest, argument: &str) -> Result<String> {
    let rounds: u32 = argument.parse().context("hot-plug=ROUNDS")?;
    let mut agent = Agent::open()?;
    let started = Instant::now();
    for round in 0..rounds {
        come_and_go(&mut agent, round % 2 == 1).with_context(|| format!("round {round}"))?;
    }
    Ok(format!(
        "{rounds} rounds of {} disks in {:.1} s",
        DISKS.len(),
        started.elapsed().as_secs_f64()
    ))
}

/// A disk comes with a kernel that does not map files (`IOMMU_IOAS_MAP_FILE` is refused): nido maps
/// guest memory by its addresses (`IOMMU_IOAS_MAP`), and the disk works the same.
pub(super) fn map_by_address(_guest: &Guest, _argument: &str) -> Result<String> {
    let mut agent = Agent::open()?;
    let [disk, ..] = DISKS else {
        anyhow::bail!("there is no such disk");
    };
    agent.request("refuse 0x3b8f")?;
    let added = agent.request(disk.add);
    agent.request("refused 0x3b8f 0x3b85")?;
    added?;
    nvme::wait_for(disk.disk)?;
    nvme::exercise(disk.disk, SIZE).context(disk.disk)?;
    agent.request(&format!("device-del {}", disk.id))?;
    disk.wait_until_gone()?;
    Ok(disk.disk.to_owned())
}

/// A random number generator comes (`on`), or goes (`off`), and Linux has one more, or one less.
pub(super) fn plugged_rng(_guest: &Guest, argument: &str) -> Result<String> {
    const ID: &str = "plugged-rng";
    let (request, change) = match argument {
        "on" => (format!("device-add virtio-rng-pci,id={ID},bus=rp1"), 1),
        "off" => (format!("device-del {ID}"), -1),
        _ => anyhow::bail!("plugged-rng=on|off"),
    };
    let before = generators()?;
    Agent::open()?.request(&request)?;
    let deadline = Instant::now() + PATIENCE;
    while generators()? != before + change {
        ensure!(Instant::now() < deadline, "{} of {before}", generators()?);
        thread::sleep(Duration::from_millis(20));
    }
    Ok(format!("{} generators", before + change))
}

/// How many virtio devices Linux takes random numbers from.
fn generators() -> Result<i64> {
    let devices = fs::read_dir("/sys/bus/virtio/drivers/virtio_rng")?;
    let names = devices.flatten().map(|entry| entry.file_name());
    let devices = names.filter(|name| name.to_string_lossy().starts_with("virtio"));
    Ok(i64::try_from(devices.count())?)
}

/// At the same time for all of `disks`.
fn request_each(
    agent: &mut Agent,
    disks: &[&Guise],
    request: impl Fn(&Guise) -> String,
) -> Result<()> {
    let requests: Vec<String> = disks.iter().map(|disk| request(disk)).collect();
    agent.request(&requests.join(" & "))
}

fn come_and_go(agent: &mut Agent, pull: bool) -> Result<()> {
    let disks: Vec<&Guise> = DISKS
        .iter()
        .filter(|disk| disk.pulled_out || !pull)
        .collect();
    for disk in &disks {
        ensure!(!fs::exists(disk.disk)?, "{} is there already", disk.disk);
    }
    request_each(agent, &disks, |disk| disk.add.to_owned())?;
    for disk in &disks {
        nvme::wait_for(disk.disk)?;
        nvme::exercise(disk.disk, SIZE).context(disk.disk)?;
    }
    let over = Arc::new(AtomicBool::new(false));
    let readers: Vec<_> = disks
        .iter()
        .map(|disk| read_on(disk.disk, &over))
        .collect::<Result<_>>()?;
    thread::sleep(Duration::from_millis(100));
    let force = if pull { ",force=on" } else { "" };
    let removed = request_each(agent, &disks, |disk| {
        format!("device-del {}{force}", disk.id)
    });
    let gone = removed.and_then(|()| disks.iter().try_for_each(|disk| disk.wait_until_gone()));
    over.store(true, Ordering::Relaxed);
    for (disk, reader) in disks.iter().zip(readers) {
        let reads = reader.join().ok().context("a reader failed")?;
        ensure!(reads > 0, "nothing was read from {}", disk.disk);
    }
    if pull {
        // Linux takes a second to settle, and mistakes a button that is pressed meanwhile for a
        // request to power off.
        thread::sleep(SETTLE);
    }
    gone
}

impl Guise {
    fn wait_until_gone(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while fs::exists(self.disk)? {
            ensure!(Instant::now() < deadline, "{} does not go", self.disk);
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

/// Reads the disk until it is gone; the thread returns how many reads were answered.
pub(super) fn read_on(path: &str, over: &Arc<AtomicBool>) -> Result<thread::JoinHandle<u32>> {
    let disk = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)
        .with_context(|| path.to_owned())?;
    let over = Arc::clone(over);
    Ok(thread::spawn(move || {
        let mut chunk = Chunk::new();
        let mut reads = 0;
        while !over.load(Ordering::Relaxed) {
            if disk.read_exact_at(chunk.slice(CHUNK), 0).is_err() {
                break;
            }
            reads += 1;
        }
        reads
    }))
}
