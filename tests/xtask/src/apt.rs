//! Debian packages: installing what is missing, and fetching others without installing them.
//!
//! The machine's own apt state is changed only by an installation. What is fetched comes through a
//! private state in the cache, from the mirror that the machine itself uses.

mod sources;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::paths;
use crate::process::{Logged, output};

const KEYRINGS: &[&str] = &[
    "/usr/share/keyrings/debian-archive-keyring.gpg",
    "/usr/share/keyrings/debian-archive-keyring.pgp",
];

/// Installs the packages of `wanted` that are missing; `why` completes "... are needed to".
pub(crate) fn install(wanted: &[&str], why: &str) -> Result<()> {
    let missing: Vec<&str> = wanted
        .iter()
        .copied()
        .filter(|package| !is_installed(package))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if !lab::sys::is_root() {
        bail!(
            "to {why}, packages are needed. Run as root: apt-get install --no-install-recommends {list}"
        );
    }
    println!("installing packages to {why}: {list}");
    let cache = paths::cache()?;
    fs::create_dir_all(&cache)?;
    let log = cache.join("apt-install.log");
    let step = Logged {
        title: "apt-get",
        log: &log,
        limit: Duration::from_secs(1800),
        count: None,
    };
    let mut install = apt_get();
    install
        .args(["install", "--yes", "--no-install-recommends"])
        .args(&missing);
    if step.outcome(&mut install)?.passed {
        return Ok(());
    }
    println!("  the package lists are missing or old: apt-get update");
    step.run(apt_get().arg("update"))?;
    step.run(&mut install)?;
    Ok(())
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .args(["--option", "DPkg::Lock::Timeout=300"]);
    command
}

fn is_installed(package: &str) -> bool {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat=${db:Status-Status}", package]);
    output(&mut query).is_ok_and(|status| status.trim() == "installed")
}

/// Lines of sources.list(5) for suites of the machine's mirror.
pub(crate) fn sources_list(suites: &[&str]) -> Result<String> {
    let mirror = sources::mirror()?;
    let key = mirror.signed_by.or_else(|| {
        KEYRINGS
            .iter()
            .find(|path| Path::new(path).exists())
            .map(|path| (*path).to_owned())
    });
    let option = key.map_or(String::new(), |key| format!("[signed-by={key}] "));
    let line = |suite: &&str| format!("deb {option}{} {suite} main\n", mirror.uri);
    Ok(suites.iter().map(line).collect())
}

/// An apt state: the machine's own, or a private one for a suite.
pub(crate) struct State {
    options: Vec<String>,
}

impl State {
    /// The machine's own.
    pub(crate) fn machine() -> Self {
        Self {
            options: Vec::new(),
        }
    }

    /// A private state in the cache for `suite` of the machine's mirror, its lists up to date.
    pub(crate) fn of_suite(suite: &str) -> Result<Self> {
        Self::of_suites(&[suite])
    }

    /// The same for several suites; the name of the first is the state's.
    pub(crate) fn of_suites(suites: &[&str]) -> Result<Self> {
        let suite = suites.first().context("no suite")?;
        let directory = paths::cache()?.join("apt").join(suites.join("+"));
        fs::create_dir_all(directory.join("lists/partial"))?;
        fs::create_dir_all(directory.join("cache/archives/partial"))?;
        let list = directory.join("sources.list");
        fs::write(&list, sources_list(suites)?)?;
        // As if nothing were installed: what a package depends on has nothing to do with this
        // machine.
        let status = directory.join("status");
        fs::write(&status, "")?;
        let shown = directory.display();
        let options = vec![
            format!("Dir::Etc::sourcelist={}", list.display()),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            "Dir::Etc::preferencesparts=/dev/null".to_owned(),
            format!("Dir::State::status={}", status.display()),
            format!("Dir::State::lists={shown}/lists"),
            format!("Dir::Cache={shown}/cache"),
            "APT::Sandbox::User=root".to_owned(),
            format!("APT::Default-Release={suite}"),
        ];
        let state = Self { options };
        let log = directory.join("update.log");
        let step = Logged {
            title: "package index",
            log: &log,
            limit: Duration::from_secs(600),
            count: None,
        };
        println!("  reading the index of {suite}");
        step.run(state.command("apt-get").arg("update"))?;
        Ok(state)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for option in &self.options {
            command.args(["--option", option]);
        }
        command
    }

    /// Names of packages that match a regular expression.
    pub(crate) fn search(&self, expression: &str) -> Result<Vec<String>> {
        let found = output(
            self.command("apt-cache")
                .args(["search", "--names-only", expression]),
        )?;
        Ok(found
            .lines()
            .filter_map(|line| Some(line.split_whitespace().next()?.to_owned()))
            .collect())
    }

    /// A field of the newest version of a package.
    pub(crate) fn field(&self, package: &str, field: &str) -> Result<String> {
        let shown = output(
            self.command("apt-cache")
                .args(["show", "--no-all-versions", package]),
        )?;
        let value = shown
            .lines()
            .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        Ok(value
            .with_context(|| format!("package {package} has no field {field}"))?
            .trim()
            .to_owned())
    }

    /// Downloads a package and all that it depends on, and unpacks them into `directory`. Only for a
    /// private state.
    pub(crate) fn unpack_all(&self, package: &str, directory: &Path) -> Result<()> {
        let downloads = directory.with_extension("download");
        let _ = fs::remove_dir_all(&downloads);
        fs::create_dir_all(downloads.join("partial"))?;
        fs::create_dir_all(directory)?;
        let log = directory.with_extension("log");
        let step = Logged {
            title: package,
            log: &log,
            limit: Duration::from_secs(3600),
            count: Some((|line| line.starts_with("Get:"), "packages")),
        };
        println!("  downloading {package} and what it depends on");
        step.run(
            self.command("apt-get")
                .arg("--option")
                .arg(format!("Dir::Cache::archives={}", downloads.display()))
                .args(["install", "--download-only", "--yes"])
                .args(["--no-install-recommends", package]),
        )?;
        for entry in fs::read_dir(&downloads)?.flatten() {
            if entry.file_name().to_string_lossy().ends_with(".deb") {
                step.run(
                    Command::new("dpkg-deb")
                        .arg("--extract")
                        .arg(entry.path())
                        .arg(directory),
                )?;
            }
        }
        fs::remove_dir_all(&downloads)?;
        let _ = fs::remove_file(&log);
        Ok(())
    }

    /// Downloads a package and unpacks it into `directory`.
    pub(crate) fn unpack(&self, package: &str, directory: &Path) -> Result<()> {
        let downloads = directory.with_extension("download");
        let _ = fs::remove_dir_all(&downloads);
        fs::create_dir_all(&downloads)?;
        fs::create_dir_all(directory)?;
        let log = directory.with_extension("log");
        let step = Logged {
            title: package,
            log: &log,
            limit: Duration::from_secs(3600),
            count: None,
        };
        println!("  downloading {package}");
        step.run(
            self.command("apt-get")
                .args(["download", package])
                .current_dir(&downloads),
        )?;
        let archive = fs::read_dir(&downloads)?
            .flatten()
            .map(|entry| entry.path())
            .next()
            .context("no archive")?;
        step.run(
            Command::new("dpkg-deb")
                .arg("--extract")
                .arg(&archive)
                .arg(directory),
        )?;
        fs::remove_dir_all(&downloads)?;
        let _ = fs::remove_file(&log);
        Ok(())
    }
}
