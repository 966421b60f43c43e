//! The command that tells which pages of guest memory are written while the guest runs.

use std::fmt::Write as _;
use std::io;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use super::monitor::Monitor;
use super::parser::{Answer, Value};
use super::turns::Long;
use super::workers::Kind;
use crate::cli::{DirtyPagesAsked, parse_dirty_pages};
use crate::config::{FollowConfig, WriterKind};
use crate::event::Event;
use crate::memory::dirty::{Follow, Following, Written};
use crate::memory::pages::Pages;
use crate::suspension::Suspension;

/// Most runs of pages that are listed of a round.
const MOST: usize = 1024;
/// How often to see whether the client is still there.
const LOOK: Duration = Duration::from_millis(100);

/// `dirty-pages`: when the last round is over.
pub(super) fn look(monitor: &Monitor, values: &[Value]) -> Result<Answer, String> {
    let [Value::DirtyPages(argument)] = values else {
        return Err("dirty-pages: the argument is missing".to_owned());
    };
    let wish = match parse_dirty_pages(argument).map_err(|error| error.to_string())? {
        DirtyPagesAsked::Help(text) => return Ok(text.into()),
        DirtyPagesAsked::Follow(wish) => wish,
    };
    let turn = monitor.begin(Long::DirtyPages)?;
    let (suspension, events) = (Arc::clone(&monitor.suspension), monitor.events.clone());
    let writers = Arc::clone(&monitor.writers);
    let work = move |client: Weak<()>| {
        let _turn = turn;
        let log = begin(&wish, &writers, &suspension, &events, &client)?;
        rounds(&wish, &*log, &client)
    };
    Ok(monitor.workers.begin_for(Kind::Look, work)?.into())
}

/// Follows from a moment on in which nothing is written, if there can be one: devices of the host do not
/// stop. Beside them, what is being written at the moment may be missed.
fn begin(
    wish: &FollowConfig,
    writers: &Arc<dyn Follow>,
    suspension: &Suspension,
    events: &Sender<Event>,
    client: &Weak<()>,
) -> Result<Box<dyn Following>, String> {
    let failed = |error: io::Error| format!("it is not known what is written: {error}");
    if wish.of == Some(WriterKind::HostDevices) {
        return writers.follow(wish.of).map_err(failed);
    }
    if writers.has_host_devices() {
        // Others may need a pause that there cannot be.
        return writers.follow(wish.of).map_err(|error| {
            failed(error) + "; `dirty-pages of=host-devices` follows devices of the host alone"
        });
    }
    let (writers, of) = (Arc::clone(writers), wish.of);
    let work = move |_: &mut _| writers.follow(of).map_err(failed);
    suspension.work(work, Weak::clone(client), events)
}

/// Waits for each round to be over, and says what was written in it.
fn rounds(wish: &FollowConfig, log: &dyn Following, client: &Weak<()>) -> Result<String, String> {
    let mut text = String::new();
    for round in 1..=wish.rounds {
        log::debug!("dirty-pages: round {round}");
        let until = Instant::now() + wish.time;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            thread::sleep(left.min(LOOK));
            if client.strong_count() == 0 {
                return Err("nobody waits for it".to_owned());
            }
        }
        let written = log
            .take()
            .map_err(|error| format!("it is not known what was written: {error}"))?;
        if wish.rounds > 1 {
            let _ = writeln!(text, "round {round}");
        }
        describe(&mut text, written, wish.of);
    }
    Ok(text)
}

fn describe(text: &mut String, written: Written, of: Option<WriterKind>) {
    let mut count = |kind: WriterKind, pages: &Pages| {
        let _ = writeln!(text, "{}: {} pages", kind.name(), pages.count());
    };
    let pages = match of {
        Some(kind) => {
            let pages = written.by(kind);
            count(kind, pages);
            pages.clone()
        }
        None => {
            for kind in WriterKind::ALL {
                count(kind, written.by(kind));
            }
            let pages = written.all();
            let _ = writeln!(text, "together: {} pages", pages.count());
            pages
        }
    };
    let mut runs = pages.runs(usize::MAX);
    for (start, count) in runs.by_ref().take(MOST) {
        let _ = writeln!(text, "{:#x} {count}", start.0);
    }
    match runs.count() {
        0 => {}
        more => drop(writeln!(text, "and {more} more")),
    }
}

#[cfg(test)]
mod dirty_pages_test;
