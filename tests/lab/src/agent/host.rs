//! Level 1's devices for its guests: found, given to vfio-pci, watched, and looked after when nido
//! has ended.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::{echo, tap};
use crate::judge::is_fault_line;
use crate::scenario::{Host, Model};
use crate::{kernel_log, pci};

/// Network of the assigned interface; documentation addresses (RFC 5737).
const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
const PREFIX: u8 = 24;
const DRIVER: &str = "vfio-pci";
/// The lab's own, which can have edu migrate.
const MOVING_DRIVER: &str = "edu-vfio-pci";
/// What it has.
const MOVING: &str = "edu";
/// Time in which the kernel gives back what a process that was killed had.
const PATIENCE: Duration = Duration::from_secs(3);

/// Names of nido's functions, and their ids: virtio disks and network, and edu.
const LEVEL2: [(&str, (u16, u16)); 3] = [
    ("disk", (0x1AF4, 0x1042)),
    ("net", (0x1AF4, 0x1041)),
    ("edu", (0x1234, 0x11E8)),
];

/// The devices.
pub(super) struct Devices {
    /// `edu0` and so on, with the addresses of the functions.
    addresses: BTreeMap<String, String>,
    /// By what level 1's unit knows them, in the same way.
    requesters: BTreeMap<String, String>,
    /// Who drives them for nido.
    driver: &'static str,
    /// Devices whose blocked DMA is expected.
    faults: &'static [&'static str],
    /// Port of the echo server on the link of the assigned interface.
    port: Option<u16>,
}

impl Devices {
    /// Finds what the scenario has asked for, and gives it to vfio-pci.
    pub(super) fn prepare(host: &Host) -> Result<Self> {
        let mut addresses = BTreeMap::new();
        let mut requesters = BTreeMap::new();
        for model in Model::ALL {
            let wanted =
                host.devices.iter().filter(|other| **other == model).count() * model.functions();
            if wanted == 0 {
                continue;
            }
            let (vendor, device) = model.ids();
            let mut found = pci::find_all(vendor, device)?;
            found.retain(|address| model.is_at(address));
            ensure!(
                found.len() == wanted,
                "level 1 has {} of {wanted} {}",
                found.len(),
                model.name()
            );
            for (index, address) in found.into_iter().enumerate() {
                pci::bind(&address, DRIVER).with_context(|| address.clone())?;
                let name = format!("{}{index}", model.name());
                requesters.insert(name.clone(), model.requester(&address));
                addresses.insert(name, address);
            }
        }
        let port = if host.devices.contains(&Model::E1000e) {
            tap::set_up(&own_interface()?, HOST, PREFIX)?;
            Some(echo::serve(HOST, 0).context("echo server")?)
        } else {
            None
        };
        Ok(Self {
            addresses,
            requesters,
            driver: DRIVER,
            faults: host.faults,
            port,
        })
    }

    /// What level 2 finds: nido's own functions, which it gives to vfio-pci; or those that can migrate, if the
    /// guest that gets them `moves`.
    pub(super) fn of_level2(moves: bool) -> Result<Self> {
        let driver = if moves { MOVING_DRIVER } else { DRIVER };
        let mut addresses = BTreeMap::new();
        for (name, (vendor, device)) in LEVEL2 {
            if moves && name != MOVING {
                continue;
            }
            for (index, address) in pci::find_all(vendor, device)?.into_iter().enumerate() {
                pci::bind(&address, driver).with_context(|| address.clone())?;
                addresses.insert(format!("{name}{index}"), address);
            }
        }
        Ok(Self {
            requesters: addresses.clone(),
            addresses,
            driver,
            faults: &[],
            port: None,
        })
    }

    /// `text` with addresses in place of `{edu0}` and the like.
    pub(super) fn substitute(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (name, address) in &self.addresses {
            text = text.replace(&format!("{{{name}}}"), address);
        }
        text
    }

    /// The address of a device.
    pub(super) fn address(&self, name: &str) -> Result<&str> {
        let address = self.addresses.get(name);
        Ok(address.with_context(|| format!("level 1 has no {name}"))?)
    }

    /// Those that a guest can have in turn when it migrates.
    pub(super) fn moving(&self) -> Vec<String> {
        let known = self.addresses.iter();
        known
            .filter(|_| self.driver == MOVING_DRIVER)
            .map(|(_, address)| address.clone())
            .collect()
    }

