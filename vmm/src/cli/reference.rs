//! The options reference, `docs/options.md`: written from the tables that parse the command line
//! and that help prints.

use std::fmt::Write as _;
use std::path::Path;

use clap::CommandFactory as _;

use super::devices::TYPES;
use super::keys::{Key, Table};
use super::testing::{error, printed, request};
use super::values::Kind;
use super::{Arguments, EXIT_CODES, KEY_LISTS};

/// Set it to have the tests write the file instead of comparing it.
const WRITE: &str = "NIDO_WRITE_REFERENCE";

const HEAD: &str = "\
<!-- Written from the tables that parse the command line, and compared with them by a test. After a change of those:
     NIDO_WRITE_REFERENCE=1 cargo test -p nido cli::reference -->

# Options

`nido --help` prints the first table of this page, and each list of keys has its own help, which the sections name.

Options with keys take a list: `key=value,key=value`. A doubled comma in a value stands for a comma, as in
`--disk path=a,,b.img` for the file `a,b.img`. Numbers are decimal, or hexadecimal after `0x`; sizes may end in `K`, `M`, `G`
or `T`. A key that is given twice, is unknown or has a value out of its range is refused, with what to write instead.
";

/// The whole page.
fn reference() -> String {
    let mut page = HEAD.to_owned();
    page.push_str("\n## Command line\n\n| Option | Default | Meaning |\n|---|---|---|\n");
    let mut command = Arguments::command();
    command.build();
    for option in command.get_arguments() {
        page.push_str(&option_row(option));
    }
    let _ = write!(page, "\n```text\n{EXIT_CODES}\n```\n");
    for table in KEY_LISTS {
        let _ = write!(page, "\n## {}\n\n", table.option);
        let help = help_line(table.option);
        let _ = writeln!(page, "Printed by `nido {help}`.{}", implied(table));
        page.push_str(&key_rows(table));
    }
    page.push_str("\n## --device\n\n");
    page.push_str("Printed by `nido --device help`.\n\n| Type | Meaning |\n|---|---|\n");
    for device in TYPES {
        let name = with_aliases(device.name, device.aliases);
        let _ = writeln!(page, "| {name} | {} |", device.help);
    }
    for device in TYPES {
        let _ = write!(page, "\n### {}\n\n", device.table.option);
        let _ = writeln!(page, "Printed by `nido {},help`.", device.table.option);
        page.push_str(&key_rows(&device.table));
    }
    page
}

fn option_row(option: &clap::Arg) -> String {
    let mut name = format!("`--{}", option.get_long().unwrap_or_default());
    for value in option.get_value_names().unwrap_or_default() {
        if option.get_action().takes_values() {
            let _ = write!(name, " {value}");
        }
    }
    name.push('`');
    if let Some(short) = option.get_short() {
        let _ = write!(name, ", `-{short}`");
    }
    let defaults: Vec<String> = option
        .get_default_values()
        .iter()
        .filter(|_| option.get_action().takes_values())
        .map(|value| format!("`{}`", value.to_string_lossy()))
        .collect();
    let help = option.get_help().map(ToString::to_string);
    let help = help.unwrap_or_default();
    format!("| {name} | {} | {help} |\n", defaults.join(" "))
}

fn key_rows(table: &Table) -> String {
    let mut rows = "\n| Key | Value | Default | Meaning |\n|---|---|---|---|\n".to_owned();
    for key in table.keys {
        // A bar would end the cell.
        let mut value = format!("`{}`", key.kind.syntax().replace('|', "`, `"));
        if let Some(range) = key.kind.range() {
            let _ = write!(value, ", {range}");
        }
        let name = with_aliases(key.name, key.aliases);
        let _ = writeln!(
            rows,
            "| {name} | {value} | {} | {} |",
            key.default, key.help
        );
    }
    rows
}

fn with_aliases(name: &str, aliases: &[&str]) -> String {
    let also: String = aliases.iter().map(|alias| format!(", `{alias}`")).collect();
    format!("`{name}`{also}")
}

fn implied(table: &Table) -> String {
    match table.implied {
        Some(key) => format!(" `{key}=` may be left out if it comes first."),
        None => String::new(),
    }
}

/// The arguments that print the keys of `option`.
fn help_line(option: &str) -> String {
    match option.split_once(' ') {
        Some(_) => format!("{option},help"),
        None => format!("{option} help"),
    }
}

