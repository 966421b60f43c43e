//! A machine as the command line that makes it: what a snapshot keeps of it.
//!
//! The parser is the only one who has to know what options mean, and a snapshot is readable for as long
//! as its command line is.

use std::path::Path;

use devices::edu::EduOptions;
use devices::virtio::balloon::BalloonOptions;

use super::intel_iommu::settled_text;
use crate::config::{
    Config, DiskConfig, FileSource, FunctionConfig, FunctionKind, HostDevice, IommuConfig,
    IommufdConfig, MemoryConfig, MemoryDeviceConfig, NetConfig, Served, VfioConfig,
    VhostUserConfig,
};

/// The options that describe `config`: parsed, they are it again. `None` if it has what no option can
/// say: a path that is no text.
pub(crate) fn written(config: &Config) -> Option<Vec<String>> {
    let options = options(config);
    let parsed = super::configuration(&options, "it").ok()?;
    (parsed == *config).then_some(options)
}

fn options(config: &Config) -> Vec<String> {
    let Config {
        kernel,
        initramfs,
        cmdline,
        memory,
        cpus,
        functions,
        iommufds,
        iommu,
        reboot,
        control,
        // How it was made is none of its options.
        claimed_later: _,
        plugged_later: _,
    } = config;
    let mut options = vec![
        format!("--kernel={}", kernel.display()),
        format!("--cmdline={cmdline}"),
        format!("--memory={}", self::memory(*memory)),
        format!("--cpus={cpus}"),
    ];
    let initramfs = initramfs.as_deref();
    options.extend(initramfs.map(|path| format!("--initramfs={}", path.display())));
    options.extend(
        iommufds
            .iter()
            .map(|one| format!("--object={}", iommufd(one))),
    );
    options.extend(iommu.map(|unit| format!("--device={}", self::iommu(&unit))));
    options.extend(
        functions
            .iter()
            .map(|one| format!("--device={}", function(one))),
    );
    if !reboot {
        options.push("--no-reboot".to_owned());
    }
    let control = control.as_deref();
    options
        .extend(control.map(|path| format!("--control={}", List::default().path("path", path).0)));
    options
}

/// A list of keys, with a first element that is none.
#[derive(Default)]
struct List(String);

impl List {
    fn of(name: &str) -> Self {
        Self(name.to_owned())
    }

    fn key(mut self, key: &str, value: impl std::fmt::Display) -> Self {
        if !self.0.is_empty() {
            self.0.push(',');
        }
        let value = value.to_string().replace(',', ",,");
        self.0.push_str(&format!("{key}={value}"));
        self
    }

    fn some(self, key: &str, value: Option<impl std::fmt::Display>) -> Self {
        match value {
            Some(value) => self.key(key, value),
            None => self,
        }
    }

    fn path(self, key: &str, path: &Path) -> Self {
        self.key(key, path.display())
    }

    fn switch(self, key: &str, on: bool) -> Self {
        self.key(key, if on { "on" } else { "off" })
    }

    fn auto(self, key: &str, on: Option<bool>) -> Self {
        match on {
            Some(on) => self.switch(key, on),
            None => self,
        }
    }

    fn mac(self, mac: Option<[u8; 6]>) -> Self {
        let text = mac.map(|mac| mac.map(|byte| format!("{byte:02x}")).join(":"));
        self.some("mac", text)
    }
}

fn memory(config: MemoryConfig) -> String {
    let MemoryConfig {
        size,
        hugepages,
        prefault,
        shared,
    } = config;
    let list = List::default()
        .key("size", size)
        .switch("hugepages", hugepages);
    list.switch("prefault", prefault).switch("shared", shared).0
}

fn iommufd(config: &IommufdConfig) -> String {
    let list = List::of("iommufd").key("id", &config.id);
    let list = match &config.source {
        FileSource::Path(path) => list.path("path", path),
        FileSource::Descriptor(fd) => list.key("fd", fd),
    };
    list.switch("hugepages", config.huge_pages).0
}

