//! What one part of a machine has to say.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{RestoreError, SaveError};

/// The state of one part, of which only its kind and its version are known.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Section {
    kind: String,
    version: u32,
    state: Value,
}

impl Section {
    /// The section that says `state`, as version `version` of `kind` does.
    ///
    /// # Errors
    /// `state` has a map whose keys are no strings.
    pub fn new<T: Serialize>(kind: &str, version: u32, state: &T) -> Result<Self, SaveError> {
        Ok(Self {
            kind: kind.to_owned(),
            version,
            state: serde_json::to_value(state).map_err(SaveError::new)?,
        })
    }

    /// What the section says, if it is of `kind` and this `version`.
    ///
    /// # Errors
    /// It is another one, a later one, or says something else than such a section does.
    pub fn read<T: DeserializeOwned>(
        &self,
        kind: &'static str,
        version: u32,
    ) -> Result<T, RestoreError> {
        if self.kind != kind {
            return Err(RestoreError::Kind {
                saved: self.kind.clone(),
                here: kind,
            });
        }
        if self.version != version {
            return Err(RestoreError::Version {
                kind,
                saved: self.version,
                reads: version,
            });
        }
        T::deserialize(&self.state).map_err(|error| RestoreError::damaged(kind, error))
    }

    /// What the section is the state of.
    pub fn kind(&self) -> &str {
        &self.kind
    }
}

/// The sections of a machine, each with the name of the part: an address, a number.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sections(Vec<(String, Section)>);

impl Sections {
    /// Adds what the part `name` says.
    pub fn add(&mut self, name: impl Into<String>, section: Section) {
        self.0.push((name.into(), section));
    }

    /// Takes out what the part `name` has said.
    ///
    /// # Errors
    /// It has said nothing.
    pub fn take(&mut self, name: &str) -> Result<Section, RestoreError> {
        let found = self.0.iter().position(|(other, _)| other == name);
        found
            .map(|index| self.0.remove(index).1)
            .ok_or(RestoreError::Missing)
    }

    /// A part that has said something and was not taken out.
    pub fn left(&self) -> Option<(&str, &Section)> {
        self.0
            .first()
            .map(|(name, section)| (name.as_str(), section))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Timer {
        count: u32,
    }

    fn section() -> Section {
        Section::new("timer", 1, &Timer { count: 7 }).expect("a section")
    }

    #[test]
    fn a_section_says_what_was_saved() {
        assert_eq!(section().read("timer", 1), Ok(Timer { count: 7 }));
        assert_eq!(section().kind(), "timer");
    }

    #[test]
    fn another_kind_and_another_version_are_told() {
        let error = section().read::<Timer>("clock", 1).expect_err("no clock");
        assert_eq!(
            error.to_string(),
            "the saved machine has timer there, and this one clock"
        );
        let later = Section::new("timer", 2, &Timer { count: 7 }).expect("a section");
        let error = later.read::<Timer>("timer", 1).expect_err("too new");
        let text = "timer was saved in version 2, and this nido reads 1 at the most: use the nido that wrote it, or a later one";
        assert_eq!(error.to_string(), text);
    }

    #[test]
    fn what_no_version_says_is_damage() {
        let odd = Section::new("timer", 1, &["a"]).expect("a section");
        let error = odd.read::<Timer>("timer", 1).expect_err("no timer");
        assert!(
            error.to_string().starts_with("timer cannot be: "),
            "{error}"
        );
        let odd = Section::new("timer", 1, &serde_json::json!({ "count": 7, "odd": 1 }));
        assert!(odd.expect("a section").read::<Timer>("timer", 1).is_err());
    }

    #[test]
    fn each_section_is_taken_once_and_the_rest_is_known() {
        let mut sections = Sections::default();
        sections.add("00:01.0", section());
        sections.add("00:02.0", section());
        assert_eq!(sections.take("00:02.0"), Ok(section()));
        assert_eq!(sections.take("00:02.0"), Err(RestoreError::Missing));
        assert_eq!(sections.left(), Some(("00:01.0", &section())));
    }
}
