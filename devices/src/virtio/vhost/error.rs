//! Why the kernel does not serve a device, with what helps.

use std::io;

/// Why the kernel has no such device for us.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The device node.
    #[error("cannot open {node}: {error}; {remedy}")]
    Node {
        /// Its path.
        node: &'static str,
        /// The system's reason.
        error: io::Error,
        /// What to do.
        remedy: String,
    },
    /// The kernel does not serve devices behind an IOMMU.
    #[error(
        "{node} has no IOTLB (VIRTIO_F_ACCESS_PLATFORM with IOTLB_MSG_V2), which a device behind intel-iommu needs; use Linux {since} or later"
    )]
    Iotlb {
        /// The path of the device node.
        node: &'static str,
        /// The version that has it.
        since: &'static str,
    },
    /// Packets are read after the guest may have unmapped them, and a device cannot be stopped before.
    #[error(
        "vhost_net was loaded with experimental_zcopytx={0}, with which it reads packets after invalidations of the IOMMU, and does not stop before the last is sent; reload it with experimental_zcopytx=0"
    )]
    ZeroCopy(String),
    /// Some other call.
    #[error("{node}: {what}: {error}")]
    Call {
        /// The path of the device node.
        node: &'static str,
        /// Which one.
        what: &'static str,
        /// The system's reason.
        error: io::Error,
    },
}

/// The system's reason.
pub(super) fn io_error(error: vhost::Error) -> io::Error {
    match error {
        vhost::Error::VhostOpen(error)
        | vhost::Error::IoctlError(error)
        | vhost::Error::IOError(error) => error,
        other => io::Error::other(other),
    }
}

/// Of a device node that cannot be opened, which `module` makes.
pub(super) fn node_error(node: &'static str, module: &str, error: vhost::Error) -> OpenError {
    let error = io_error(error);
    let remedy = match error.kind() {
        io::ErrorKind::PermissionDenied => {
            format!("give your user read and write access to it: setfacl -m u:$USER:rw {node}")
        }
        _ if matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)) => {
            "raise the limit of open files: ulimit -n".to_owned()
        }
        _ if error.raw_os_error() == Some(libc::ENOMEM) => {
            "the host has no memory left for it".to_owned()
        }
        _ => format!("load the module: modprobe {module}"),
    };
    OpenError::Node {
        node,
        error,
        remedy,
    }
}

/// Where vhost_net says whether it sends without copying.
pub(super) const ZERO_COPY: &str = "/sys/module/vhost_net/parameters/experimental_zcopytx";

/// By what [`ZERO_COPY`] says.
pub(super) fn refuse_zero_copy(parameter: io::Result<String>) -> Result<(), OpenError> {
    match parameter {
        Ok(value) if value.trim() != "0" => Err(OpenError::ZeroCopy(value.trim().to_owned())),
        // It may not have the parameter.
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_node_is_named_with_the_module_that_makes_it() {
        let missing = vhost::Error::VhostOpen(io::Error::from_raw_os_error(libc::ENOENT));
        let message = node_error("/dev/vhost-net", "vhost_net", missing).to_string();
        assert!(message.starts_with("cannot open /dev/vhost-net: No such file"));
        assert!(message.ends_with("modprobe vhost_net"), "{message}");
    }

    #[test]
    fn sending_without_copying_is_refused_with_the_remedy() {
        let parameter = |value: &str| refuse_zero_copy(Ok(value.to_owned()));
        assert!(parameter("0\n").is_ok());
        assert!(refuse_zero_copy(Err(io::ErrorKind::NotFound.into())).is_ok());
        let message = parameter("1\n").expect_err("refused").to_string();
        assert!(
            message.starts_with("vhost_net was loaded with experimental_zcopytx=1, with"),
            "{message}"
        );
        assert!(
            message.ends_with("reload it with experimental_zcopytx=0"),
            "{message}"
        );
    }

    #[test]
    fn a_node_without_permission_is_named_with_how_to_get_it() {
        let denied = vhost::Error::VhostOpen(io::Error::from_raw_os_error(libc::EACCES));
        let message = node_error("/dev/vhost-net", "vhost_net", denied).to_string();
        assert!(
            message.ends_with("setfacl -m u:$USER:rw /dev/vhost-net"),
            "{message}"
        );
    }
}
