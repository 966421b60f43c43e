//! Programs of the distribution with the libraries that they load.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::output;

/// The libraries of `program`, and the dynamic loader.
pub(crate) fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    Ok(parse(&output(Command::new("ldd").arg(program))?))
}

/// The libraries of `program`, which are in `directory` with the dynamic loader: the loader is asked,
/// since this machine's would take its own.
pub(crate) fn libraries_of(
    loader: &Path,
    directory: &Path,
    program: &Path,
) -> Result<Vec<PathBuf>> {
    let mut command = Command::new(loader);
    command.arg("--library-path").arg(directory).arg("--list");
    Ok(parse(&output(command.arg(program))?))
}

/// Starts the QEMU that is in `directory` with its libraries, its loader and its firmware.
pub(crate) fn command(directory: &Path) -> Command {
    let mut command = Command::new(directory.join("lib/ld.so"));
    command
        .arg("--library-path")
        .arg(directory.join("lib"))
        .arg(directory.join("qemu-system-x86_64"))
        .arg("-L")
        .arg(directory.join("firmware"));
    command
}

/// The last part of a path.
pub(crate) fn name(path: &Path) -> Result<String> {
    let name = path.file_name().context("no file name")?;
    Ok(name.to_string_lossy().into_owned())
}

/// The files that ldd names.
fn parse(ldd: &str) -> Vec<PathBuf> {
    ldd.lines()
        .filter_map(|line| {
            let path = line.split_once("=>").map_or(line, |(_, path)| path);
            let path = path.split_whitespace().next()?;
            path.starts_with('/').then(|| PathBuf::from(path))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ldd_names_libraries_and_the_loader() {
        let text = "\tlinux-vdso.so.1 (0x0)\n\tlibz.so.1 => /lib/libz.so.1 (0x1)\n\t/lib64/ld-linux-x86-64.so.2 (0x2)\n";
        assert_eq!(
            parse(text),
            [
                PathBuf::from("/lib/libz.so.1"),
                PathBuf::from("/lib64/ld-linux-x86-64.so.2")
            ]
        );
    }
}
