//! Two machines' disks, of the same files; and the disks of a machine on the host's KVM, where there is
//! one.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use devices::virtio::blk::{Block, BlockOptions};
use vmm_sys_util::tempdir::TempDir;

use super::*;
use crate::cli::{self, Device, Parsed, Request};
use crate::event_loop::EventLoop;
use crate::host_files::Given;
use crate::machine::Machine;

/// Files of disks.
struct Files(TempDir);

impl Files {
    fn new(names: &[&str]) -> Self {
        let files = Self(TempDir::new().expect("a directory"));
        for name in names {
            let file = File::create(files.path(name)).expect("a file");
            file.set_len(1 << 20).expect("room");
        }
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.as_path().join(name)
    }

    /// Disks of these names; those that begin with `r` are for readers.
    fn disks(&self, names: &[&str]) -> Vec<Block> {
        let disks = names.iter().map(|name| {
            let options = BlockOptions {
                path: self.path(name),
                readonly: name.starts_with('r'),
                serial: None,
                queues: 1,
            };
            Block::open_unlocked(&options).expect("a disk")
        });
        disks.collect()
    }

    /// Whether nobody has the file of that name.
    fn is_free(&self, name: &str) -> bool {
        is_free(&self.path(name))
    }
}

fn is_free(path: &Path) -> bool {
    let file = File::open(path).expect("a file");
    let is_free = file.try_lock().is_ok();
    give_up(&file);
    is_free
}

/// Not by closing it: a child that a test beside this one has forked may have it open for a moment.
fn give_up(file: &File) {
    file.unlock().expect("a file system with locks");
}

fn claims(held: bool, disks: &[Block]) -> Arc<Claims> {
    let claims = Claims::new(held);
    for (number, disk) in (1..).zip(disks) {
        claims.add(at(number), disk.claim()).expect("nobody has it");
    }
    claims
}

fn at(device: u8) -> Bdf {
    Bdf::new(0, device, 0).expect("a device number")
}

#[test]
fn the_disks_of_a_machine_go_to_another_and_come_back() {
    let files = Files::new(&["a", "b", "r"]);
    let (here, there) = (files.disks(&["a", "b", "r"]), files.disks(&["a", "b", "r"]));
    let (source, target) = (claims(true, &here), claims(false, &there));
    let why = target.take_all().expect_err("the source has them");
    assert!(format!("{why:#}").contains("in use"), "{why:#}");
    assert!(target.are_in_use() && target.are_known().is_err());
    for _ in 0..2 {
        source.give_up_all(Addresses::GiveUp).expect("it has them");
        assert!(source.are_known().is_err() && !source.are_in_use());
        assert_eq!(target.take_over().expect("they are free"), Arbiter::Lock);
        assert!(target.are_known().is_ok() && source.are_in_use());
        assert!(source.take_all().is_err());
        target.give_up_all(Addresses::GiveUp).expect("it has them");
        assert_eq!(source.take_all().expect("they are free"), Arbiter::Lock);
        assert!(target.take_all().is_err());
    }
}

#[test]
fn of_disks_that_cannot_be_had_together_none_is_taken() {
    let files = Files::new(&["a", "b", "r"]);
    let disks = files.disks(&["a", "r", "b"]);
    let claims = claims(false, &disks);
    let stranger = File::open(files.path("b")).expect("a file");
    stranger.try_lock().expect("it is free");
    let why = claims.take_all().expect_err("b is a stranger's");
    assert!(format!("{why:#}").contains("/b\""), "{why:#}");
    assert!(files.is_free("a") && files.is_free("r"));
    // Nor is one that comes now.
    let late = files.disks(&["a"]);
    claims
        .add(at(9), late[0].claim())
        .expect("it is not locked");
    assert!(files.is_free("a"));
    drop(late);
    give_up(&stranger);
    assert_eq!(claims.take_all().expect("all are free"), Arbiter::Lock);
    assert!(!files.is_free("a") && !files.is_free("b") && !files.is_free("r"));
}

#[test]
fn of_two_processes_that_want_all_disks_at_the_same_moment_one_gets_them() {
    let names = ["a", "b", "c", "d", "e", "f", "g", "r"];
    let files = Files::new(&names);
    let (here, there) = (files.disks(&names), files.disks(&names));
    let (one, other) = (Claims::new(false), Claims::new(false));
    let numbered = || (1..).zip(&here).zip(&there);
    for ((number, disk), _) in numbered() {
        one.add(at(number), disk.claim()).expect("it is not locked");
    }
    // They came in another order there.
    for ((number, _), disk) in numbered().collect::<Vec<_>>().into_iter().rev() {
        other
            .add(at(number), disk.claim())
            .expect("it is not locked");
    }
    let paths = |claims: &Claims| {
        let disks = claims.disks();
        let paths = disks.iter().map(|disk| disk.path().to_owned());
        paths.collect::<Vec<_>>()
    };
    assert_eq!(paths(&one), paths(&other));
    let (ready, end) = (AtomicUsize::new(0), Barrier::new(2));
    let rounds = |claims: &Claims| {
        let taken = (1..=500).map(|round| {
            // Closer together than a barrier wakes two.
            ready.fetch_add(1, Ordering::SeqCst);
            while ready.load(Ordering::SeqCst) < 2 * round {
                std::hint::spin_loop();
            }
            let taken = claims.take_all().is_ok();
            end.wait();
            claims
                .give_up_all(Addresses::GiveUp)
                .expect("a file system with locks");
            taken
        });
        taken.collect::<Vec<_>>()
    };
    let (first, second) = std::thread::scope(|scope| {
        let second = scope.spawn(|| rounds(&other));
        (rounds(&one), second.join().expect("no panic"))
    });
    let strange = first
        .iter()
        .zip(&second)
        .filter(|(one, other)| one == other);
    assert_eq!(strange.count(), 0, "both or none had them");
}

