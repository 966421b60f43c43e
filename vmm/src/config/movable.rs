//! What keeps a machine where it is: it can be neither saved, nor moved, nor taken over from elsewhere.

use super::{Config, FunctionKind};

impl Config {
    /// Why such a machine cannot be saved or moved, with the option that it is for, if that is so.
    ///
    /// Whoever sends a machine looks, and whoever is sent one, before anything of it is opened.
    pub(crate) fn immovable(&self) -> Option<String> {
        if self.assigns() {
            return Some(
                "a machine with --object iommufd cannot be saved or moved: what its remapping unit offers follows the host's devices"
                    .to_owned(),
            );
        }
        let mut kinds = self.functions.iter().map(|function| &function.kind);
        kinds.find_map(|kind| {
            let (option, why) = match kind {
                FunctionKind::Vfio(device) => (device.to_string(), "it is the host's"),
                FunctionKind::VhostUser(device) => {
                    (device.to_string(), "another process serves it")
                }
                FunctionKind::Disk(_)
                | FunctionKind::Net(_)
                | FunctionKind::Vsock(_)
                | FunctionKind::Rng
                | FunctionKind::Console
                | FunctionKind::Edu(_)
                | FunctionKind::RootPort => return None,
            };
            Some(format!(
                "a machine with {option} cannot be saved or moved: {why}; start it without that"
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
        for (options, named) in [
            ("--object iommufd,id=i", "--object iommufd"),
            (
                &format!("{unit} --device vfio-pci,host=0000:01:00.0,iommufd=i") as &str,
                "--object iommufd",
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
    }
}
