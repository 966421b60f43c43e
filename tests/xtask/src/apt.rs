//! Debian packages: installing what is missing, and fetching others without installing them.
//!
//! The machine's own apt state is changed only by an installation. What is fetched comes through a
//! private state in the cache, from the mirror that the machine itself uses.

use std::fs;
use std::path::{Path, PathBuf};
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

/// A source of packages in the one-line format of sources.list(5).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Source {
    uri: String,
    suites: Vec<String>,
    components: Vec<String>,
    signed_by: Option<String>,
}

/// Reads both formats of sources.list(5); entries for source packages are left out.
fn parse_sources(name: &str, text: &str) -> Vec<Source> {
    if name.ends_with(".sources") {
        parse_deb822(text)
    } else {
        text.lines().filter_map(parse_one_line).collect()
    }
}

fn parse_one_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim().strip_prefix("deb ")?.trim();
    let (options, rest) = match line.strip_prefix('[') {
        Some(rest) => rest.split_once(']')?,
        None => ("", line),
    };
    let mut words = rest.split_whitespace().map(str::to_owned);
    Some(Source {
        uri: words.next()?,
        suites: vec![words.next()?],
        components: words.collect(),
        signed_by: options
            .split_whitespace()
            .find_map(|word| word.strip_prefix("signed-by="))
            .map(str::to_owned),
    })
}

fn parse_deb822(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    for stanza in text.split("\n\n") {
        let field = |name: &str| -> Option<Vec<String>> {
            let line = stanza.lines().find(|line| {
                line.to_ascii_lowercase()
                    .starts_with(&name.to_ascii_lowercase())
            })?;
            Some(
                line.split_once(':')?
                    .1
                    .split_whitespace()
                    .map(str::to_owned)
                    .collect(),
            )
        };
        let enabled = field("Enabled:").is_none_or(|value| value != ["no"]);
        let binary = field("Types:").is_some_and(|types| types.iter().any(|kind| kind == "deb"));
        let (Some(uris), Some(suites)) = (field("URIs:"), field("Suites:")) else {
            continue;
        };
        for uri in uris {
            if enabled && binary {
                sources.push(Source {
                    uri,
                    suites: suites.clone(),
                    components: field("Components:").unwrap_or_default(),
                    // A key that stands in the file itself spans lines and is not taken over.
                    signed_by: field("Signed-By:")
                        .and_then(|value| value.into_iter().next())
                        .filter(|v| v.len() > 1),
                });
            }
        }
    }
    sources
}

/// The machine's main Debian archive: the source of its own release, with component main, that is
/// not for security.
fn main_mirror(sources: &[Source], codename: &str) -> Option<Source> {
    let fits = |source: &&Source| {
        source
            .components
            .iter()
            .any(|component| component == "main")
            && !source.uri.trim_end_matches('/').ends_with("-security")
    };
    let own = |source: &&Source| source.suites.iter().any(|suite| suite == codename);
    let debian = |source: &&Source| source.uri.trim_end_matches('/').ends_with("/debian");
    let fitting = || sources.iter().filter(fits);
    fitting()
        .find(|s| own(s) && debian(s))
        .or_else(|| fitting().find(own))
        .or_else(|| fitting().find(debian))
        .cloned()
}

fn machine_sources() -> Vec<Source> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.flatten().map(|entry| entry.path()));
    }
    files.sort();
    files
        .iter()
        .filter(|path| {
            path.extension()
                .is_some_and(|extension| extension == "list" || extension == "sources")
        })
        .flat_map(|path| {
            parse_sources(
                &path.to_string_lossy(),
                &fs::read_to_string(path).unwrap_or_default(),
            )
        })
        .collect()
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
        let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
        let codename = release
            .lines()
            .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
            .unwrap_or_default();
        let mirror = main_mirror(&machine_sources(), codename.trim_matches('"'))
            .context("no Debian archive among the APT sources of this machine")?;
        let directory = paths::cache()?.join("apt").join(suite);
        fs::create_dir_all(directory.join("lists/partial"))?;
        fs::create_dir_all(directory.join("cache/archives/partial"))?;
        let key = mirror.signed_by.or_else(|| {
            KEYRINGS
                .iter()
                .find(|path| Path::new(path).exists())
                .map(|path| (*path).to_owned())
        });
        let option = key.map_or(String::new(), |key| format!("[signed-by={key}] "));
        let list = directory.join("sources.list");
        fs::write(&list, format!("deb {option}{} {suite} main\n", mirror.uri))?;
        let shown = directory.display();
        let options = vec![
            format!("Dir::Etc::sourcelist={}", list.display()),
            "Dir::Etc::sourceparts=/dev/null".to_owned(),
            format!("Dir::State::lists={shown}/lists"),
            format!("Dir::Cache={shown}/cache"),
            "APT::Sandbox::User=root".to_owned(),
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

#[cfg(test)]
mod tests {
    use super::*;

    const DEB822: &str = "Types: deb\nURIs: https://mirror.example/debian\nSuites: bookworm bookworm-updates\n\
        Components: main contrib\nSigned-By: /k.gpg\n\nTypes: deb\nURIs: https://mirror.example/debian-security\n\
        Suites: bookworm-security\nComponents: main\n\nTypes: deb-src\nURIs: https://src.example/debian\n\
        Suites: bookworm\nComponents: main\n";

    #[test]
    fn the_mirror_of_a_deb822_file_is_found() {
        let mirror = main_mirror(&parse_sources("debian.sources", DEB822), "bookworm").unwrap();
        assert_eq!(mirror.uri, "https://mirror.example/debian");
        assert_eq!(mirror.signed_by.as_deref(), Some("/k.gpg"));
    }

    #[test]
    fn the_mirror_of_a_one_line_file_is_found() {
        let text = "# comment\ndeb https://tools.example/apt stable main\n\
            deb https://mirror.example/debian-security bookworm-security main\n\
            deb [arch=amd64 signed-by=/k.pgp] https://mirror.example/debian/ bookworm main contrib # x\n\
            deb-src https://mirror.example/debian bookworm main\n";
        let mirror = main_mirror(&parse_sources("sources.list", text), "bookworm").unwrap();
        assert_eq!(mirror.uri, "https://mirror.example/debian/");
        assert_eq!(mirror.signed_by.as_deref(), Some("/k.pgp"));
    }

    #[test]
    fn a_machine_without_a_debian_archive_has_no_mirror() {
        assert_eq!(
            main_mirror(
                &parse_sources("x.list", "deb https://t.example/apt stable tools\n"),
                "bookworm"
            ),
            None
        );
    }
}