#[test]
fn only_a_disk_that_is_there_and_held_alone_is_an_arbiter() {
    let files = Files::new(&["a", "r"]);
    let taken = |claims: &Claims| claims.take_all().expect("nobody has them");
    assert_eq!(taken(&claims(false, &[])), Arbiter::Nobody);
    let readers = files.disks(&["r"]);
    let claims = claims(false, &readers);
    assert_eq!(taken(&claims), Arbiter::Nobody);
    let writer = files.disks(&["a"]);
    claims.add(at(9), writer[0].claim()).expect("it is free");
    assert_eq!(taken(&claims), Arbiter::Lock);
    drop(writer);
    assert_eq!(taken(&claims), Arbiter::Nobody);
}

#[test]
fn a_disk_that_comes_is_locked_while_the_others_are() {
    let files = Files::new(&["a", "b"]);
    let (first, second) = (files.disks(&["a"]), files.disks(&["b"]));
    let claims = claims(false, &first);
    claims.take_all().expect("it is free");
    claims.add(at(9), second[0].claim()).expect("it is free");
    assert!(!files.is_free("b"));
    // It is one of them now.
    claims.give_up_all(Addresses::GiveUp).expect("it has them");
    assert!(files.is_free("a") && files.is_free("b"));
    let stranger = File::open(files.path("b")).expect("a file");
    stranger.try_lock().expect("it is free");
    assert!(claims.take_all().is_err());
    give_up(&stranger);
    claims.take_all().expect("all are free");
    // One that is another's is none of them.
    let third = files.disks(&["b"]);
    assert!(matches!(
        claims.add(at(9), third[0].claim()),
        Err(BlockError::InUse(_))
    ));
    assert_eq!(claims.disks().len(), 2);
}

#[test]
fn disks_that_have_gone_are_forgotten() {
    let files = Files::new(&["a", "b"]);
    let claims = claims(true, &files.disks(&["a"]));
    assert!(claims.disks().is_empty());
    let next = files.disks(&["b"]);
    claims.add(at(9), next[0].claim()).expect("it is free");
    let paths: Vec<_> = claims
        .disks()
        .iter()
        .map(|disk| disk.path().to_owned())
        .collect();
    assert_eq!(paths, [files.path("b")]);
    assert_eq!(claims.state.lock().disks.len(), 1);
    claims.give_up_all(Addresses::GiveUp).expect("it has them");
    sync(&claims.disks()).expect("a file");
}

#[test]
fn a_disk_that_has_gone_while_it_was_to_be_written_is_told_by_its_path() {
    let files = Files::new(&["a", "r"]);
    let disks = files.disks(&["a", "r"]);
    let claims = claims(true, &disks);
    let noted = claims.disks();
    drop(disks);
    sync(&noted).expect("it is where it was");
    std::fs::remove_file(files.path("a")).expect("a file");
    let why = format!("{:#}", sync(&noted).expect_err("it is not there"));
    assert!(why.contains("/a does not become stable"), "{why}");
}

#[test]
fn a_machine_has_all_its_disks_from_the_start_or_once_they_are_taken() {
    if crate::kvm::open(1).is_err() {
        eprintln!("skipped: this host has no usable /dev/kvm");
        return;
    }
    let files = Files::new(&["fixed", "behind", "plugged", "kernel"]);
    let path = |name| files.path(name).display().to_string();
    let line = format!(
        "nido --kernel {} --memory 64M --disk path={} --device pcie-root-port,id=p0 --device pcie-root-port,id=p1 --device virtio-blk-pci,path={},bus=p0",
        path("kernel"),
        path("fixed"),
        path("behind")
    );
    let plugged = format!("virtio-blk-pci,path={},bus=p1", path("plugged"));
    let Ok(Parsed::Device(Device::Function(plugged))) = cli::parse_device(&plugged) else {
        panic!("{plugged}");
    };
    let names = ["fixed", "behind", "plugged"];
    let all_free = || names.iter().all(|name| files.is_free(name));
    let none_free = || names.iter().all(|name| !files.is_free(name));
    for later in [false, true] {
        let Ok(Request::Run { mut config, .. }) = cli::parse(line.split(' ')) else {
            panic!("{line}");
        };
        config.claimed_later = later;
        let (events, _) = channel();
        let event_loop = EventLoop::start(events.clone()).expect("a thread");
        let machine = Machine::new(
            &config,
            None,
            Given::default(),
            &events,
            event_loop.handle(),
        )
        .expect("created");
        let hotplug = machine.hotplug();
        hotplug.add(&plugged).expect("there is a port");
        assert!(!machine.config().claimed_later);
        if later {
            assert!(all_free());
            let arbiter = machine.claims().take_all().expect("they are free");
            assert_eq!(arbiter, Arbiter::Lock);
        }
        assert!(none_free());
        sync(&machine.claims().disks()).expect("files");
        machine
            .claims()
            .give_up_all(Addresses::GiveUp)
            .expect("it has them");
        assert!(all_free());
        machine.claims().take_all().expect("they are free");
        assert!(none_free());
        hotplug.remove("p1", true).expect("it is there");
        // See `give_up`.
        let began = Instant::now();
        while !files.is_free("plugged") {
            assert!(began.elapsed() < Duration::from_secs(10), "still locked");
        }
        assert_eq!(machine.claims().disks().len(), 2);
        machine
            .claims()
            .give_up_all(Addresses::GiveUp)
            .expect("it has them");
    }
}