fn iommu(config: &IommuConfig) -> String {
    let IommuConfig {
        address_width,
        scalable,
        first_stage,
        intremap,
        caching_mode,
        device_iotlb,
        pasid_bits,
        page_requests,
        snoop_control,
        page_walk_coherency,
        keep_translations,
        shadow_memory,
        bound_pasids,
        settled,
    } = *config;
    List::of("intel-iommu")
        .key("aw-bits", address_width.bits())
        .switch("x-scalable-mode", scalable)
        .auto("x-flts", first_stage)
        .switch("intremap", intremap)
        .auto("caching-mode", caching_mode)
        .switch("device-iotlb", device_iotlb)
        .key("pasid-bits", pasid_bits)
        .switch("svm", page_requests)
        .switch("x-snoop-control", snoop_control)
        .switch("x-page-walk-coherency", page_walk_coherency)
        .switch("x-keep-translations", keep_translations)
        .some("shadow-memory", shadow_memory)
        .some("bound-pasids", bound_pasids)
        .some("x-settled", settled.as_ref().map(settled_text))
        .0
}

fn function(config: &FunctionConfig) -> String {
    let FunctionConfig {
        id,
        bus,
        device,
        kind,
    } = config;
    // A disk has its name as its serial number, too.
    let list = self::kind(kind).some("id", id.as_deref());
    let device = device.map(|device| format!("{device:x}"));
    list.some("bus", bus.as_deref()).some("addr", device).0
}

fn kind(kind: &FunctionKind) -> List {
    match kind {
        FunctionKind::Disk(disk) => self::disk(disk),
        FunctionKind::Net(net) => self::net(net),
        FunctionKind::Vsock(cid) => List::of("vhost-vsock-pci").key("cid", cid),
        FunctionKind::VhostUser(VhostUserConfig { socket, device }) => match device {
            Served::Disk { queues } => List::of("virtio-blk-pci")
                .path("vhost-user", socket)
                .some("queues", *queues),
            Served::Net { mac } => List::of("virtio-net-pci")
                .path("vhost-user", socket)
                .mac(*mac),
        },
        FunctionKind::Rng => List::of("virtio-rng-pci"),
        FunctionKind::Balloon(options) => balloon(*options),
        FunctionKind::Memory(device) => memory_device(*device),
        FunctionKind::Console => List::of("virtio-console"),
        FunctionKind::Edu(options) => edu(options),
        FunctionKind::RootPort => List::of("pcie-root-port"),
        FunctionKind::Vfio(device) => vfio(device),
    }
}

fn disk(config: &DiskConfig) -> List {
    let DiskConfig {
        path,
        readonly,
        id: _,
        queues,
    } = config;
    let list = List::of("virtio-blk-pci").path("path", path);
    list.switch("readonly", *readonly).some("queues", *queues)
}

fn net(config: &NetConfig) -> List {
    let NetConfig {
        tap,
        mac,
        queues,
        vhost,
    } = config;
    let list = List::of("virtio-net-pci").key("tap", tap).mac(*mac);
    list.some("queues", *queues).switch("vhost", *vhost)
}

fn balloon(options: BalloonOptions) -> List {
    let BalloonOptions {
        deflate_on_oom,
        free_page_reporting,
    } = options;
    List::of("virtio-balloon-pci")
        .switch("deflate-on-oom", deflate_on_oom)
        .switch("free-page-reporting", free_page_reporting)
}

fn memory_device(config: MemoryDeviceConfig) -> List {
    let MemoryDeviceConfig {
        size,
        requested,
        block,
    } = config;
    let list = List::of("virtio-mem-pci").key("size", size);
    list.key("requested", requested).key("block-size", block)
}

