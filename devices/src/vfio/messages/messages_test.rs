use std::sync::atomic::Ordering;

use super::*;
use crate::vfio::fake::{Call, FakeHost, FakeRoutes};
use crate::vfio::host::Irqs;

const A: MsiMessage = MsiMessage {
    address: 0xfee0_0000,
    data: 0x41,
};
const B: MsiMessage = MsiMessage {
    address: 0xfee0_1000,
    data: 0x42,
};

struct Setup {
    host: Arc<FakeHost>,
    routes: Arc<FakeRoutes>,
}

impl Setup {
    fn new(host: FakeHost, routes: FakeRoutes) -> Self {
        Self {
            host: Arc::new(host),
            routes: Arc::new(routes),
        }
    }

    fn msix(&self) -> Result<Messages, MessageError> {
        let (host, routes) = (self.host.clone() as _, self.routes.clone() as _);
        Messages::msix(source(), &host, &routes, 65)
    }

    fn msi(&self, messages: &[Option<MsiMessage>]) -> (Result<Messages, MessageError>, Vec<u16>) {
        let (host, routes) = (self.host.clone() as _, self.routes.clone() as _);
        let mut silent = Vec::new();
        let result = Messages::msi(source(), &host, &routes, messages, &mut |vector, _| {
            silent.push(vector);
        });
        (result, silent)
    }
}

fn source() -> Bdf {
    Bdf::from_requester_id(0x20)
}

fn set(vectors: &mut Messages, vector: u16, message: Option<MsiMessage>) -> Result<(), String> {
    let mut result = Ok(());
    vectors.set([(vector, message)], &mut |_, error| {
        result = Err(format!("{error:?}"));
    });
    result
}

#[test]
fn vectors_that_are_unmasked_together_are_one_change_and_one_range() {
    let mut host = FakeHost::new();
    host.vectors = 40;
    let setup = Setup::new(host, FakeRoutes::default());
    let mut vectors = setup.msix().expect("enabled");
    setup.host.take_calls();
    let messages = [0, 1, 2, 7].map(|vector| (vector, Some(A)));
    vectors.set(messages, &mut |_, error| panic!("{error}"));
    assert_eq!(setup.routes.changes.load(Ordering::Relaxed), 1);
    assert_eq!(
        setup.host.take_calls(),
        [
            Call::Arm(IrqKind::Msix, 0, vec![true; 3]),
            Call::Arm(IrqKind::Msix, 7, vec![true])
        ]
    );
    // Of a range that the host does not take whole, it takes what it can.
    let mut silent = Vec::new();
    let messages = (38..42).map(|vector| (vector, Some(B)));
    vectors.set(messages, &mut |vector, _| silent.push(vector));
    assert_eq!(silent, [40, 41]);
    assert_eq!(setup.routes.changes.load(Ordering::Relaxed), 2);
    assert_eq!(setup.routes.alive(), 6);
    // What changes nothing costs nothing.
    setup.host.take_calls();
    let messages = [0, 1, 2, 7].map(|vector| (vector, Some(A)));
    vectors.set(messages, &mut |_, error| panic!("{error}"));
    assert_eq!(setup.routes.changes.load(Ordering::Relaxed), 2);
    assert_eq!(setup.host.take_calls(), []);
}

#[test]
fn a_vector_takes_means_when_it_is_first_unmasked_and_only_then() {
    let setup = Setup::new(FakeHost::new(), FakeRoutes::default());
    let mut vectors = setup.msix().expect("enabled");
    assert_eq!(
        setup.host.take_calls(),
        [Call::Arm(IrqKind::Msix, 0, vec![false])]
    );
    set(&mut vectors, 7, None).expect("masked");
    assert_eq!((setup.host.take_calls(), setup.routes.alive()), (vec![], 0));
    set(&mut vectors, 7, Some(A)).expect("unmasked");
    assert_eq!(
        setup.host.take_calls(),
        [Call::Arm(IrqKind::Msix, 7, vec![true])]
    );
    assert_eq!(setup.routes.messages(), [Some(A)]);
    assert_eq!(setup.routes.added.lock().expect("added")[0].0, source());
    set(&mut vectors, 7, Some(B)).expect("changed");
    assert_eq!(setup.routes.messages(), [Some(B)]);
    assert_eq!(setup.host.take_calls(), [], "VFIO need not know");
}

