//! The remapping unit as Linux shows it: its log, its groups, its tables (debugfs).

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, bail, ensure};

use super::Guest;
use crate::kernel_log;

fn find(pattern: &str) -> Result<Option<String>> {
    Ok(kernel_log::read()?
        .into_iter()
        .find(|line| line.contains(pattern)))
}

fn need(pattern: &str) -> Result<String> {
    find(pattern)?.with_context(|| format!("no line with '{pattern}' in the kernel log"))
}

/// How the unit reads its root table (RTADDR_REG.TTM, VT-d 11.4.5), as debugfs shows the register;
/// None where the kernel has no such file.
fn root_table_mode() -> Result<Option<u64>> {
    let path = "/sys/kernel/debug/iommu/intel/iommu_regset";
    let Ok(registers) = fs::read_to_string(path) else {
        return Ok(None);
    };
    let line = registers
        .lines()
        .find(|line| line.starts_with("RTADDR"))
        .context("no RTADDR in iommu_regset")?;
    let value = line
        .split_whitespace()
        .last()
        .context("RTADDR without value")?;
    let value = u64::from_str_radix(value.trim_start_matches("0x"), 16)?;
    Ok(Some(value >> 10 & 3))
}

/// Linux uses the unit in scalable mode.
pub(super) fn scalable(_guest: &Guest, _argument: &str) -> Result<String> {
    let line = need("DMAR: Enable scalable mode")?;
    match root_table_mode()? {
        Some(1) | None => Ok(line),
        Some(mode) => bail!("the root table's translation-table mode is {mode}, not 1"),
    }
}

/// Linux uses the unit in legacy mode.
pub(super) fn legacy(_guest: &Guest, _argument: &str) -> Result<String> {
    let line = need("DMAR: Intel(R) Virtualization Technology for Directed I/O")?;
    match root_table_mode()? {
        Some(0) => Ok(line),
        mode => bail!("the root table's translation-table mode is {mode:?}, not 0"),
    }
}

/// There is no unit.
pub(super) fn no_unit(_guest: &Guest, _argument: &str) -> Result<String> {
    if let Some(line) = find("DRHD base")? {
        bail!("'{line}' in the kernel log");
    }
    no_groups()?;
    Ok("no DRHD, no groups".to_owned())
}

fn no_groups() -> Result<()> {
    let groups = fs::read_dir("/sys/kernel/iommu_groups")
        .map(Iterator::count)
        .unwrap_or(0);
    ensure!(groups == 0, "{groups} IOMMU groups");
    Ok(())
}

/// Every function has a group of its own, and its default domain has the argument's type (`DMA`,
/// `DMA-FQ`, `identity`).
pub(super) fn groups(_guest: &Guest, argument: &str) -> Result<String> {
    let mut count = 0;
    for group in fs::read_dir("/sys/kernel/iommu_groups")? {
        let group = group?.path();
        let members: Vec<String> = fs::read_dir(group.join("devices"))?
            .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
            .collect();
        ensure!(
            members.len() == 1,
            "{} holds {}",
            group.display(),
            members.join(" ")
        );
        let kind = fs::read_to_string(group.join("type"))?;
        ensure!(
            argument.is_empty() || kind.trim() == argument,
            "{} has type {}",
            members.join(" "),
            kind.trim()
        );
        count += 1;
    }
    let functions = fs::read_dir("/sys/bus/pci/devices")?.count();
    ensure!(
        count == functions,
        "{count} groups for {functions} functions"
    );
    Ok(format!("{count} functions, a group each"))
}

/// Every function's table entry has the argument's kind: `first-stage`, `second-stage`, `nested`,
/// `pass-through` (scalable mode), `legacy` or `legacy-pass-through`; or the argument is `off`, and
/// there is a unit that Linux leaves off.
pub(super) fn translation(_guest: &Guest, argument: &str) -> Result<String> {
    if argument == "off" {
        let unit = need("DRHD base")?;
        no_groups()?;
        return Ok(format!("{unit}, no groups"));
    }
    let path = "/sys/kernel/debug/iommu/intel/dmar_translation_struct";
    let table = fs::read_to_string(path).context(path)?;
    let kinds = table_kinds(&table)?;
    ensure!(!kinds.is_empty(), "no present entries: {}", table.trim());
    for function in fs::read_dir("/sys/bus/pci/devices")? {
        let name = function?.file_name().to_string_lossy().into_owned();
        let short = name.strip_prefix("0000:").unwrap_or(&name);
        let kind = kinds
            .get(short)
            .with_context(|| format!("no entry for {short}"))?;
        ensure!(*kind == argument, "{short} is translated as {kind}");
    }
    Ok(format!("{} entries", kinds.len()))
}

