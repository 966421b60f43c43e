//! What a machine chooses for its functions where the configuration leaves it open: places on the bus,
//! hardware addresses. Said, it is the same in a machine that is made again.

use anyhow::Context as _;
use devices::virtio::net::random_mac;
use pci::Bdf;

use crate::config::{FunctionConfig, FunctionKind, Served, VhostUserConfig};

/// The same functions with everything said.
///
/// # Errors
/// The host has no random numbers.
pub(super) fn settle(functions: &[FunctionConfig]) -> anyhow::Result<Vec<FunctionConfig>> {
    let mut settled = Vec::new();
    for (function, bdf) in places(functions) {
        let device = Some(bdf.device());
        settled.push(FunctionConfig {
            device,
            ..addressed(function)?
        });
    }
    for function in functions.iter().filter(|function| function.bus.is_some()) {
        settled.push(addressed(function)?);
    }
    Ok(settled)
}

/// The same function with a hardware address, if it has one.
///
/// # Errors
/// As of [`settle`].
pub(super) fn addressed(function: &FunctionConfig) -> anyhow::Result<FunctionConfig> {
    let mut function = function.clone();
    let mac = match &mut function.kind {
        FunctionKind::Net(net) => &mut net.mac,
        FunctionKind::VhostUser(VhostUserConfig {
            device: Served::Net { mac },
            ..
        }) => mac,
        _ => return Ok(function),
    };
    if mac.is_none() {
        let made = random_mac().context("cannot choose a MAC address; give one with mac=")?;
        *mac = Some(made);
    }
    Ok(function)
}

/// Where each function of bus 0 goes: to the device number that it asks for, or to the next one
/// that nobody asks for.
pub(super) fn places(functions: &[FunctionConfig]) -> impl Iterator<Item = (&FunctionConfig, Bdf)> {
    let on_bus_0 = functions.iter().filter(|function| function.bus.is_none());
    let taken: Vec<u8> = on_bus_0
        .clone()
        .filter_map(|function| function.device)
        .collect();
    let mut free = (1..32).filter(move |device| !taken.contains(device));
    on_bus_0.map_while(move |function| {
        let device = function.device.or_else(|| free.next())?;
        Some((function, Bdf::new(0, device, 0)?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NetConfig;

    #[test]
    fn functions_without_a_wish_fill_the_gaps_in_order() {
        let wish = |device| FunctionConfig {
            id: None,
            bus: None,
            device,
            kind: FunctionKind::Rng,
        };
        let behind = FunctionConfig {
            bus: Some("port".to_owned()),
            ..wish(None)
        };
        let functions = [
            behind,
            wish(None),
            wish(Some(2)),
            wish(None),
            wish(Some(1)),
            wish(None),
        ];
        let devices: Vec<u8> = places(&functions).map(|(_, bdf)| bdf.device()).collect();
        assert_eq!(devices, [3, 2, 4, 1, 5]);
    }

    #[test]
    fn what_is_settled_stays_where_it_is_and_has_an_address() {
        let net = FunctionConfig {
            id: None,
            bus: None,
            device: None,
            kind: FunctionKind::Net(NetConfig {
                tap: "tap0".to_owned(),
                mac: None,
                queues: None,
                vhost: false,
            }),
        };
        let rng = FunctionConfig {
            kind: FunctionKind::Rng,
            device: Some(1),
            ..net.clone()
        };
        let settled = settle(&[net, rng]).expect("random numbers");
        assert_eq!(
            settled.iter().map(|one| one.device).collect::<Vec<_>>(),
            [Some(2), Some(1)]
        );
        assert!(matches!(&settled[0].kind, FunctionKind::Net(net) if net.mac.is_some()));
        assert_eq!(settle(&settled).expect("nothing to choose"), settled);
    }
}
