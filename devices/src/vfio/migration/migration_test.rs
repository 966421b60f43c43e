use std::sync::atomic::Ordering;

use super::*;
use crate::vfio::fake::{Call, FakeHost};
use crate::vfio::fake_migration::{Fails, FakeMigration};
use MigrationState::{Error, Resuming, Running, RunningP2p, Stop, StopCopy};

fn device(fake: FakeMigration) -> (Arc<FakeHost>, Migration) {
    let host = Arc::new(FakeHost::movable());
    *host.migration.lock().expect("migration") = fake;
    let dynamic: Arc<dyn HostDevice> = Arc::clone(&host) as _;
    let migration = Migration::of(&dynamic).expect("asked").expect("movable");
    (host, migration)
}

fn fails(step: (MigrationState, MigrationState), lost: bool) -> FakeMigration {
    let errno = libc::EIO;
    FakeMigration {
        fails: Some(Fails { step, errno, lost }),
        ..FakeMigration::whole()
    }
}

fn steps(host: &FakeHost) -> Vec<MigrationState> {
    host.migration.lock().expect("migration").take_steps()
}

fn state(host: &FakeHost) -> MigrationState {
    host.migration.lock().expect("migration").state
}

#[test]
fn a_driver_without_it_or_that_cannot_stop_its_device_is_none() {
    for features in [None, Some(MigrationFeatures::default())] {
        let host = FakeHost::movable();
        host.migration.lock().expect("migration").features = features;
        let host: Arc<dyn HostDevice> = Arc::new(host);
        assert!(Migration::of(&host).expect("asked").is_none());
    }
}

#[test]
fn a_device_stops_is_saved_and_runs_as_before() {
    let (host, migration) = device(FakeMigration {
        at_a_time: 5,
        ..FakeMigration::whole()
    });
    migration.quiet().expect("quiet");
    assert_eq!(steps(&host), [RunningP2p]);
    migration.stop().expect("stopped");
    assert_eq!(steps(&host), [Stop]);
    // As often as it is wanted.
    for _ in 0..2 {
        assert_eq!(migration.save().expect("saved"), b"edu as it was");
        assert_eq!(steps(&host), [StopCopy, Stop]);
    }
    migration.run().expect("runs");
    assert_eq!(steps(&host), [RunningP2p, Running]);
    assert_eq!(host.take_calls(), [], "never reset");
}

#[test]
fn a_device_without_dma_to_others_to_stop_stops_at_once() {
    let (host, migration) = device(FakeMigration {
        features: Some(MigrationFeatures {
            stop_copy: true,
            p2p: false,
        }),
        ..FakeMigration::whole()
    });
    migration.quiet().expect("nothing to be done");
    migration.stop().expect("stopped");
    assert_eq!(steps(&host), [Stop]);
    migration.run().expect("runs");
    assert_eq!(steps(&host), [Running]);
}

#[test]
fn a_device_becomes_like_another_one() {
    let (host, migration) = device(FakeMigration::whole());
    let mut data = b"edu from elsewhere".to_vec();
    data.resize(200_000, 7);
    migration.load(&data).expect("loaded");
    assert_eq!(steps(&host), [RunningP2p, Stop, Resuming, Stop]);
    assert_eq!(host.migration.lock().expect("migration").data, data);
    migration.run().expect("runs");
}

#[test]
fn a_step_that_is_refused_leaves_it_where_it_was_and_it_runs_again() {
    for step in [(Running, RunningP2p), (RunningP2p, Stop), (Stop, StopCopy)] {
        let (host, migration) = device(fails(step, false));
        let outcome = migration.quiet().and_then(|()| migration.stop());
        let outcome = outcome.and_then(|()| migration.save());
        assert!(
            matches!(outcome, Err(MigrationError::Step(..))),
            "{step:?}: {outcome:?}"
        );
        assert_eq!(state(&host), step.0);
        host.migration.lock().expect("migration").fails = None;
        migration.run().expect("runs");
        assert_eq!(state(&host), Running);
        assert_eq!(host.take_calls(), [], "never reset");
    }
}

#[test]
fn a_device_that_fails_is_reset() {
    for step in [(Running, RunningP2p), (RunningP2p, Stop), (Stop, StopCopy)] {
        let (host, migration) = device(fails(step, true));
        let outcome = migration.quiet().and_then(|()| migration.stop());
        let outcome = outcome.and_then(|()| migration.save());
        let error = outcome.expect_err("lost");
        assert!(
            matches!(error, MigrationError::Lost(..)),
            "{step:?}: {error}"
        );
        assert_eq!(host.take_calls(), [Call::Reset]);
        assert_eq!(state(&host), Running);
    }
}

#[test]
fn a_device_that_does_not_run_any_more_is_reset_or_dead() {
    let (host, migration) = device(fails((RunningP2p, Running), false));
    migration.stop().expect("stopped");
    let error = migration.run().expect_err("it does not run");
    assert!(matches!(error, MigrationError::Lost(Running, _)), "{error}");
    assert_eq!(host.take_calls(), [Call::Reset]);
    assert_eq!(state(&host), Running);

    let (host, migration) = device(fails((Running, RunningP2p), true));
    host.broken.store(true, Ordering::Relaxed);
    let error = migration.quiet().expect_err("dead");
    assert!(
        matches!(error, MigrationError::Dead(RunningP2p, ..)),
        "{error}"
    );
    assert_eq!(state(&host), Error);
}

#[test]
fn what_cannot_be_read_or_is_too_much_is_an_error_and_the_device_is_stopped_again() {
    let (host, migration) = device(FakeMigration {
        at_a_time: 4,
        breaks_at: Some(8),
        ..FakeMigration::whole()
    });
    migration.stop().expect("stopped");
    let error = migration.save().expect_err("it breaks");
    assert!(matches!(error, MigrationError::Read(_)), "{error}");
    assert_eq!(state(&host), Stop);

    let (host, migration) = device(FakeMigration {
        data: vec![1; DATA_MOST + 1],
        ..FakeMigration::whole()
    });
    migration.stop().expect("stopped");
    let error = migration.save().expect_err("too much");
    assert!(matches!(error, MigrationError::TooLarge), "{error}");
    assert_eq!(state(&host), Stop);
    host.migration.lock().expect("migration").data.pop();
    assert_eq!(migration.save().expect("just enough").len(), DATA_MOST);
}

#[test]
fn data_of_another_device_is_refused_by_the_driver_and_a_reset_is_its_end() {
    let (host, migration) = device(FakeMigration::whole());
    for wrong in [&b"nvme"[..], b"", b"ed"] {
        let error = migration.load(wrong).expect_err("refused");
        assert!(matches!(error, MigrationError::Write(_)), "{error}");
        assert_eq!(state(&host), Resuming);
        host.reset().expect("reset");
    }
    assert_eq!(
        host.migration.lock().expect("migration").data,
        b"edu as it was"
    );
}
