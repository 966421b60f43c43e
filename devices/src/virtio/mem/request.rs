//! Requests of the driver, and answers (section 5.15.6).

/// Bytes of `struct virtio_mem_req`: type, 6 bytes of padding, address, number of blocks, padding.
pub(super) const REQUEST: usize = 24;
/// Bytes of `struct virtio_mem_resp`: type, 6 bytes of padding, state.
pub(super) const RESPONSE: usize = 10;

/// What the driver wants. An address is guest-physical, and a count one of blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    Plug { address: u64, count: u16 },
    Unplug { address: u64, count: u16 },
    UnplugAll,
    State { address: u64, count: u16 },
}

impl Request {
    /// `None` if there is no such request.
    pub(super) fn decode(bytes: [u8; REQUEST]) -> Option<Self> {
        let [k0, k1, _, _, _, _, _, _, rest @ ..] = bytes;
        let [a0, a1, a2, a3, a4, a5, a6, a7, c0, c1, ..] = rest;
        let address = u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]);
        let count = u16::from_le_bytes([c0, c1]);
        match u16::from_le_bytes([k0, k1]) {
            0 => Some(Self::Plug { address, count }),
            1 => Some(Self::Unplug { address, count }),
            2 => Some(Self::UnplugAll),
            3 => Some(Self::State { address, count }),
            _ => None,
        }
    }
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Response {
    Ack = 0,
    /// Not now: more would be plugged than is asked for.
    Nack = 1,
    /// Try again: the host does not do it.
    Busy = 2,
    Error = 3,
}

/// What blocks are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum State {
    Plugged = 0,
    Unplugged = 1,
    Mixed = 2,
}

/// What the driver is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    response: Response,
    state: u16,
}

impl Answer {
    pub(super) fn state(state: State) -> Self {
        Self {
            response: Response::Ack,
            state: state as u16,
        }
    }

    pub(super) fn encode(self) -> [u8; RESPONSE] {
        let [r0, r1] = (self.response as u16).to_le_bytes();
        let [s0, s1] = self.state.to_le_bytes();
        [r0, r1, 0, 0, 0, 0, 0, 0, s0, s1]
    }
}

impl From<Response> for Answer {
    fn from(response: Response) -> Self {
        Self { response, state: 0 }
    }
}
