use std::sync::atomic::Ordering;

use pci::{ConfigChange, MsiMessage, PciFunction};

use super::*;
use crate::vfio::fake::{Call, FakeHost, FakeLine, FakeMappings, FakeRoutes};
use crate::vfio::fake_loop::FakeLoop;
use crate::vfio::host::IrqKind;

const CONFIG: u32 = 7;

pub(super) struct Setup {
    pub(super) host: Arc<FakeHost>,
    pub(super) routes: Arc<FakeRoutes>,
    pub(super) mappings: Arc<FakeMappings>,
    pub(super) function: Arc<VfioPci>,
}

pub(super) fn create(host: FakeHost) -> Result<Setup, VfioPciError> {
    create_shown(host, Shown::default())
}

fn create_shown(host: FakeHost, shown: Shown) -> Result<Setup, VfioPciError> {
    let host = Arc::new(host);
    let routes = Arc::new(FakeRoutes::default());
    let mappings = Arc::new(FakeMappings::default());
    let bdf = Bdf::new(0, 4, 0).expect("address");
    let function = VfioPci::with_host(
        bdf,
        host.clone(),
        shown,
        routes.clone(),
        mappings.clone(),
        (None, &FakeLoop),
    )?;
    Ok(Setup {
        host,
        routes,
        mappings,
        function,
    })
}

fn setup() -> Setup {
    let setup = create(FakeHost::new()).expect("created");
    setup.host.take_calls();
    setup
}

impl Setup {
    pub(super) fn read<const N: usize>(&self, offset: u16) -> [u8; N] {
        let mut data = [0; N];
        self.function.read_config(offset, &mut data);
        data
    }

    pub(super) fn write(&self, offset: u16, data: &[u8]) -> ConfigChange {
        self.function.write_config(offset, data)
    }

    pub(super) fn read_bar<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0; N];
        self.function.read_bar(0, offset, &mut data);
        data
    }

    /// What the root complex does after a change.
    pub(super) fn decode(&self) {
        self.function.windows_changed(&self.function.windows());
    }

    /// BAR 0 at 4 GiB, BAR 3 at e0000100, decoded.
    pub(super) fn place(&self) {
        self.function.assign_bar(0, 1 << 32);
        self.function.assign_bar(3, 0xe000_0100);
        self.write(4, &[2, 0]);
        self.decode();
    }

    pub(super) fn write_entry(&self, vector: u64, data: u8, masked: bool) {
        let at = 0x2000 + 16 * vector;
        self.function
            .write_bar(0, at, &[0, 0, 0xe0, 0xfe, 0, 0, 0, 0]);
        self.function
            .write_bar(0, at + 8, &[data, 0, 0, 0, masked.into(), 0, 0, 0]);
    }
}

