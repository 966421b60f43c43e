use std::sync::Arc;

use pci::PciFunction as _;
use serde_json::{Value, json};
use state::Section;

use crate::vfio::fake::{Call, FakeHost, FakeLine};
use crate::vfio::fake_migration::{Fails, FakeMigration};
use crate::vfio::function::function_test::{Setup, create, message};
use crate::vfio::host::{IrqKind, MigrationState};
use MigrationState::{Resuming, Running, RunningP2p, Stop, StopCopy};

const COMMAND: u16 = 0x04;
const MSIX: u16 = 0x40;
const MSI: u16 = 0xc0;
const POWER: u16 = 0x64;
const CONFIG: u32 = 7;

fn movable() -> Setup {
    let setup = create(FakeHost::movable()).expect("created");
    setup.host.take_calls();
    setup
}

impl Setup {
    fn stop(&self) {
        self.function.parkable().expect("movable");
        self.function.park();
        self.function.parked().expect("stopped");
    }

    fn section(&self) -> Section {
        self.stop();
        self.function.save().expect("saved")
    }

    fn steps(&self) -> Vec<MigrationState> {
        self.host.migration.lock().expect("migration").take_steps()
    }

    fn state(&self) -> MigrationState {
        self.host.migration.lock().expect("migration").state
    }
}

fn changed(section: &Section, pointer: &str, value: Value) -> Section {
    let mut json = serde_json::to_value(section).expect("JSON");
    *json.pointer_mut(pointer).expect(pointer) = value;
    serde_json::from_value(json).expect("a section")
}

#[test]
fn a_function_goes_on_elsewhere_with_its_interrupts_its_windows_and_what_the_device_is_like() {
    let here = movable();
    here.place();
    here.write(COMMAND, &[6, 4]);
    // MSI-X: a vector that sends, one that is pending while it is masked, one that is masked.
    here.write(MSIX + 2, &[0, 0x80]);
    here.write_entry(0, 0x30, false);
    here.write_entry(5, 0x35, false);
    here.write_entry(5, 0x35, true);
    here.write_entry(9, 0x39, true);
    here.host.signal(IrqKind::Msix, 5);
    here.host.migration.lock().expect("migration").data = b"edu of here".to_vec();
    let section = here.section();
    assert_eq!(here.steps(), [RunningP2p, Stop, StopCopy, Stop]);

    let there = movable();
    there.function.restore(&section).expect("restored");
    there.decode();
    assert_eq!(there.steps(), [RunningP2p, Stop, Resuming, Stop]);
    assert_eq!(
        there.host.migration.lock().expect("migration").data,
        b"edu of here"
    );
    for offset in (0..4096).step_by(4).filter(|offset| *offset != 4) {
        let [at_both, saved] = [&there, &here].map(|setup| setup.read::<4>(offset));
        assert_eq!(at_both, saved, "{offset:#x}");
    }
    assert_eq!(there.mappings.sorted(), here.mappings.sorted());
    // The device's memory is on, bus mastering is the guest's, its pin is off.
    let calls = there.host.take_calls();
    let command = Call::Write(CONFIG, 4, vec![0x06, 0x05]);
    assert!(calls.contains(&command), "{calls:?}");
    let messages = there.routes.messages();
    assert_eq!(messages, [message(0x30), None]);
    assert_eq!(there.read_bar::<8>(0x3000), [1 << 5, 0, 0, 0, 0, 0, 0, 0]);
    // Once it is unmasked, what was pending is sent with its message.
    there.write_entry(5, 0x35, false);
    assert_eq!(there.routes.messages(), [message(0x30), message(0x35)]);
    assert_eq!(there.state(), Stop);
    there.function.resume();
    assert_eq!(there.state(), Running);
    assert_eq!(there.host.take_calls(), [], "it is not reset for that");
    // Nothing is lost here.
    here.function.resume();
    assert_eq!(here.state(), Running);
    assert_eq!(here.read_bar::<1>(0x3000), [1 << 5]);
}

#[test]
fn msi_and_its_pending_bits_go_along() {
    let here = movable();
    here.write(MSI + 4, &[0, 0, 0xe0, 0xfe, 0, 0, 0, 0, 0x40, 0]);
    here.write(MSI + 0x10, &[0b10, 0, 0, 0]);
    here.write(MSI + 2, &[0x11, 0]);
    here.host.signal(IrqKind::Msi, 1);
    let section = here.section();
    let there = movable();
    there.function.restore(&section).expect("restored");
    assert_eq!(there.routes.messages(), [message(0x40), None]);
    assert_eq!(there.read::<4>(MSI + 0x14), [0b10, 0, 0, 0]);
    assert!(
        there
            .host
            .take_calls()
            .contains(&Call::Arm(IrqKind::Msi, 0, vec![true; 2]))
    );
}