#[test]
fn the_page_is_what_the_tables_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/options.md");
    let page = reference();
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&path, page).expect("a writable file");
        return;
    }
    let file = std::fs::read_to_string(&path).expect("docs/options.md");
    assert!(
        file == page,
        "docs/options.md is not what the tables say; `{WRITE}=1 cargo test -p nido cli::reference` writes it anew"
    );
}

#[test]
fn help_prints_every_key_as_the_page_has_it() {
    let types = TYPES.iter().map(|device| &device.table);
    let lists = KEY_LISTS.iter().copied().chain(types);
    for table in lists {
        let line = match table.option.split_once(' ') {
            Some(("--device", name)) => format!("--device {name},help"),
            _ => help_line(table.option),
        };
        let help = printed(&line);
        for key in table.keys {
            let syntax = format!("{}={}", key.name, key.kind.syntax());
            let default = format!("[default: {}]", key.default);
            let range = key.kind.range().unwrap_or_default();
            for part in [syntax.as_str(), key.help, &default, &range] {
                assert!(help.contains(part), "{part} in {help}");
            }
        }
    }
}

/// A command line with `{}` for the value of a key that has bounds.
fn line_with(option: &str, key: &str) -> &'static str {
    match (option, key) {
        ("--memory", "size") => "--memory {}",
        ("--disk", "id") => "--disk path=p,id={}",
        ("--disk", "queues") => "--disk path=p,queues={}",
        ("--disk", "vhost-user") => "--disk vhost-user={}",
        ("--net", "tap") => "--net tap={}",
        ("--net", "vhost-user") => "--net vhost-user={}",
        ("--net", "queues") => "--net tap=t,queues={}",
        ("--vsock", "cid") => "--vsock cid={}",
        ("--device vhost-vsock-pci", "cid") => "--device vhost-vsock-pci,cid={}",
        ("--control", "path") => "--control path={}",
        ("--object iommufd", "fd") => "--object iommufd,id=a,fd={}",
        ("--device intel-iommu", "pasid-bits") => "--device intel-iommu,pasid-bits={}",
        ("--device intel-iommu", "shadow-memory") => "--device intel-iommu,shadow-memory={}",
        ("--device intel-iommu", "bound-pasids") => "--device intel-iommu,bound-pasids={}",
        ("--device virtio-blk-pci", "id") => "--device virtio-blk-pci,path=p,id={}",
        ("--device virtio-blk-pci", "queues") => "--device virtio-blk-pci,path=p,queues={}",
        ("--device virtio-net-pci", "vhost-user") => "--device virtio-net-pci,vhost-user={}",
        ("--device virtio-blk-pci", "vhost-user") => "--device virtio-blk-pci,vhost-user={}",
        ("--device virtio-net-pci", "tap") => "--device virtio-net-pci,tap={}",
        ("--device virtio-net-pci", "queues") => "--device virtio-net-pci,tap=t,queues={}",
        ("--device virtio-mem-pci", "size") => "--device virtio-mem-pci,size={}",
        ("--device virtio-mem-pci", "requested") => "--device virtio-mem-pci,size=1G,requested={}",
        ("--device virtio-mem-pci", "block-size") => {
            "--device virtio-mem-pci,size=1G,block-size={}"
        }
        ("--device vfio-pci", "fd") => "--object iommufd,id=a --device vfio-pci,iommufd=a,fd={}",
        _ => panic!("{option}: {key} has bounds; add a command line for it"),
    }
}

#[test]
fn bounds_that_are_printed_are_those_that_are_enforced() {
    let types = TYPES.iter().map(|device| &device.table);
    for table in KEY_LISTS.iter().copied().chain(types) {
        for Key { name, kind, .. } in table.keys {
            let number = |number: u64| Some(number.to_string());
            let (taken, refused) = match kind {
                Kind::Bounded { least, most } => (
                    vec![number(*least), number(*most)],
                    vec![least.checked_sub(1).and_then(number), number(most + 1)],
                ),
                Kind::Size { least } => (
                    vec![number(*least)],
                    vec![least.checked_sub(4096).and_then(number)],
                ),
                Kind::ShortText(_, most) => {
                    let (longest, longer) = ("x".repeat(*most), "x".repeat(most + 1));
                    (vec![Some(longest)], vec![Some(longer)])
                }
                _ => continue,
            };
            let line = line_with(table.option, name);
            for value in taken.into_iter().flatten() {
                request(&format!("--kernel k {}", line.replace("{}", &value))).expect(line);
            }
            for value in refused.into_iter().flatten() {
                error(&format!("--kernel k {}", line.replace("{}", &value)));
            }
        }
    }
}
