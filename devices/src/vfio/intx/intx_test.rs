use super::*;
use crate::vfio::fake::{Call, FakeHost, FakeLine};

struct Setup {
    host: Arc<FakeHost>,
    line: Arc<FakeLine>,
    intx: Intx,
}

fn setup() -> Setup {
    let host = Arc::new(FakeHost::new());
    let line = Arc::new(FakeLine::default());
    let intx = Intx::new(host.clone()).expect("event");
    assert!(intx.connect(line.clone()));
    intx.enable().expect("armed");
    assert_eq!(host.take_calls(), [Call::Arm(IrqKind::Intx, 0, vec![true])]);
    Setup { host, line, intx }
}

impl Setup {
    fn levels(&self) -> Vec<bool> {
        std::mem::take(&mut self.line.levels.lock().expect("levels"))
    }

    /// The device asks for an interrupt; the host masks it and signals.
    fn interrupt(&self) {
        self.host.signal(IrqKind::Intx, 0);
        self.intx.raised();
    }
}

#[test]
fn an_interrupt_holds_the_line_until_it_is_ended_and_then_comes_again() {
    let setup = setup();
    setup.interrupt();
    assert_eq!(setup.levels(), [true]);
    assert_eq!(setup.host.take_calls(), [], "masked until it is ended");
    setup.intx.interrupt_ended();
    assert_eq!(setup.levels(), [false]);
    assert_eq!(setup.host.take_calls(), [Call::Unmask]);
    setup.interrupt();
    assert_eq!(setup.levels(), [true]);
}

#[test]
fn the_end_of_an_interrupt_of_somebody_else_on_the_pin_changes_nothing() {
    let setup = setup();
    setup.intx.interrupt_ended();
    assert_eq!((setup.levels(), setup.host.take_calls()), (vec![], vec![]));
}

#[test]
fn turning_it_off_lowers_the_line_and_forgets_what_was_signalled() {
    let setup = setup();
    setup.interrupt();
    setup.host.signal(IrqKind::Intx, 0);
    setup.intx.disable();
    assert_eq!(setup.levels(), [true, false]);
    setup.intx.raised();
    setup.intx.interrupt_ended();
    setup.intx.disable();
    assert!(setup.levels().is_empty());
    assert_eq!(setup.host.take_calls(), [Call::Disarm(IrqKind::Intx)]);
    assert!(setup.intx.event().read().is_err(), "nothing is left in it");
}

#[test]
fn interrupt_disable_lowers_the_line_and_drops_an_event_that_comes_late() {
    let setup = setup();
    setup.interrupt();
    setup.intx.set_quiet(true);
    assert_eq!(setup.levels(), [true, false]);
    setup.interrupt();
    assert!(setup.levels().is_empty());
    setup.intx.set_quiet(false);
    setup.interrupt();
    assert_eq!(setup.levels(), [true]);
}
