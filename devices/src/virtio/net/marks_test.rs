//! What the network device writes to guest memory is marked: all of memory is compared.

use vm_memory::{Bytes as _, GuestAddress};

use super::Net;
use super::control::Control;
use super::multi_queue_test::Steps;
use super::net_test::{MAC, Wire, packet};
use crate::virtio::marks_test::{KINDS, assert_changed, changed, changed_by_use, watched};

const MRG_RXBUF: u64 = 1 << 15;

#[test]
fn received_packets_are_marked_in_all_of_their_buffers() {
    for features in KINDS {
        let (wire, peer) = Wire::pair();
        let watched = watched(Box::new(Net::new(Box::new(wire), Vec::new(), None, MAC)));
        let queues = watched.0.start_queues(features | MRG_RXBUF, 2);
        for buffer in [0x10_0f00, 0x20_0000, 0x30_0ff0] {
            queues[0].add(&watched.0, &[(buffer, 600, true)]);
        }
        queues[0].kick(&watched.0);
        watched.0.park();
        let changed = changed(&watched, &queues[0], || {
            peer.send(&packet(1500)).unwrap();
        });
        let pages = [0x10_0000, 0x10_1000, 0x20_0000, 0x30_0000, 0x30_1000];
        assert_changed(&changed, &pages, features);
    }
}

#[test]
fn answers_to_commands_are_marked() {
    let (first, second) = (Wire::pair(), Wire::pair());
    let control = Control::new(Box::new(Steps::default()), 2);
    let others = vec![Box::new(second.0) as _];
    let net = Net::new(Box::new(first.0), others, Some(control), MAC);
    let watched = watched(Box::new(net));
    // CTRL_VQ, MQ.
    let queue = watched.0.start_queues(1 << 17 | 1 << 22, 5).remove(4);
    let memory = &watched.0.memory;
    let put = |bytes: &[u8], at| memory.write_slice(bytes, GuestAddress(at)).unwrap();
    // VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, 2.
    put(&[4, 0, 2, 0], 0x10_0000);
    put(&[0xaa], 0x20_0000);
    let buffers = [(0x10_0000, 4, false), (0x20_0000, 1, true)];
    let changed = changed_by_use(&watched, &queue, &buffers);
    assert_eq!(changed, [0x5_c000, 0x20_0000]);
}
