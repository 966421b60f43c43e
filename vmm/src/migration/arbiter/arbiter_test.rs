//! The end of a migration over a connection that is cut somewhere: two processes' sides with disks of the
//! same file, in one.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use devices::virtio::blk::{Block, BlockOptions};
use vmm_sys_util::tempdir::TempDir;

use super::*;
use crate::migration::arrive::Arrival;
use crate::migration::link::Link;
use crate::migration::receive::{Item, Receiver};
use crate::migration::testing::{LONG, hello_frame, memory, offered};

/// Bytes of a frame that has no payload, as READY, YOURS and RUNNING are.
const FRAME: usize = 12;
/// What the target says with ACCEPTED.
const HOST: &str = "a host";

/// One side's disks, and what has them locked.
struct Side {
    claims: Arc<Claims>,
    _disks: Vec<Block>,
}

impl Side {
    /// A side whose disks are these files, which it has at first if `held`.
    fn new(paths: &[&Path], held: bool) -> Self {
        let claims = Claims::new(held);
        let mut disks = Vec::new();
        for (path, device) in paths.iter().zip(1..) {
            let options = BlockOptions {
                path: path.to_path_buf(),
                readonly: false,
                serial: None,
                queues: 1,
            };
            let disk = Block::open_unlocked(&options).expect("a disk");
            let bdf = pci::Bdf::new(0, device, 0).expect("an address");
            claims.add(bdf, disk.claim()).expect("nobody else has it");
            disks.push(disk);
        }
        Self {
            claims,
            _disks: disks,
        }
    }
}

impl Drop for Side {
    /// Closing the files would do, but for a child that a test beside this one has just made: that has
    /// them, too, for a moment.
    fn drop(&mut self) {
        self.claims.give_up_all(Addresses::GiveUp).expect("files");
    }
}

