//! Programs from a package registry: subcommands of cargo that checks use, and a VMM to compare with.
//! Installed once into the cache, in a version that is fixed here.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::build::is_compiled;
use crate::paths;
use crate::process::Logged;

/// Flags of the compiler, with separators as cargo has them.
const STATIC: &str = "-Ctarget-feature=+crt-static";

/// A program from a package registry.
pub(crate) struct Tool {
    /// Of the package.
    name: &'static str,
    program: &'static str,
    version: &'static str,
    /// Whether it is to run where there are no libraries.
    alone: bool,
}

/// Finds dependencies that no source names.
pub(crate) const CARGO_MACHETE: Tool = Tool {
    name: "cargo-machete",
    program: "cargo-machete",
    version: "0.9.2",
    alone: false,
};

/// Judges dependencies by `deny.toml`: licences, advisories, versions, where they come from.
pub(crate) const CARGO_DENY: Tool = Tool {
    name: "cargo-deny",
    program: "cargo-deny",
    version: "0.20.2",
    alone: false,
};

/// A VMM that nido is compared with.
pub(crate) const ALIOTH: Tool = Tool {
    name: "alioth-cli",
    program: "alioth",
    version: "0.12.0",
    alone: true,
};

/// The program, to be run in the checkout; built first unless the cache has it.
pub(crate) fn command(tool: &Tool) -> Result<Command> {
    let mut command = Command::new(tool.provide()?);
    command.current_dir(paths::root());
    Ok(command)
}

impl Tool {
    /// What people call it.
    pub(crate) fn title(&self) -> String {
        format!("{} {}", self.program, self.version)
    }

    /// The program, from the cache or built now.
    pub(crate) fn provide(&self) -> Result<PathBuf> {
        let (name, version) = (self.name, self.version);
        let tools = paths::cache()?.join("tools");
        let root = tools.join(format!("{name}-{version}"));
        let program = root.join("bin").join(self.program);
        if program.exists() {
            return Ok(program);
        }
        println!("building {name} {version}; this happens once and takes minutes");
        fs::create_dir_all(&tools).with_context(|| tools.display().to_string())?;
        let log = tools.join(format!("{name}.log"));
        let step = Logged {
            title: &format!("building {name}"),
            log: &log,
            limit: Duration::from_secs(3600),
            count: Some((is_compiled, "crates")),
        };
        let build = tools.join(format!(".building-{name}-{}", std::process::id()));
        let mut install = Command::new("cargo");
        install
            // Not in the checkout, whose configuration is for nido; should the cache lie there, at
            // least no flags of its.
            .current_dir(&tools)
            .env(
                "CARGO_ENCODED_RUSTFLAGS",
                if self.alone { STATIC } else { "" },
            )
            .env("CARGO_TARGET_DIR", &build)
            .args(["install", "--locked", name, "--version", version, "--root"])
            .arg(&root);
        if self.alone {
            // Build scripts and macros are not to be static, which flags without a target make them.
            install.args(["--target", paths::TRIPLE]);
        }
        let built = step.run(&mut install);
        // Nobody needs it again, and it holds a gigabyte.
        let _ = fs::remove_dir_all(&build);
        built?;
        Ok(program)
    }
}

/// Where cargo keeps what it has fetched.
pub(crate) fn cargo_home() -> Result<PathBuf> {
    let chosen = env::var_os("CARGO_HOME").filter(|path| !path.is_empty());
    let home = || Some(PathBuf::from(env::var_os("HOME")?).join(".cargo"));
    chosen
        .map(PathBuf::from)
        .or_else(home)
        .context("neither CARGO_HOME nor HOME is set")
}
