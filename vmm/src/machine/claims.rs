//! The locks of a machine's disks and its addresses among the host's guests, which all go together: from this process to the one that has the
//! machine next, or back.

use std::sync::Arc;

use anyhow::Context as _;
use devices::virtio::blk::{BlockError, Claim, Hold};
use devices::virtio::vsock::{Address, VsockError};
use parking_lot::Mutex;
use pci::Bdf;

/// All disks of a machine that nido serves itself, also those that are plugged in.
pub(crate) struct Claims {
    /// A leaf lock. Locks of files are taken and given up under it, which is a question to a file's
    /// server where there is one: only those wait who make disks, or ask for these. No disk is opened or
    /// written under it.
    state: Mutex<State>,
}

struct State {
    /// Whether the machine is to have its disks: so one that comes is locked.
    held: bool,
    /// By their addresses, which are the same in each process that has the machine. Locks are taken in
    /// this order, so of two processes that want all at the same moment, who has the first one gets the
    /// others.
    disks: Vec<Disk>,
    /// Of socket devices, of which there is one. Gone devices have nothing to take or give up.
    addresses: Vec<Address>,
}

struct Disk {
    at: Bdf,
    claim: Claim,
    /// How this process has it.
    hold: Hold,
}

/// Who can tell whose a guest is that two processes have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arbiter {
    /// The lock of a disk: one process can have it.
    Lock,
    /// Nobody: no disk is held alone.
    Nobody,
}

/// What becomes of the addresses of socket devices when locks are given up: they are a matter of one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Addresses {
    /// The process that takes the locks takes them as well.
    GiveUp,
    /// Nobody on this host is to have them.
    Keep,
}

/// Where the guest was before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// Here, or nowhere.
    Here,
    /// In a process that has given up what is its own.
    AnotherProcess,
    /// In one that has the same open files.
    OpenFiles,
}

impl Origin {
    /// Not all could be had: gives up what was taken.
    fn give_back(self, taken: Vec<&mut Disk>) {
        for disk in taken {
            match self {
                // The other process would lose it as well.
                Self::OpenFiles => disk.hold = Hold::None,
                Self::Here | Self::AnotherProcess => {
                    if let Err(error) = disk.give_up() {
                        log::warn!("{error:#}");
                    }
                }
            }
        }
    }
}

impl Claims {
    /// Of a machine without disks as yet. `held` tells whether it takes the locks of those that it is
    /// given, or [later](Self::take_all).
    pub(crate) fn new(held: bool) -> Arc<Self> {
        let state = Mutex::new(State {
            held,
            disks: Vec::new(),
            addresses: Vec::new(),
        });
        Arc::new(Self { state })
    }

    /// A disk has come, to this address. Takes its lock, if the machine has those of the others.
    ///
    /// # Errors
    /// It is in use by another process. It is not the machine's then.
    pub(crate) fn add(&self, at: Bdf, claim: Claim) -> Result<(), BlockError> {
        let mut state = self.state.lock();
        let hold = if state.held {
            claim.take()?
        } else {
            Hold::None
        };
        state.disks.retain(|disk| !disk.claim.is_gone());
        let place = state.disks.partition_point(|disk| disk.at <= at);
        state.disks.insert(place, Disk { at, claim, hold });
        Ok(())
    }

    /// A socket device has come. Takes its address, if the machine has the locks of its disks.
    ///
    /// # Errors
    /// Another guest has it.
    pub(crate) fn add_address(&self, address: Address) -> Result<(), VsockError> {
        let mut state = self.state.lock();
        if state.held {
            address.take()?;
        }
        state.addresses.retain(|address| !address.is_gone());
        state.addresses.push(address);
        Ok(())
    }

    /// Takes the locks of all disks and all addresses, or none, and has the host forget what it has read of them. Tells
    /// whether there is one that nobody else can have now.
    ///
    /// # Errors
    /// One of them is in use by another process.
    pub(crate) fn take_all(&self) -> anyhow::Result<Arbiter> {
        self.take(Origin::Here)
    }

    /// The same of open files that this process was given with their locks: nobody else could write to
    /// them meanwhile. Connections of sockets end, as in [`take_over`](Self::take_over). If it fails, locks stay as they
    /// are: they belong to the open files, which the other process has as well.
    pub(crate) fn take_given(&self) -> anyhow::Result<()> {
        self.take(Origin::OpenFiles).map(drop)
    }