#[test]
fn a_pin_that_is_high_stays_so_until_its_interrupt_has_ended() {
    let here = movable();
    let line = Arc::new(FakeLine::default());
    assert!(here.function.connect_intx(line.clone()));
    here.write(COMMAND, &[2, 0]);
    here.host.signal(IrqKind::Intx, 0);
    for _ in 0..10_000 {
        if !line.levels.lock().expect("levels").is_empty() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let section = here.section();
    let there = movable();
    let line = Arc::new(FakeLine::default());
    assert!(there.function.connect_intx(line.clone()));
    there.function.restore(&section).expect("restored");
    assert_eq!(*line.levels.lock().expect("levels"), [true]);
    there.host.take_calls();
    let end = there.function.end_of_interrupt().upgrade().expect("there");
    end.interrupt_ended();
    assert_eq!(*line.levels.lock().expect("levels"), [true, false]);
    assert_eq!(there.host.take_calls(), [Call::Unmask]);
}

#[test]
fn a_device_that_cannot_be_stopped_is_neither_parked_nor_saved() {
    let setup = create(FakeHost::new()).expect("created");
    let why = setup.function.parkable().expect_err("no migration");
    assert!(why.contains("VFIO migration"), "{why}");
    assert!(setup.function.save().is_err());
    let section = movable().section();
    assert!(setup.function.restore(&section).is_err());

    let asleep = movable();
    asleep.write(POWER, &[1]);
    let why = asleep.function.parkable().expect_err("asleep");
    assert!(why.contains("D1"), "{why}");
    let running = movable();
    assert!(running.function.save().is_err(), "it runs");
}

#[test]
fn a_device_that_fails_to_stop_says_so_and_runs_again() {
    for lost in [false, true] {
        let setup = movable();
        setup.host.migration.lock().expect("migration").fails = Some(Fails {
            step: (RunningP2p, Stop),
            errno: libc::EIO,
            lost,
        });
        setup.function.park();
        let why = setup.function.parked().expect_err("it does not stop");
        assert!(why.contains("STOP"), "{why}");
        assert!(setup.function.parked().is_err(), "nor later");
        setup.function.resume();
        assert_eq!(setup.state(), Running);
        setup.host.migration.lock().expect("migration").fails = None;
        setup.stop();
        assert_eq!(setup.state(), Stop);
    }
}

#[test]
fn what_is_too_much_is_told_and_the_device_runs_again() {
    let setup = movable();
    setup.host.migration.lock().expect("migration").data = vec![0; 9 << 20];
    setup.stop();
    let why = setup.function.save().expect_err("too much").to_string();
    assert!(why.contains("unplug=ID"), "{why}");
    setup.function.resume();
    assert_eq!(setup.state(), Running);
}

#[test]
fn what_is_of_another_function_or_of_none_is_refused() {
    let here = movable();
    here.write(MSIX + 2, &[0, 0x80]);
    here.write_entry(0, 0x30, false);
    let section = here.section();
    let mut config = here
        .function
        .control
        .lock()
        .config
        .save()
        .as_slice()
        .to_vec();
    config[0x64] |= 1;
    let asleep = serde_json::to_value(state::Bytes::new(&config)).expect("JSON");
    config[0x64] &= !1;
    config[0x02] ^= 1;
    let other = serde_json::to_value(state::Bytes::new(&config)).expect("JSON");
    let wrong = serde_json::to_value(state::Bytes::new(b"nvme")).expect("JSON");
    let short = serde_json::to_value(state::Bytes::new(&[0; 4095])).expect("JSON");
    for (pointer, value, part) in [
        ("/state/config", other, "configuration space at 0x2 is"),
        ("/state/config", asleep, "asleep"),
        ("/state/config", short, "configuration space"),
        ("/state/bars/0/size", json!(0x8000), "BARs"),
        ("/state/table", Value::Null, "MSI-X"),
        ("/state/pending", json!([65]), "vector 65"),
        ("/state/device", wrong, "the device"),
        ("/kind", json!("edu"), "edu"),
        ("/version", json!(2), "version"),
    ] {
        let there = movable();
        let section = changed(&section, pointer, value);
        let why = there
            .function
            .restore(&section)
            .expect_err(pointer)
            .to_string();
        assert!(why.contains(part), "{pointer}: {why}");
    }
    movable().function.restore(&section).expect("as it was");
}

#[test]
fn a_driver_without_migration_at_the_target_is_told_before() {
    let host = FakeHost::movable();
    *host.migration.lock().expect("migration") = FakeMigration::default();
    let setup = create(host).expect("created");
    assert!(setup.function.parkable().is_err());
}