fn edu(options: &EduOptions) -> List {
    let EduOptions {
        dma_mask,
        msi_vectors,
        features,
        migration,
    } = *options;
    let list = List::of("edu")
        .key("dma_mask", format_args!("{dma_mask:#x}"))
        .key("msi-vectors", msi_vectors)
        .switch("ats", features.ats)
        .switch("pasid", features.pasid)
        .switch("pri", features.pri);
    match migration {
        // Said only where it is so: an earlier nido does not know it.
        true => list.switch("migration", true),
        false => list,
    }
}

fn vfio(config: &VfioConfig) -> List {
    let VfioConfig {
        device,
        iommufd,
        needs_reset,
        pasid,
        ats,
        pri,
    } = config;
    let list = match device {
        HostDevice::Address(address) => List::of("vfio-pci").key("host", address),
        HostDevice::Descriptor(fd) => List::of("vfio-pci").key("fd", fd),
    };
    let list = list
        .key("iommufd", iommufd)
        .switch("needs-reset", *needs_reset);
    list.auto("pasid", *pasid)
        .auto("ats", *ats)
        .auto("pri", *pri)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::testing::config;
    use crate::cli::{Request, parse};

    fn parsed(options: &[String]) -> Config {
        let words = std::iter::once("nido".to_owned()).chain(options.iter().cloned());
        match parse(words).expect("a machine") {
            Request::Run { config, .. } => *config,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_written_is_parsed_as_the_same_machine() {
        for line in [
            "--kernel k",
            "--kernel /a,b --initramfs=-i --cmdline= --memory 64M,shared=on --cpus 255 --no-reboot",
            "--kernel k --control path=/a,,b --memory 1G,hugepages=on,prefault=on",
            "--kernel k --disk path=/a,,b,readonly=on,id=root,queues=3 --disk path=/b --device rng --disk path=/c,addr=1f",
            "--kernel k --net tap=t,mac=52:54:00:12:34:56,queues=2 --net tap=u,vhost=on,id=lan",
            "--kernel k --vsock cid=7 --disk vhost-user=/a,queues=2 --net vhost-user=/b,mac=02:00:00:00:00:01",
            "--kernel k --device console --device edu,dma_mask=0xff,msi-vectors=4,ats=on,pasid=on,pri=on --device edu,migration=on",
            "--kernel k --device pcie-root-port,id=a,,b --device edu,bus=a,,b --device pcie-root-port,id=c,addr=5",
            "--kernel k --device virtio-balloon,free-page-reporting=on --device intel-iommu",
            "--kernel k --device virtio-balloon,deflate-on-oom=on,id=b,addr=9",
            "--kernel k --device virtio-mem,size=4G,requested=128M,block-size=4M,id=m,addr=a",
            "--kernel k --device intel-iommu,aw-bits=57,x-flts=on,intremap=off,caching-mode=on,device-iotlb=on,pasid-bits=20,svm=on",
            "--kernel k --device intel-iommu,x-settled=47",
            "--kernel k --device intel-iommu,x-settled=48+1g+srs+eafs+snooped,x-flts=on",
            "--kernel k --device intel-iommu,aw-bits=39,x-scalable-mode=off,x-snoop-control=off,x-page-walk-coherency=off,x-keep-translations=on,caching-mode=off",
            "--kernel k --object iommufd,id=i --object iommufd,id=j,fd=7,hugepages=off --device vfio-pci,host=0000:01:00.0,iommufd=i,needs-reset=off,pasid=on,ats=off,pri=on --device vfio-pci,fd=8,iommufd=j",
            "--kernel k --object iommufd,id=i,path=/dev/i,,1 --device intel-iommu,shadow-memory=64M,bound-pasids=7",
        ] {
            let config = config(line);
            let options = options(&config);
            assert_eq!(parsed(&options), config, "{line}: {options:?}");
            assert_eq!(written(&parsed(&options)), Some(options));
        }
    }

    #[test]
    fn a_path_that_is_no_text_cannot_be_written() {
        use std::os::unix::ffi::OsStringExt as _;
        let mut config = config("--kernel k");
        config.kernel = std::ffi::OsString::from_vec(b"/\xff".to_vec()).into();
        assert_eq!(written(&config), None);
    }
}
