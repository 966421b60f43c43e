//! Devices of the host for a machine that comes from another nido: in the place of those that it had there,
//! or to be plugged in once it runs. A machine that comes names no device of this host: whoever starts nido does.

use super::error::UsageError;
use crate::config::{FunctionConfig, FunctionKind, VfioConfig};

/// Puts `devices` in the place of those that `functions` has by the same name, which is `id`, or `addr` of those
/// without. Returns the others, which are to be plugged in later.
///
/// # Errors
/// One has no place, or is to be shown otherwise than it was; or no device of this host is given for one.
pub(super) fn place(
    devices: &[FunctionConfig],
    functions: &mut [FunctionConfig],
) -> Result<Vec<FunctionConfig>, UsageError> {
    let mut later = Vec::new();
    let mut placed = Vec::new();
    for device in devices {
        let FunctionKind::Vfio(here) = &device.kind else {
            continue;
        };
        let mut all = functions.iter_mut().enumerate();
        let there = all.find(|(_, function)| is_same(function, device));
        match there.map(|(index, function)| (index, &mut function.kind)) {
            Some((index, FunctionKind::Vfio(there))) => {
                take_place(there, here)?;
                placed.push(index);
            }
            _ if device.bus.is_some() => later.push(device.clone()),
            _ => {
                return Err(UsageError::Message(format!(
                    "{here}: the machine of --incoming has no such device: name it as it is named there, by id or addr, or a port \
                     that it is plugged into once the guest runs, by bus=PORT"
                )));
            }
        }
    }
    let left = functions
        .iter()
        .enumerate()
        .find_map(|(index, function)| match &function.kind {
            FunctionKind::Vfio(there) if !placed.contains(&index) => Some((function, there)),
            _ => None,
        });
    match left {
        None => Ok(later),
        Some((function, there)) => {
            let name = match (&function.id, function.device) {
                (Some(id), _) => format!("id={id}"),
                (None, Some(device)) => format!("addr={device:x}"),
                (None, None) => "id=ID, once it has one".to_owned(),
            };
            Err(UsageError::Message(format!(
                "the machine of --incoming has {there}: give it a device of this host, by `--device vfio-pci,{name},host=ADDRESS,iommufd={}`, \
                 or have the source unplug it (`unplug=ID`)",
                there.iommufd
            )))
        }
    }
}

fn is_same(there: &FunctionConfig, here: &FunctionConfig) -> bool {
    match (&there.id, &here.id) {
        (Some(there), Some(here)) => there == here,
        (None, None) => {
            let on_bus_0 = there.bus.is_none() && here.bus.is_none();
            on_bus_0 && there.device.is_some() && there.device == here.device
        }
        _ => false,
    }
}

/// The device is this host's; what the guest is shown of it stays.
fn take_place(there: &mut VfioConfig, here: &VfioConfig) -> Result<(), UsageError> {
    let shown = [
        ("pasid", there.pasid, here.pasid),
        ("ats", there.ats, here.ats),
        ("pri", there.pri, here.pri),
    ];
    let other = shown
        .iter()
        .find(|(_, there, here)| here.is_some() && here != there);
    if let Some((name, ..)) = other {
        return Err(UsageError::Message(format!(
            "{here}: {name} is part of the machine, which the machine of --incoming has; leave it out"
        )));
    }
    if there.iommufd != here.iommufd {
        return Err(UsageError::Message(format!(
            "{here}: it is on the iommufd `{}` in the machine of --incoming; write iommufd={0}",
            there.iommufd
        )));
    }
    there.device = here.device;
    there.needs_reset = here.needs_reset;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::testing::config;
    use crate::config::HostDevice;

    const PORT: &str = "--kernel k --object iommufd,id=i --device pcie-root-port,id=p";

    fn functions(options: &str) -> Vec<FunctionConfig> {
        let all = config(&format!("{PORT} {options}")).functions;
        all.into_iter()
            .filter(|function| function.kind != FunctionKind::RootPort)
            .collect()
    }

    fn hosts(functions: &[FunctionConfig]) -> Vec<String> {
        let devices = functions.iter().map(|function| match &function.kind {
            FunctionKind::Vfio(VfioConfig {
                device: HostDevice::Address(address),
                ..
            }) => address.to_string(),
            _ => "none".to_owned(),
        });
        devices.collect()
    }

    #[test]
    fn devices_of_this_host_take_the_place_of_those_of_the_same_name() {
        let mut machine = functions(
            "--device vfio-pci,id=one,host=0000:01:00.0,iommufd=i,ats=on --device edu \
             --device vfio-pci,addr=7,host=0000:02:00.0,iommufd=i",
        );
        let here = functions(
            "--device vfio-pci,addr=7,host=0000:82:00.0,iommufd=i --device vfio-pci,id=one,host=0000:81:00.0,iommufd=i \
             --device vfio-pci,id=two,host=0000:83:00.0,iommufd=i,bus=p",
        );
        let later = place(&here, &mut machine).expect("placed");
        assert_eq!(hosts(&machine), ["0000:81:00.0", "none", "0000:82:00.0"]);
        assert_eq!(hosts(&later), ["0000:83:00.0"]);
        let shown = machine.first().map(|function| function.kind.clone());
        assert!(
            matches!(shown, Some(FunctionKind::Vfio(device)) if device.ats == Some(true)),
            "what the guest is shown stays"
        );
    }

    #[test]
    fn no_device_of_this_host_is_one_that_only_the_machine_names() {
        let one = "--device vfio-pci,id=one,host=0000:01:00.0,iommufd=i";
        for (machine, here, part) in [
            (one, "", "vfio-pci,id=one,host=ADDRESS,iommufd=i"),
            (
                one,
                "--device vfio-pci,host=0000:81:00.0,iommufd=i",
                "no such device",
            ),
            (
                one,
                "--device vfio-pci,id=two,host=0000:81:00.0,iommufd=i,bus=p",
                "id=one",
            ),
            (
                one,
                "--device vfio-pci,id=one,host=0000:81:00.0,iommufd=i,ats=on",
                "ats is part",
            ),
            (
                "--device edu,id=one",
                "--device vfio-pci,id=one,host=0000:81:00.0,iommufd=i",
                "no such device",
            ),
        ] {
            let mut machine = functions(machine);
            let error = place(&functions(here), &mut machine).expect_err(here);
            assert!(error.to_string().contains(part), "{here}: {error}");
        }
    }
}
