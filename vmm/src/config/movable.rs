//! What keeps a machine where it is: it can be neither saved, nor moved, nor taken over from elsewhere.

use super::{Config, FunctionKind};

/// How a machine is to go on elsewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// By a snapshot, whenever somebody wants that.
    Saved,
    /// By a migration: devices of the host have others in their place there. Whether their drivers can do it is known
    /// when they are open.
    Moved,
    /// By an upgrade: it is another process of this host that has it then.
    Upgraded,
}

impl Config {
    /// Why such a machine cannot be saved or moved, with the option that it is for, if that is so.
    ///
    /// Whoever sends a machine looks, and whoever is sent one, before anything of it is opened.
    pub(crate) fn immovable(&self, way: Way) -> Option<String> {
        if way == Way::Upgraded && self.assigns() {
            return Some(
                "a machine with --object iommufd cannot be upgraded: what the host's IOMMU has of it is this process's; have it migrate \
                 to a nido on this host"
                    .to_owned(),
            );
        }
        self.functions.iter().find_map(|function| {
            let (option, why, remedy) = match &function.kind {
                FunctionKind::Vfio(_) if way == Way::Moved => return None,
                FunctionKind::Vfio(device) => (
                    device.to_string(),
                    "it is the host's",
                    match (&function.bus, &function.id) {
                        (Some(_), Some(id)) => format!("write `device-del {id}` before, or have it migrate"),
                        (Some(bus), None) => format!("write `device-del {bus}` before, or have it migrate"),
                        (None, _) => "start it with that behind a pcie-root-port, from where it can be taken before".to_owned(),
                    },
                ),
                FunctionKind::VhostUser(device) => (
                    device.to_string(),
                    "another process serves it",
                    "start it without that".to_owned(),
                ),
                FunctionKind::Disk(_)
                | FunctionKind::Net(_)
                | FunctionKind::Vsock(_)
                | FunctionKind::Rng
                | FunctionKind::Balloon(_)
                | FunctionKind::Memory(_)
                | FunctionKind::Console
                | FunctionKind::Edu(_)
                | FunctionKind::RootPort => return None,
            };
            Some(format!(
                "a machine with {option} cannot be {}: {why}; {remedy}",
                match way {
                    Way::Saved => "saved",
                    Way::Moved => "moved",
                    Way::Upgraded => "upgraded",
                }
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Way;
    use crate::cli::testing;

    fn config(options: &str) -> super::Config {
        testing::config(&format!("--kernel k {options}"))
    }

    #[test]
    fn what_is_somebody_elses_keeps_a_machine_where_it_is_and_is_named() {
        let unit = "--object iommufd,id=i --device intel-iommu";
        let port = "--device pcie-root-port,id=p";
        for (options, named) in [
            (
                &format!("{unit} --device vfio-pci,host=0000:01:00.0,iommufd=i") as &str,
                "--device vfio-pci,host=0000:01:00.0",
            ),
            (
                &format!(
                    "{unit} {port} --device vfio-pci,host=0000:01:00.0,iommufd=i,bus=p,id=one"
                ),
                "device-del one",
            ),
            (
                &format!("{unit} {port} --device vfio-pci,host=0000:01:00.0,iommufd=i,bus=p"),
                "device-del p",
            ),
            ("--disk vhost-user=/s", "--disk vhost-user=/s"),
            ("--net vhost-user=/s", "--net vhost-user=/s"),
        ] {
            let why = config(options).immovable(Way::Saved).expect(options);
            assert!(why.contains(named), "{options}: {why}");
            let moved = config(options).immovable(Way::Moved);
            assert_eq!(moved.is_none(), options.contains("vfio-pci"), "{options}");
        }
        let whole = "--disk path=/d --net tap=t --net tap=u,vhost=on --vsock cid=3 --device edu --device virtio-rng --device virtio-balloon --device virtio-mem,size=1G --device pcie-root-port,id=p \
             --device intel-iommu,x-scalable-mode=on --memory 1G,shared=on";
        assert_eq!(config(whole).immovable(Way::Saved), None);
        assert_eq!(config(unit).immovable(Way::Saved), None);
        assert_eq!(config(whole).immovable(Way::Upgraded), None);
        let why = config(unit).immovable(Way::Upgraded).expect("iommufd");
        assert!(why.contains("--object iommufd"), "{why}");
    }
}