    fn take(&self, from: Origin) -> anyhow::Result<Arbiter> {
        let mut state = self.state.lock();
        let state = &mut *state;
        let mut new = Vec::with_capacity(state.disks.len());
        for disk in &mut state.disks {
            let had = disk.hold;
            match disk.claim.take() {
                Ok(hold) => {
                    disk.hold = hold;
                    if had == Hold::None {
                        new.push(disk);
                    }
                }
                Err(error) => {
                    from.give_back(new);
                    return Err(error.into());
                }
            }
        }
        for (index, address) in state.addresses.iter().enumerate() {
            if from != Origin::Here {
                address.end_connections();
            }
            let Err(error) = address.take() else { continue };
            for taken in state.addresses.iter().take(index) {
                if let Err(error) = give_up_address(taken) {
                    log::warn!("{error:#}");
                }
            }
            from.give_back(new);
            return Err(error.into());
        }
        // These could be written to by others until now.
        for disk in new.iter().filter(|_| from != Origin::OpenFiles) {
            disk.claim.refresh();
        }
        state.held = true;
        let is_alone = |disk: &Disk| disk.hold == Hold::Alone && !disk.claim.is_gone();
        Ok(if state.disks.iter().any(is_alone) {
            Arbiter::Lock
        } else {
            Arbiter::Nobody
        })
    }

    /// Gives up the locks of all disks, for another process to take them. The guest stands still and
    /// nothing of what it began is on its way to a disk, from before this until they are taken again. Addresses that
    /// stay with this process end with it.
    ///
    /// # Errors
    /// The lock of one is still held; the others are given up.
    pub(crate) fn give_up_all(&self, addresses: Addresses) -> anyhow::Result<()> {
        let mut state = self.state.lock();
        state.held = false;
        let mut result = Ok(());
        for disk in &mut state.disks {
            let given_up = disk.give_up();
            result = result.and(given_up);
        }
        if addresses == Addresses::GiveUp {
            for address in &state.addresses {
                result = result.and(give_up_address(address));
            }
        }
        result
    }

    /// As [`take_all`](Self::take_all), for a guest that comes from another process: the host's programs hear that their
    /// connections with it have ended, while nobody has its addresses.
    ///
    /// # Errors
    /// As there.
    pub(crate) fn take_over(&self) -> anyhow::Result<Arbiter> {
        self.take(Origin::AnotherProcess)
    }

    /// Whether it is known whose the guest is.
    ///
    /// # Errors
    /// It is not, with the remedy: the machine has given up what is its own, and not got it back.
    pub(crate) fn are_known(&self) -> Result<(), String> {
        match self.state.lock().held {
            true => Ok(()),
            false => Err(
                "whose the guest is is not known since another migration; see what that has answered, and write `resume` if the guest is \
                 to go on here"
                    .to_owned(),
            ),
        }
    }

    /// Whether another process has each of the disks that can be locked, and there is one: so locks are known to
    /// that process and to this one, which has none of them.
    pub(crate) fn are_in_use(&self) -> bool {
        let disks = self.disks();
        let in_use = disks.iter().filter_map(|disk| {
            disk.is_in_use().unwrap_or_else(|error| {
                log::warn!("{error}");
                Some(false)
            })
        });
        let in_use: Vec<bool> = in_use.collect();
        !in_use.is_empty() && in_use.iter().all(|in_use| *in_use)
    }

    /// Gives up the addresses alone, for a process that has the same open files, and so has the locks of
    /// the disks already.
    ///
    /// # Errors
    /// One of them is still held.
    pub(crate) fn give_up_addresses(&self) -> anyhow::Result<()> {
        let state = self.state.lock();
        state.addresses.iter().try_for_each(give_up_address)
    }

    /// What tells the files of these disks from others on this host, in the order of the disks' addresses.
    pub(crate) fn files(&self) -> String {
        let disks = self.disks();
        let files = disks.iter().map(|disk| match disk.identity() {
            Some((device, inode)) => format!("{device:x}:{inode:x}"),
            // Like no other.
            None => format!("{}?", std::process::id()),
        });
        files.collect::<Vec<_>>().join(",")
    }

    /// Those that are there now, for [`sync`].
    pub(crate) fn disks(&self) -> Vec<Claim> {
        let state = self.state.lock();
        let there = state.disks.iter().filter(|disk| !disk.claim.is_gone());
        there.map(|disk| disk.claim.clone()).collect()
    }
}

fn give_up_address(address: &Address) -> anyhow::Result<()> {
    address
        .give_up()
        .context("the guest's address for sockets cannot be given up")
}

impl Disk {
    /// Gives up the lock, if this process has it.
    fn give_up(&mut self) -> anyhow::Result<()> {
        if self.hold != Hold::None {
            self.claim.give_up().with_context(|| {
                format!(
                    "the lock of disk {:?} cannot be given up; see whether the server of its file answers",
                    self.claim.path()
                )
            })?;
            self.hold = Hold::None;
        }
        Ok(())
    }
}

/// Has the host write to its storage what the guest wrote to these disks.
///
/// # Errors
/// What one of them said.
pub(crate) fn sync(disks: &[Claim]) -> anyhow::Result<()> {
    disks.iter().try_for_each(|disk| {
        disk.sync().with_context(|| {
            format!(
                "the disk {} does not become stable; see whether its storage is in order and has room",
                disk.path().display()
            )
        })
    })
}

#[cfg(test)]
mod claims_test;