/// Forwards what comes from `from` to `to`; after `most` bytes, if any, both connections are cut.
fn forward(mut from: UnixStream, mut to: UnixStream, most: Option<usize>) {
    let mut left = most;
    let mut bytes = [0; 4096];
    while left != Some(0) {
        let room = left.unwrap_or(bytes.len()).min(bytes.len());
        let Ok(length @ 1..) = from.read(&mut bytes[..room]) else {
            break;
        };
        if to.write_all(&bytes[..length]).is_err() {
            break;
        }
        left = left.map(|left| left - length);
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// Whose the guest is: what the source makes of it, and whether the target runs it.
struct Outcome {
    source: Handed,
    runs: bool,
}

impl Outcome {
    fn is_one_guest(&self) -> bool {
        match self.source {
            // That stands still at the source, and has nothing without which it could go on.
            Handed::Away(_) | Handed::Unknown(_) => self.runs,
            Handed::Back(_) => !self.runs,
        }
    }
}

/// The last steps over a connection that is cut after so many bytes of YOURS, or of what the target says
/// from RUNNING on.
fn hand_over(
    source: &Side,
    target: &Side,
    yours: Option<usize>,
    running: Option<usize>,
) -> Outcome {
    let (ours, near) = UnixStream::pair().expect("descriptors");
    let (far, theirs) = UnixStream::pair().expect("descriptors");
    let copy = |stream: &UnixStream| stream.try_clone().expect("a descriptor");
    let link = |stream| Link::new(stream, LONG).expect("a socket");
    let target = &*target.claims;
    thread::scope(|scope| {
        let arriving = scope.spawn(move || {
            let (mut receiver, _) = Receiver::accept(link(theirs), LONG).expect("a guest");
            receiver.accepted(HOST).expect("connected");
            let item = receiver.next(&memory(), LONG).expect("a state");
            let all = Item::All {
                state: b"state".to_vec(),
                paused: false,
            };
            assert_eq!(item, all);
            let mut arrival = Arrival::of(receiver);
            let outcome = arrival.take_over(target, || None);
            arrival.told(outcome).is_ok()
        });
        // All that comes before the end, uncut.
        let (to_target, to_source) = ((copy(&near), copy(&far)), (copy(&far), copy(&near)));
        let before = hello_frame().len() + 2 * FRAME + b"state".len() + 1;
        scope.spawn(move || forward(to_target.0, to_target.1, yours.map(|cut| before + cut)));
        let before = 2 * FRAME + HOST.len();
        scope.spawn(move || forward(to_source.0, to_source.1, running.map(|cut| before + cut)));
        let mut sender = offered(link(ours), LONG).expect("accepted");
        sender.state(b"state").expect("connected");
        let ready = sender.last(false, LONG);
        let to = "unix:/there".parse().expect("an endpoint");
        let handed = match ready {
            Ok(()) => hand(&to, &mut sender, &source.claims, true, Addresses::GiveUp),
            Err(error) => {
                // The connection is dropped, as by a source that goes on.
                drop(sender);
                Handed::Back(error.to_string())
            }
        };
        let _ = (near.shutdown(Shutdown::Both), far.shutdown(Shutdown::Both));
        Outcome {
            source: handed,
            runs: arriving.join().expect("no panic"),
        }
    })
}

fn file(directory: &TempDir, name: &str) -> std::path::PathBuf {
    let path = directory.as_path().join(name);
    let file = File::create(&path).expect("a file");
    file.set_len(1 << 20).expect("room");
    path
}

#[test]
fn there_is_exactly_one_guest_wherever_the_connection_is_cut() {
    let directory = TempDir::new().expect("a directory");
    let (one, two) = (file(&directory, "one"), file(&directory, "two"));
    let disks = [one.as_path(), two.as_path()];
    let mut seen = [0; 2];
    for cut in 0..=FRAME {
        for (yours, running) in [(Some(cut), None), (None, Some(cut))] {
            let sides = (Side::new(&disks, true), Side::new(&disks, false));
            let outcome = hand_over(&sides.0, &sides.1, yours, running);
            let Outcome { source, runs } = &outcome;
            assert!(
                outcome.is_one_guest(),
                "cut after {yours:?} of YOURS, {running:?} of RUNNING: {source:?}, and the target runs: {runs}"
            );
            // Whoever has the guest has its disks, and nobody else can.
            let (owner, other) = match runs {
                true => (&sides.1, &sides.0),
                false => (&sides.0, &sides.1),
            };
            assert!(owner.claims.take_all().is_ok());
            assert!(other.claims.take_all().is_err());
            seen[usize::from(*runs)] += 1;
        }
    }
    assert!(seen[0] >= FRAME && seen[1] >= FRAME, "{seen:?}");
}

#[test]
fn a_whole_connection_gives_the_guest_away_and_its_disks_with_it() {
    let directory = TempDir::new().expect("a directory");
    let one = file(&directory, "one");
    let (source, target) = (Side::new(&[&one], true), Side::new(&[&one], false));
    let outcome = hand_over(&source, &target, None, None);
    assert_eq!(outcome.source, Handed::Away(String::new()));
    assert!(outcome.runs);
    assert!(source.claims.take_all().is_err(), "the target has it");
}

#[test]
fn a_target_that_cannot_have_the_disks_says_so_and_the_guest_goes_on() {
    let directory = TempDir::new().expect("a directory");
    let (one, two) = (file(&directory, "one"), file(&directory, "two"));
    let source = Side::new(&[&one], true);
    // Its second disk is another's.
    let target = Side::new(&[&one, &two], false);
    let _other = Side::new(&[&two], true);
    let outcome = hand_over(&source, &target, None, None);
    let Handed::Back(why) = outcome.source else {
        panic!("{:?}", outcome.source);
    };
    assert!(why.contains("two") && why.contains("in use"), "{why}");
    assert!(!outcome.runs);
    assert!(target.claims.take_all().is_err(), "the source has it back");
}

#[test]
fn without_a_disk_to_tell_by_the_guest_stands_still_and_nothing_runs_twice() {
    let (source, target) = (Side::new(&[], true), Side::new(&[], false));
    // The target's word is lost: it runs.
    let outcome = hand_over(&source, &target, None, Some(3));
    let Handed::Unknown(why) = outcome.source else {
        panic!("{:?}", outcome.source);
    };
    assert!(why.contains("`resume`") && why.contains("`quit`"), "{why}");
    // What the source could not say, the target has not heard.
    let outcome = hand_over(&source, &target, Some(3), None);
    assert!(!outcome.runs);
}
