//! What keeps a machine where it is: it can be neither saved, nor moved, nor taken over from elsewhere.

use super::{Config, FunctionKind};

impl Config {
    /// Why such a machine cannot be saved or moved, with the option that it is for, if that is so.
    ///
    /// Whoever sends a machine looks, and whoever is sent one, before anything of it is opened.
    pub(crate) fn immovable(&self) -> Option<String> {
        self.functions.iter().find_map(|function| {
            let (option, why, remedy) = match &function.kind {
                FunctionKind::Vfio(device) => (
                    device.to_string(),
                    "it is the host's",
                    match (&function.bus, &function.id) {
                        (Some(_), Some(id)) => format!("write `device-del {id}` before, or `unplug={id}` behind `migrate`"),
                        (Some(bus), None) => format!("write `device-del {bus}` before, or `unplug={bus}` behind `migrate`"),
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
                | FunctionKind::Console
                | FunctionKind::Edu(_)
                | FunctionKind::RootPort => return None,
            };
            Some(format!(
                "a machine with {option} cannot be saved or moved: {why}; {remedy}"
            ))
        })
    }
}

#[cfg(test)]
mod tests {
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
                "unplug=one",
            ),
            (
                &format!("{unit} {port} --device vfio-pci,host=0000:01:00.0,iommufd=i,bus=p"),
                "unplug=p",
            ),
            ("--disk vhost-user=/s", "--disk vhost-user=/s"),
            ("--net vhost-user=/s", "--net vhost-user=/s"),
        ] {
            let why = config(options).immovable().expect(options);
            assert!(why.contains(named), "{options}: {why}");
        }
        let whole = "--disk path=/d --net tap=t --net tap=u,vhost=on --vsock cid=3 --device edu --device virtio-rng --device pcie-root-port,id=p \
             --device intel-iommu,x-scalable-mode=on --memory 1G,shared=on";
        assert_eq!(config(whole).immovable(), None);
        assert_eq!(config(unit).immovable(), None);
    }
}
