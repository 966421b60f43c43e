//! The sources of packages of this machine (sources.list(5)), and the mirror among them.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// A source of packages in the one-line format of sources.list(5).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Source {
    pub(super) uri: String,
    suites: Vec<String>,
    components: Vec<String>,
    pub(super) signed_by: Option<String>,
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

fn of_machine() -> Vec<Source> {
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

/// The machine's main Debian archive.
pub(super) fn mirror() -> Result<Source> {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let codename = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .unwrap_or_default();
    main_mirror(&of_machine(), codename.trim_matches('"'))
        .context("no Debian archive among the APT sources of this machine")
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