fn wait_for(line: &FakeLine, levels: &[bool]) {
    for _ in 0..10_000 {
        if *line.levels.lock().expect("levels") == levels {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    panic!("the line does not follow: {levels:?}");
}

pub(super) fn message(data: u32) -> Option<MsiMessage> {
    Some(MsiMessage {
        address: 0xfee0_0000,
        data,
    })
}

#[test]
fn the_device_is_reset_first_and_its_memory_switched_on_for_good() {
    let setup = create(FakeHost::new()).expect("created");
    let calls = setup.host.take_calls();
    assert_eq!(calls.first(), Some(&Call::Reset));
    // Memory Space, and SERR as the host had it; no bus master.
    let command = Call::Write(CONFIG, 4, vec![0x02, 0x01]);
    assert_eq!(calls.last(), Some(&command));
    assert!(setup.function.has_reset());
    setup.host.take_calls();
    assert_eq!(setup.write(4, &[6, 0]).bus_master, Some(true));
    setup.write(4, &[0, 4]);
    let written = [[0x06, 0x01], [0x02, 0x05]];
    let written = written.map(|bytes| Call::Write(CONFIG, 4, bytes.to_vec()));
    assert_eq!(setup.host.take_calls(), written);
}

#[test]
fn a_device_of_the_host_that_cannot_be_migrated_cannot_be_parked() {
    let setup = create(FakeHost::new()).expect("created");
    let refused = setup.function.parkable().expect_err("its DMA goes on");
    assert!(refused.contains("device of the host"), "{refused}");
    let refused = setup.function.save().expect_err("its state is the host's");
    assert!(refused.to_string().contains("VFIO migration"), "{refused}");
}

#[test]
fn bridges_and_devices_that_are_gone_are_refused() {
    let host = FakeHost::new();
    host.config.lock().expect("config")[0x0e] = 0x81;
    let error = create(host).err().expect("a bridge").to_string();
    assert!(
        error.contains("0000:01:00.0") && error.contains("0x81"),
        "{error}"
    );
    let host = FakeHost::new();
    host.config.lock().expect("config").fill(0xff);
    assert!(matches!(create(host), Err(VfioPciError::Gone { .. })));
    let host = FakeHost::new();
    host.broken.store(true, Ordering::Relaxed);
    assert!(matches!(create(host), Err(VfioPciError::Io { .. })));
}

#[test]
fn a_conventional_device_has_256_bytes_of_configuration_space() {
    let mut host = FakeHost::new();
    host.config_size = 256;
    host.config.lock().expect("config")[0x41] = 0xc0; // PCI Express is not in the list
    let setup = create(host).expect("created");
    assert_eq!(setup.read(0x100), [0; 4]);
    assert_eq!(setup.read(0xffc), [0; 4]);
}

#[test]
fn pages_without_table_and_pending_bits_are_mapped_where_the_guest_decodes_them() {
    let setup = setup();
    assert_eq!(setup.mappings.sorted(), []);
    setup.place();
    assert_eq!(
        setup.mappings.sorted(),
        [(1 << 32, 0x2000)],
        "BAR 3 is too small"
    );
    setup.write(4, &[0, 0]);
    setup.decode();
    assert_eq!(setup.mappings.sorted(), []);
    setup.write(4, &[2, 0]);
    setup.write(0x14, &[2, 0, 0, 0]);
    setup.decode();
    assert_eq!(setup.mappings.sorted(), [(2 << 32, 0x2000)]);
}

#[test]
fn bars_leave_the_guest_before_the_device_leaves_d0_and_come_back_after() {
    let setup = setup();
    setup.place();
    setup.host.take_calls();
    let windows = setup.function.windows();
    assert!(setup.write(0x64, &[3, 0]).decode);
    // Even before the root complex decodes; and a decoding that began before finds the device
    // silent.
    assert_eq!(setup.mappings.sorted(), []);
    setup.function.windows_changed(&windows);
    assert_eq!(setup.mappings.sorted(), []);
    setup.decode();
    assert_eq!(setup.function.windows(), []);
    let d3 = Call::Write(CONFIG, 0x64, vec![0x0b, 0x01]);
    assert_eq!(setup.host.take_calls(), [d3], "other bits stay as they are");
    assert!(setup.write(0x64, &[0, 0]).decode);
    setup.decode();
    assert_eq!(setup.mappings.sorted(), [(1 << 32, 0x2000)]);
}

#[test]
fn bars_of_a_device_that_does_not_come_back_stay_out_of_the_guest_until_it_is_reset() {
    let setup = setup();
    setup.place();
    setup.write(0x64, &[3, 0]);
    setup.decode();
    // It stays in D3, whatever it is told.
    setup.host.broken.store(true, Ordering::Relaxed);
    setup.write(0x64, &[0, 0]);
    setup.host.broken.store(false, Ordering::Relaxed);
    setup.decode();
    assert_eq!(setup.function.windows().len(), 2, "they can be trapped");
    assert_eq!(setup.mappings.sorted(), []);
    // A reset that does not give its memory back.
    setup.host.config.lock().expect("config")[0x64] = 0x0b;
    setup.host.broken.store(true, Ordering::Relaxed);
    setup.write(0x88, &[0x10, 0xa8]);
    setup.host.broken.store(false, Ordering::Relaxed);
    setup.place();
    assert_eq!(setup.mappings.sorted(), []);
    // One that does.
    setup.host.config.lock().expect("config")[0x64] = 0x08;
    setup.write(0x88, &[0x10, 0xa8]);
    setup.place();
    assert_eq!(setup.mappings.sorted(), [(1 << 32, 0x2000)]);
}

#[test]
fn the_table_is_ours_and_the_rest_of_the_bar_is_the_devices() {
    let setup = setup();
    setup.host.take_calls();
    setup.write_entry(64, 0x77, true);
    assert_eq!(setup.host.take_calls(), []);
    assert_eq!(setup.read_bar(0x2408), [0x77, 0, 0, 0, 1, 0, 0, 0]);
    assert_eq!(setup.read_bar(0x2000), [0; 4]);
    assert_eq!(setup.read_bar(0x200c), [1, 0, 0, 0], "masked at first");
    assert_eq!(setup.read_bar(0x2410), [0x5a; 4], "there is no entry 65");
    assert_eq!(setup.read_bar(0x1ffc), [0x5a; 4]);
    assert_eq!(setup.read_bar(0x3000), [0; 8]);
    setup.function.write_bar(0, 0x3000, &[0xff; 8]);
    assert_eq!(setup.host.take_calls(), []);
    setup.function.write_bar(0, 0x10, &[1, 2, 3, 4]);
    let write = Call::Write(0, 0x10, vec![1, 2, 3, 4]);
    assert_eq!(setup.host.take_calls(), [write]);
}

#[test]
fn msix_as_linux_enables_it() {
    let setup = setup();
    setup.write(0x42, &[0, 0xc0]);
    assert_eq!(
        setup.host.take_calls(),
        [Call::Arm(IrqKind::Msix, 0, vec![false])]
    );
    for vector in 0..3 {
        setup.write_entry(vector, 0x30 + u8::try_from(vector).expect("small"), false);
    }
    assert_eq!(setup.routes.alive(), 0, "the function is masked");
    setup.write(0x42, &[0, 0x80]);
    assert_eq!(
        setup.routes.messages(),
        [message(0x30), message(0x31), message(0x32)]
    );
    // One vector masked; its event pends.
    setup.write_entry(1, 0x31, true);
    assert_eq!(
        setup.routes.messages(),
        [message(0x30), None, message(0x32)]
    );
    setup.host.signal(IrqKind::Msix, 1);
    assert_eq!(setup.read_bar(0x3000), [2, 0, 0, 0, 0, 0, 0, 0]);
    setup.write_entry(1, 0x55, false);
    assert_eq!(setup.read_bar(0x3000), [0; 8]);
    assert_eq!(
        setup.routes.messages(),
        [message(0x30), message(0x55), message(0x32)]
    );
    // The whole function masked, then off.
    setup.write(0x42, &[0, 0xc0]);
    assert_eq!(setup.routes.messages(), [None; 3]);
    setup.host.take_calls();
    setup.write(0x42, &[0, 0]);
    assert_eq!(setup.host.take_calls(), [Call::Disarm(IrqKind::Msix)]);
    assert_eq!(setup.routes.alive(), 0);
}

#[test]
fn a_write_across_two_entries_is_followed_in_both() {
    let setup = setup();
    setup.write(0x42, &[0, 0x80]);
    setup.write_entry(0, 0x30, true);
    setup.write_entry(1, 0x31, false);
    // Control of entry 0 and the address of entry 1.
    setup
        .function
        .write_bar(0, 0x200c, &[0, 0, 0, 0, 0, 0x10, 0xe0, 0xfe]);
    let moved = MsiMessage {
        address: 0xfee0_1000,
        data: 0x31,
    };
    assert_eq!(setup.routes.messages(), [Some(moved), message(0x30)]);
}

#[test]
fn msi_sends_one_message_per_vector_with_its_number_in_the_data() {
    let setup = setup();
    setup.write(0xc4, &[0, 0, 0xe0, 0xfe, 0, 0, 0, 0, 0x43, 0]);
    setup.write(0xd0, &[0b1000]);
    setup.write(0xc2, &[0x21, 0]);
    assert_eq!(
        setup.host.take_calls(),
        [Call::Arm(IrqKind::Msi, 0, vec![true; 4])]
    );
    assert_eq!(
        setup.routes.messages(),
        [message(0x40), message(0x41), message(0x42), None]
    );
    setup.host.signal(IrqKind::Msi, 3);
    assert_eq!(setup.read(0xd4), [8, 0, 0, 0]);
    setup.write(0xd0, &[0b0001]);
    assert_eq!(
        setup.routes.messages(),
        [None, message(0x41), message(0x42), message(0x43)]
    );
    assert_eq!(setup.read(0xd4), [0; 4]);
    setup.write(0xc2, &[0x01, 0]);
    assert_eq!(setup.routes.alive(), 1, "one vector now");
    setup.write(0xc2, &[0x71, 0]);
    assert_eq!(setup.routes.alive(), 4, "never more than offered");
}

#[test]
fn one_kind_of_interrupt_is_on_at_a_time_and_msix_comes_first() {
    let setup = setup();
    let line = Arc::new(FakeLine::default());
    assert_eq!(setup.read(0x3d), [0]);
    assert!(setup.function.connect_intx(line.clone()));
    assert!(!setup.function.connect_intx(line));
    assert_eq!(setup.read(0x3d), [1]);
    setup.write(4, &[2, 0]);
    setup.write(0xc2, &[1, 0]);
    setup.write(0x42, &[0, 0x80]);
    setup.write(0x42, &[0, 0]);
    setup.write(0xc2, &[0, 0]);
    setup.write(4, &[0, 0]);
    let calls = setup.host.take_calls();
    let calls: Vec<_> = calls
        .into_iter()
        .filter(|call| !matches!(call, Call::Write(..)))
        .collect();
    assert_eq!(
        calls,
        [
            Call::Arm(IrqKind::Intx, 0, vec![true]),
            Call::Disarm(IrqKind::Intx),
            Call::Arm(IrqKind::Msi, 0, vec![true]),
            Call::Disarm(IrqKind::Msi),
            Call::Arm(IrqKind::Msix, 0, vec![false]),
            Call::Disarm(IrqKind::Msix),
            Call::Arm(IrqKind::Msi, 0, vec![true]),
            Call::Disarm(IrqKind::Msi),
            Call::Arm(IrqKind::Intx, 0, vec![true]),
            Call::Disarm(IrqKind::Intx),
        ]
    );
}

#[test]
fn a_device_whose_pin_the_host_cannot_use_has_none() {
    let mut host = FakeHost::new();
    host.irqs.remove(&IrqKind::Intx);
    let setup = create(host).expect("created");
    assert!(!setup.function.connect_intx(Arc::new(FakeLine::default())));
    assert_eq!(setup.read(0x3d), [0]);
}

#[test]
fn the_pin_reaches_the_line_through_the_loop_and_its_end_reaches_the_host() {
    let setup = setup();
    let line = Arc::new(FakeLine::default());
    setup.function.connect_intx(line.clone());
    setup.write(4, &[2, 0]);
    setup.host.take_calls();
    setup.host.signal(IrqKind::Intx, 0);
    wait_for(&line, &[true]);
    let owner = setup.function.end_of_interrupt().upgrade().expect("alive");
    owner.interrupt_ended();
    assert_eq!(*line.levels.lock().expect("levels"), [true, false]);
    assert_eq!(setup.host.take_calls(), [Call::Unmask]);
}

#[test]
fn an_interrupt_that_was_held_back_by_interrupt_disable_is_not_lost() {
    let setup = setup();
    let line = Arc::new(FakeLine::default());
    setup.function.connect_intx(line.clone());
    setup.write(4, &[2, 0]);
    setup.host.signal(IrqKind::Intx, 0);
    wait_for(&line, &[true]);
    setup.write(4, &[2, 4]);
    wait_for(&line, &[true, false]);
    setup.write(4, &[2, 0]);
    wait_for(&line, &[true, false, true]);
}

#[test]
fn a_function_level_reset_resets_the_device_and_everything_that_the_guest_set_up() {
    let setup = setup();
    setup.place();
    setup.write_entry(0, 0x30, false);
    setup.write(0x42, &[0, 0x80]);
    setup.write(0x3c, &[9]);
    setup.host.take_calls();
    let change = setup.write(0x88, &[0x10, 0xa8]);
    assert!(change.function_reset && change.decode);
    let calls = setup.host.take_calls();
    assert_eq!(calls.first(), Some(&Call::Disarm(IrqKind::Msix)));
    assert!(calls.contains(&Call::Reset));
    assert_eq!(calls.last(), Some(&Call::Write(CONFIG, 4, vec![2, 1])));
    assert_eq!((setup.routes.alive(), setup.mappings.sorted()), (0, vec![]));
    assert_eq!(setup.read(0x42), [0x40, 0]);
    assert_eq!(setup.read_bar(0x200c), [1, 0, 0, 0]);
    assert_eq!(setup.read(0x3c), [0]);
    assert_eq!(setup.function.windows(), []);
    setup.place();
    assert_eq!(setup.mappings.sorted(), [(1 << 32, 0x2000)]);
}

#[test]
fn only_harmless_bits_of_device_control_reach_the_host() {
    let setup = setup();
    setup.write(0x88, &[0xef, 0x57]);
    // 3f 29 at the host: errors and payload stay, relaxed ordering off, 4096-byte reads, no-snoop
    // off.
    let write = Call::Write(CONFIG, 0x88, vec![0x2f, 0x51]);
    assert_eq!(setup.host.take_calls(), [write]);
    assert_eq!(setup.read(0x88), [0x0f, 0x51]);
}

#[test]
fn a_reset_takes_back_what_the_guest_did_to_device_control() {
    let setup = setup();
    let at_first = setup.read::<2>(0x88);
    setup.write(0x88, &[0x00, 0x50]);
    assert_ne!(setup.read::<2>(0x88), at_first);
    setup.host.take_calls();
    setup.function.reset();
    assert_eq!(setup.read::<2>(0x88), at_first);
    // 3f 29, as the host had it.
    let write = Call::Write(CONFIG, 0x88, vec![0x3f, 0x29]);
    assert!(setup.host.take_calls().contains(&write));
    setup.function.reset();
    assert!(!setup.host.take_calls().contains(&write), "once");
}

/// The root complex asks all functions for their windows whenever one of them changes.
#[test]
fn windows_are_known_while_the_device_is_being_reset() {
    let setup = setup();
    setup.place();
    let before = setup.function.windows();
    assert_eq!(before.len(), 2);
    setup.host.take_calls();
    let hold = setup.host.hold.lock().expect("hold");
    std::thread::scope(|scope| {
        scope.spawn(|| setup.write(0x88, &[0x10, 0xa8]));
        while !setup
            .host
            .calls
            .lock()
            .expect("calls")
            .contains(&Call::Reset)
        {
            std::thread::yield_now();
        }
        let (send, windows) = std::sync::mpsc::channel();
        let function = Arc::clone(&setup.function);
        scope.spawn(move || send.send(function.windows()));
        let windows = windows.recv_timeout(std::time::Duration::from_secs(60));
        drop(hold);
        assert_eq!(windows, Ok(before));
    });
    assert_eq!(setup.function.windows(), []);
}

#[test]
fn a_platform_reset_stops_the_device_first() {
    let setup = setup();
    setup.write(4, &[6, 0]);
    setup.host.take_calls();
    setup.function.quiesce();
    assert_eq!(
        setup.host.take_calls(),
        [Call::Write(CONFIG, 4, vec![2, 1])]
    );
    setup.function.reset();
    assert!(setup.host.take_calls().contains(&Call::Reset));
    assert_eq!(setup.read(4), [0, 0]);
}

#[test]
fn a_device_that_cannot_be_reset_is_only_stopped() {
    let mut host = FakeHost::new();
    host.has_reset = false;
    let setup = create(host).expect("created");
    assert!(!setup.function.has_reset());
    setup.write(4, &[6, 0]);
    setup.write(0x88, &[0, 0x80]);
    assert_eq!(setup.read(4), [6, 0], "there is no function-level reset");
    setup.host.take_calls();
    setup.function.reset();
    let stop = Call::Write(CONFIG, 4, vec![2, 1]);
    // What the guest did to device control is taken back.
    let control = Call::Write(CONFIG, 0x88, vec![0x3f, 0x29]);
    assert_eq!(setup.host.take_calls(), [stop.clone(), control, stop]);
}

#[test]
fn a_reset_wakes_a_device_that_cannot_be_reset() {
    let mut host = FakeHost::new();
    host.has_reset = false;
    let setup = create(host).expect("created");
    setup.place();
    setup.write(0x64, &[3, 0]);
    setup.decode();
    setup.host.take_calls();
    setup.function.reset();
    let awake = Call::Write(CONFIG, 0x64, vec![0x08, 0x01]);
    assert_eq!(setup.host.take_calls().first(), Some(&awake));
    setup.place();
    assert_eq!(setup.mappings.sorted(), [(1 << 32, 0x2000)]);
}

#[test]
fn a_device_that_fails_reads_as_ones_and_nothing_panics() {
    let setup = setup();
    setup.place();
    setup.host.broken.store(true, Ordering::Relaxed);
    assert_eq!(setup.read_bar(0x10), [0xff; 4]);
    assert_eq!(setup.read(0x50), [0xff; 4]);
    for offset in (0..0x1000).step_by(2) {
        setup.write(offset, &[0xff, 0xff]);
        setup.write(offset, &[0, 0]);
    }
    for offset in (0..0x4000).step_by(8) {
        setup.function.write_bar(0, offset, &[0; 8]);
    }
    setup.function.reset();
    assert_eq!(setup.routes.alive(), 0);
}

#[test]
fn a_guest_that_switches_and_masks_without_end_uses_up_nothing() {
    let setup = setup();
    for round in 0..200 {
        setup.write(0x42, &[0, 0x80]);
        for vector in 0..65 {
            setup.write_entry(vector, round, false);
        }
        assert_eq!(setup.routes.alive(), 65);
        setup.write(0x42, &[0, if round % 2 == 0 { 0 } else { 0xc0 }]);
        setup.host.take_calls();
    }
    setup.write(0x42, &[0, 0]);
    assert_eq!(setup.routes.alive(), 0);
}

#[test]
fn a_function_that_goes_away_leaves_the_device_silent() {
    let rest = setup();
    rest.place();
    rest.write(4, &[6, 0]);
    rest.write_entry(0, 0x30, false);
    rest.write(0x42, &[0, 0x80]);
    rest.host.take_calls();
    let (host, routes, mappings) = (
        rest.host.clone(),
        rest.routes.clone(),
        rest.mappings.clone(),
    );
    drop(rest);
    assert_eq!(
        host.take_calls(),
        [
            Call::Disarm(IrqKind::Msix),
            Call::Write(CONFIG, 4, vec![2, 1])
        ]
    );
    assert_eq!((routes.alive(), mappings.sorted()), (0, vec![]));
}

#[test]
fn behind_a_port_it_is_an_endpoint_with_a_link() {
    let host = Arc::new(FakeHost::new());
    let bdf = Bdf::new(1, 0, 0).expect("address");
    let (routes, mappings) = (Arc::<FakeRoutes>::default(), Arc::<FakeMappings>::default());
    let function = VfioPci::with_host(
        bdf,
        host,
        Shown::default(),
        routes,
        mappings,
        (None, &FakeLoop),
    )
    .expect("created");
    let mut data = [0; 2];
    function.read_config(0x82, &mut data);
    assert_eq!(data, [0x02, 0]);
    function.read_config(0x92, &mut data);
    assert_eq!(
        data,
        [0x43, 0x10],
        "the speed and width that the host's link has"
    );
}

#[derive(Clone, Debug)]
enum Action {
    Config(u16, Vec<u8>),
    Bar(usize, u64, Vec<u8>),
    Decode,
    Signal(u32),
    End,
    Reset,
}

fn action() -> impl proptest::strategy::Strategy<Value = Action> {
    use proptest::prelude::*;
    let bytes = || proptest::collection::vec(prop_oneof![Just(0), Just(0xff), any::<u8>()], 1..9);
    // Where something happens: command, BARs, MSI-X, power, device control, MSI; and anywhere.
    let register = prop_oneof![
        4_u16..6,
        0x10_u16..0x28,
        0x40_u16..0x4c,
        0x60_u16..0x68,
        0x80_u16..0x8c,
        0xc0_u16..0xd8,
        0_u16..0x1000
    ];
    let offset = prop_oneof![0x2000_u64..0x2420, 0x3000_u64..0x3010, 0_u64..0x4000];
    prop_oneof![
        8 => (register, bytes()).prop_map(|(at, data)| Action::Config(at, data)),
        8 => (0_usize..6, offset, bytes()).prop_map(|(bar, at, data)| Action::Bar(bar, at, data)),
        2 => Just(Action::Decode),
        2 => (0_u32..65).prop_map(Action::Signal),
        1 => Just(Action::End),
        1 => Just(Action::Reset),
    ]
}

proptest::proptest! {
    #[test]
    fn whatever_a_guest_does_its_means_are_bounded_and_its_mappings_are_what_it_decodes(
        actions in proptest::collection::vec(action(), 1..60),
    ) {
        let setup = setup();
        setup.function.connect_intx(Arc::new(FakeLine::default()));
        setup.place();
        for action in actions {
            match action {
                Action::Config(at, data) => {
                    if setup.write(at, &data).decode {
                        setup.decode();
                    }
                }
                Action::Bar(bar, at, data) => {
                    setup.function.write_bar(bar, at, &data);
                    let mut data = data;
                    setup.function.read_bar(bar, at, &mut data);
                }
                Action::Decode => setup.decode(),
                Action::Signal(vector) => {
                    for kind in [IrqKind::Msi, IrqKind::Msix] {
                        if let Some(event) = setup.host.events.lock().expect("events").get(&(kind, vector)) {
                            event.write(1).expect("signalled");
                        }
                    }
                }
                Action::End => {
                    if let Some(owner) = setup.function.end_of_interrupt().upgrade() {
                        owner.interrupt_ended();
                    }
                }
                Action::Reset => {
                    setup.function.reset();
                    setup.decode();
                }
            }
            let mut data = [0; 64];
            setup.function.read_config(0xc0, &mut data);
            assert!(setup.routes.alive() <= 65);
            let windows = setup.function.windows();
            let first = windows.iter().find(|window| window.bar == 0);
            let expected: Vec<_> = first.map(|window| (window.base, 0x2000)).into_iter().collect();
            assert_eq!(setup.mappings.sorted(), expected);
            let host = setup.host.config.lock().expect("config");
            assert_eq!(host[4] & 2, 2, "Memory Space stays on in the host");
            assert!(expected.is_empty() || host[0x64] & 3 == 0, "nothing is mapped of a device that sleeps");
        }
    }
}