#[test]
fn an_event_on_a_masked_vector_is_pending_until_it_is_taken() {
    let setup = Setup::new(FakeHost::new(), FakeRoutes::default());
    let mut vectors = setup.msix().expect("enabled");
    set(&mut vectors, 64, Some(A)).expect("unmasked");
    set(&mut vectors, 64, None).expect("masked");
    assert_eq!(setup.routes.messages(), [None]);
    assert!(!vectors.is_pending(64));
    setup.host.signal(IrqKind::Msix, 64);
    assert!(vectors.is_pending(64));
    assert!(vectors.is_pending(64), "reading does not take it");
    assert!(!vectors.is_pending(63));
    set(&mut vectors, 64, Some(A)).expect("unmasked");
    assert!(!vectors.is_pending(64), "the hypervisor sends it now");
}

#[test]
fn a_host_that_cannot_add_vectors_is_asked_for_all_at_first() {
    let mut host = FakeHost::new();
    let fixed = Irqs {
        count: 65,
        dynamic: false,
    };
    host.irqs.insert(IrqKind::Msix, fixed);
    host.vectors = 9;
    let setup = Setup::new(host, FakeRoutes::default());
    let mut vectors = setup.msix().expect("enabled with fewer");
    assert_eq!(
        setup.host.take_calls(),
        [
            Call::Arm(IrqKind::Msix, 0, vec![false; 65]),
            Call::Arm(IrqKind::Msix, 0, vec![false; 9])
        ]
    );
    set(&mut vectors, 8, Some(A)).expect("the ninth");
    assert_eq!(set(&mut vectors, 9, Some(A)), Err("Limit(9)".to_owned()));
    assert_eq!(setup.routes.alive(), 1);
}

#[test]
fn vectors_without_route_stay_silent_and_leak_nothing() {
    let routes = FakeRoutes {
        limit: 2,
        ..FakeRoutes::default()
    };
    let setup = Setup::new(FakeHost::new(), routes);
    let mut vectors = setup.msix().expect("enabled");
    set(&mut vectors, 0, Some(A)).expect("first");
    set(&mut vectors, 1, Some(A)).expect("second");
    for _ in 0..1000 {
        let refused = set(&mut vectors, 2, Some(A)).expect_err("too many");
        assert!(refused.starts_with("Route("), "{refused}");
    }
    assert_eq!(setup.routes.alive(), 2);
    setup.host.take_calls();
    drop(vectors);
    assert_eq!(setup.host.take_calls(), [Call::Disarm(IrqKind::Msix)]);
    assert_eq!(setup.routes.alive(), 0);
}

#[test]
fn msi_is_armed_whole_and_its_vectors_are_masked_one_by_one() {
    let setup = Setup::new(FakeHost::new(), FakeRoutes::default());
    let (vectors, silent) = setup.msi(&[Some(A), None, Some(B), None]);
    let mut vectors = vectors.expect("enabled");
    assert!(silent.is_empty());
    assert_eq!(
        setup.host.take_calls(),
        [Call::Arm(IrqKind::Msi, 0, vec![true; 4])]
    );
    assert_eq!(setup.routes.messages(), [Some(A), None, Some(B), None]);
    setup.host.signal(IrqKind::Msi, 1);
    assert!(vectors.is_pending(1));
    set(&mut vectors, 1, Some(A)).expect("unmasked");
    assert_eq!(setup.routes.messages(), [Some(A), Some(A), Some(B), None]);
}

#[test]
fn msi_makes_do_with_the_vectors_that_the_host_has() {
    let mut host = FakeHost::new();
    host.vectors = 3;
    let setup = Setup::new(host, FakeRoutes::default());
    let (vectors, silent) = setup.msi(&[Some(A); 4]);
    let mut vectors = vectors.expect("enabled");
    assert_eq!(silent, [2]);
    assert_eq!(
        setup.host.take_calls(),
        [
            Call::Arm(IrqKind::Msi, 0, vec![true; 4]),
            Call::Arm(IrqKind::Msi, 0, vec![true; 2])
        ]
    );
    assert_eq!(setup.routes.alive(), 2);
    set(&mut vectors, 3, Some(B)).expect("silent");
    assert_eq!(setup.routes.alive(), 2);
}

#[test]
fn a_host_that_refuses_everything_leaves_nothing_behind() {
    let mut host = FakeHost::new();
    host.vectors = 0;
    let setup = Setup::new(host, FakeRoutes::default());
    assert!(setup.msix().is_err());
    assert!(setup.msi(&[Some(A); 4]).0.is_err());
    assert_eq!(setup.routes.alive(), 0);
    setup.host.broken.store(true, Ordering::Relaxed);
    assert!(matches!(setup.msix(), Err(MessageError::Arm(_))));
    assert!(matches!(setup.msi(&[Some(A)]).0, Err(MessageError::Arm(_))));
    assert_eq!(setup.routes.alive(), 0);
}