/// The first virtio device's function is translated as the argument says, KIND/TYPE, as in
/// `first-stage/DMA-FQ`; or the argument is `none`, and it has no group.
pub(super) fn device_mode(_guest: &Guest, argument: &str) -> Result<String> {
    let path = "/sys/bus/virtio/devices/virtio0";
    let device = fs::canonicalize(path).context("no virtio device")?;
    let function = device.parent().context("the device has no function")?;
    let name = function.file_name().unwrap_or_default().to_string_lossy();
    let group = fs::read_to_string(function.join("iommu_group/type"));
    if argument == "none" {
        ensure!(group.is_err(), "{name} has a group");
        return Ok(format!("{name} has no group"));
    }
    let path = "/sys/kernel/debug/iommu/intel/dmar_translation_struct";
    let table = fs::read_to_string(path).context(path)?;
    let kinds = table_kinds(&table)?;
    let kind = kinds.get(name.trim_start_matches("0000:"));
    let kind = kind.with_context(|| format!("no entry for {name}"))?;
    let group = group.with_context(|| format!("{name} has no group"))?;
    let found = format!("{kind}/{}", group.trim());
    ensure!(found == argument, "{name} is translated as {found}");
    Ok(format!("{name} is translated as {found}"))
}

/// From the text of dmar_translation_struct: function -> kind. Rows are
/// `B.D.F  root(hi:lo)  context(hi:lo)  PASID  entry(word 2:word 1:word 0)`; PASID is -1 in legacy
/// mode.
fn table_kinds(table: &str) -> Result<BTreeMap<&str, &'static str>> {
    let mut kinds = BTreeMap::new();
    for line in table.lines() {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let &[function, _root, context, pasid, entry] = columns.as_slice() else {
            continue;
        };
        if !function.contains(':') || !entry.starts_with("0x") {
            continue;
        }
        let last_word = |text: &str| -> Result<u64> {
            let word = text.rsplit(':').next().unwrap_or_default();
            Ok(u64::from_str_radix(word.trim_start_matches("0x"), 16)?)
        };
        let kind = if pasid == "-1" {
            // Context entry, TT (9.3): bits 3:2 of the low word.
            match last_word(context)? >> 2 & 3 {
                0 | 1 => "legacy",
                2 => "legacy-pass-through",
                _ => "reserved",
            }
        } else {
            // PASID table entry, PGTT (9.6): bits 8:6 of word 0.
            match last_word(entry)? >> 6 & 7 {
                1 => "first-stage",
                2 => "second-stage",
                3 => "nested",
                4 => "pass-through",
                _ => "reserved",
            }
        };
        if matches!(pasid, "-1" | "0") {
            kinds.insert(function, kind);
        }
    }
    Ok(kinds)
}

/// The invalidation queue is `lazy` or `strict`.
pub(super) fn invalidation(_guest: &Guest, argument: &str) -> Result<String> {
    match argument {
        "strict" => need("DMA domain TLB invalidation policy: strict mode"),
        _ => need("DMA domain TLB invalidation policy: lazy mode"),
    }
}

/// Interrupt remapping is on, in the argument's mode (`x2apic`, `xapic`), or `off`.
pub(super) fn interrupt_remapping(_guest: &Guest, argument: &str) -> Result<String> {
    let line = find("DMAR-IR: Enabled IRQ remapping in")?;
    match (argument, line) {
        ("off", None) => Ok("not enabled".to_owned()),
        ("off", Some(line)) => bail!("{line}"),
        (mode, Some(line)) => {
            ensure!(line.contains(&format!("in {mode} mode")), "{line}");
            let path = "/sys/kernel/debug/iommu/intel/ir_translation_struct";
            // A kernel without the debug files has only its log.
            let Ok(table) = fs::read_to_string(path) else {
                return Ok(line);
            };
            let entries = table
                .lines()
                .filter(|line| line.starts_with(' ') && line.contains(':'))
                .count();
            ensure!(
                !table.contains("Interrupt Remapping is not enabled"),
                "the unit says it is not enabled"
            );
            Ok(format!("{line}; {} entries", entries.saturating_sub(1)))
        }
        (_, None) => bail!("no 'DMAR-IR: Enabled IRQ remapping' in the kernel log"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCALABLE: &str = "IOMMU dmar0: Root Table Address: 0x102c13000\n\
        B.D.F\tRoot_entry\t\t\t\tContext_entry\t\t\t\tPASID\tPASID_table_entry\n\
        00:02.0\t0x0000000102c15001:0x0000000102c14001\t0x0000000000000000:0x0000000102c1d00d\t\
        0     \t0x0000000102c1f001:0x0000000000810002:0x0000000000000049\n\
        00:03.0\t0x0000000102c15001:0x0000000102c14001\t0x0000000000000000:0x0000000102c1d00d\t\
        0     \t0x0000000000000000:0x0000000000800001:0x0000000000000109\n";
    const LEGACY: &str = "00:02.0\t0x0:0x0000000102c14001\t0x0000000000000302:0x0000000102c1d001\t\
        -1    \t0x0000000000000000:0x0000000000000000:0x0000000000000000\n";

    #[test]
    fn the_kind_of_an_entry_is_its_pgtt_or_its_translation_type() {
        let kinds = table_kinds(SCALABLE).unwrap();
        assert_eq!(kinds["00:02.0"], "first-stage");
        assert_eq!(kinds["00:03.0"], "pass-through");
        assert_eq!(table_kinds(LEGACY).unwrap()["00:02.0"], "legacy");
    }
}
