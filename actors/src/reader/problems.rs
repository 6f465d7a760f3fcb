//! The problems of a request, in the form in which Prefect says it: where, what kind, and a sentence.

use serde::{Serialize, Serializer};

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Its kind, by pydantic's name.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Where it stands.
    pub loc: Vec<Step>,
    /// For people.
    pub msg: String,
}

/// One step of the way to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Into a member of an object, or an alternative.
    Key(String),
    /// Into an element of a list.
    Index(usize),
}

impl Serialize for Step {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Key(key) => serializer.serialize_str(key),
            Self::Index(index) => serializer.serialize_u64(*index as u64),
        }
    }
}

/// All that is wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(transparent)]
#[error("{}", .0.iter().map(|problem| problem.msg.as_str()).collect::<Vec<_>>().join("; "))]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    pub(super) fn add(&mut self, at: &Loc<'_>, kind: &'static str, msg: impl Into<String>) {
        let (loc, msg) = (at.steps(), msg.into());
        self.0.push(Problem { kind, loc, msg });
    }

    /// The value, unless something is wrong.
    pub(super) fn or<T>(self, value: Option<T>) -> Result<T, Self> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => Err(self),
        }
    }
}

/// Where a value stands, without a copy of the way to it.
#[derive(Clone, Copy)]
pub(super) struct Loc<'a> {
    parent: Option<&'a Loc<'a>>,
    step: LocStep<'a>,
}

#[derive(Clone, Copy)]
enum LocStep<'a> {
    Key(&'a str),
    Index(usize),
}

impl<'a> Loc<'a> {
    pub(super) const BODY: Loc<'static> = Loc::root("body");

    pub(super) const fn root(name: &'a str) -> Self {
        Self {
            parent: None,
            step: LocStep::Key(name),
        }
    }

    pub(super) fn key(&'a self, key: &'a str) -> Self {
        Self {
            parent: Some(self),
            step: LocStep::Key(key),
        }
    }

    pub(super) fn index(&'a self, index: usize) -> Self {
        Self {
            parent: Some(self),
            step: LocStep::Index(index),
        }
    }

    fn steps(&self) -> Vec<Step> {
        let mut steps = self.parent.map(Loc::steps).unwrap_or_default();
        steps.push(match self.step {
            LocStep::Key(key) => Step::Key(key.to_owned()),
            LocStep::Index(index) => Step::Index(index),
        });
        steps
    }
}