    /// Parameters by which the guest learns of the link.
    pub(super) fn command_line(&self) -> String {
        self.port.map_or(String::new(), |port| {
            format!(" lab.link={GUEST}/{PREFIX},{HOST}:{port}")
        })
    }

    /// What the kernel says of the devices, for the logs.
    pub(super) fn describe(&self) -> String {
        let mut text = String::new();
        for (name, address) in &self.addresses {
            let directory = pci::directory(address);
            let read = |file: &str| {
                let content = fs::read_to_string(directory.join(file)).unwrap_or_default();
                content.trim().to_owned()
            };
            let members = fs::read_dir(directory.join("iommu_group/devices")).map(Iterator::count);
            text.push_str(&format!(
                "{name} {address}: driver {}, {} in its group, domain {}, reset by {}\n{}\n",
                pci::driver(address).unwrap_or("none".to_owned()),
                members.unwrap_or(0),
                read("iommu_group/type"),
                read("reset_method"),
                mappings(address).unwrap_or_else(|error| format!("{error:#}")),
            ));
        }
        text.push_str(&format!("pinned pages: {:?}\n", pinned_pages()));
        text
    }

    /// What the kernel's log says against the scenario: blocked DMA or worse that it does not
    /// expect, and expected faults that are missing.
    pub(super) fn faults(&self) -> Result<Vec<String>> {
        let log = kernel_log::read()?;
        let lines: Vec<&String> = log.iter().filter(|line| is_fault_line(line)).collect();
        let of = |line: &str, name: &str| {
            let requester = self.requesters.get(name);
            requester.is_some_and(|id| line.contains(&format!("Request device [{id}]")))
        };
        let expected = |line: &str| {
            let header = line.contains("DRHD: handling fault") && !self.faults.is_empty();
            header || self.faults.iter().any(|name| of(line, name))
        };
        let unexpected = lines.iter().filter(|line| !expected(line)).take(5);
        let mut failures: Vec<String> = unexpected.map(|line| format!("level 1: {line}")).collect();
        for name in self.faults {
            if !lines.iter().any(|line| of(line, name)) {
                failures.push(format!("level 1's unit has blocked no DMA of {name}"));
            }
        }
        Ok(failures)
    }

    /// Waits until nothing of a process that has ended is left: no pinned page, and no page that a
    /// device reaches.
    pub(super) fn nothing_left(&self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let problem = self.left();
            match problem {
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
                Ok(()) => return Ok(()),
            }
        }
    }

    fn left(&self) -> Result<()> {
        let pinned = pinned_pages()?;
        ensure!(pinned == 0, "{pinned} pages are still pinned");
        for (name, address) in &self.addresses {
            let pages = reached(address)?;
            ensure!(pages == 0, "{name} still reaches {pages} pages");
            let driver = pci::driver(address);
            ensure!(
                driver.as_deref() == Some(self.driver),
                "{name} is driven by {driver:?}"
            );
        }
        Ok(())
    }
}

/// The interface that level 1 keeps on the link.
fn own_interface() -> Result<String> {
    for entry in fs::read_dir("/sys/class/net")? {
        let path = entry?.path();
        let driver = fs::read_link(path.join("device/driver")).unwrap_or_default();
        if driver.ends_with("virtio_net") {
            let name = path.file_name().context("unnamed interface")?;
            return Ok(name.to_string_lossy().into_owned());
        }
    }
    bail!("level 1 has no virtio interface");
}

/// How many pages a function's domain maps, of whatever size.
pub(super) fn reached(address: &str) -> Result<usize> {
    let mappings = mappings(address)?;
    let pages = mappings.lines().filter(|line| line.starts_with("0x"));
    Ok(pages.count())
}

/// What a function's domain maps, a line for each page (debugfs).
fn mappings(address: &str) -> Result<String> {
    let path = Path::new("/sys/kernel/debug/iommu/intel")
        .join(address)
        .join("domain_translation_struct");
    fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// Pages that are pinned for DMA (/proc/vmstat).
fn pinned_pages() -> Result<i64> {
    let text = fs::read_to_string("/proc/vmstat").context("/proc/vmstat")?;
    let value = |name: &str| -> Result<i64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        Ok(line.with_context(|| format!("no {name}"))?.trim().parse()?)
    };
    Ok(value("nr_foll_pin_acquired ")? - value("nr_foll_pin_released ")?)
}
