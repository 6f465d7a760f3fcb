//! The fields of an event, one function for each kind.
//!
//! Two things can go wrong with a field, and they are told apart everywhere: the text is no JSON
//! (a `JiterError`: reading ends), or it is, and the value is not what the field takes
//! ([`Problems`]: reading goes on, so that one reason can name all that is wrong).

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use jiter::{JiterResult, Peek};
use uuid::Uuid;

use super::json::{Reader, Skipped, kind_of};
use super::problems::Problems;
use super::resource::Span;
use super::{EventLimits, ID_LABEL, ROLE_LABEL, Resource, datetime};

pub(super) type Field<T> = Result<T, Problems>;

/// Around a field's value only the event itself stands open.
const NUM_OPEN_AROUND_FIELD: usize = 1;

const URN_PREFIX: &str = "urn:uuid:";
/// The longest form without [`URN_PREFIX`]: in braces.
const MAX_UUID_LENGTH: usize = 38;

pub(super) fn ignored(reader: &mut Reader<'_>) -> JiterResult<()> {
    let peek = reader.jiter.peek()?;
    reader.skip(peek, NUM_OPEN_AROUND_FIELD)?;
    Ok(())
}

pub(super) fn object<'t>(
    reader: &mut Reader<'t>,
    path: &'static str,
) -> JiterResult<Field<Skipped<'t>>> {
    let peek = reader.jiter.peek()?;
    let skipped = reader.skip(peek, NUM_OPEN_AROUND_FIELD)?;
    Ok(match peek {
        Peek::Object => Ok(skipped),
        _ => Err(Problems::one(path, wrong_kind("an object", peek))),
    })
}

pub(super) fn name(
    reader: &mut Reader<'_>,
    path: &'static str,
    max_length: usize,
) -> JiterResult<Field<String>> {
    let peek = reader.jiter.peek()?;
    if peek != Peek::String {
        return wrong(reader, peek, path, "a string");
    }
    let name = reader.jiter.known_str()?;
    // There are never more code points than bytes, so most names need no counting.
    Ok(
        if name.len() <= max_length || name.chars().count() <= max_length {
            Ok(name.to_owned())
        } else {
            Err(Problems::one(
                path,
                format_args!("longer than {max_length} characters"),
            ))
        },
    )
}

/// A UUID: with or without hyphens, with hyphens also in braces or behind [`URN_PREFIX`].
pub(super) fn uuid(reader: &mut Reader<'_>, path: &'static str) -> JiterResult<Field<Uuid>> {
    let peek = reader.jiter.peek()?;
    if peek != Peek::String {
        return wrong(reader, peek, path, "a UUID");
    }
    let uuid = uuid_from_text(reader.jiter.known_str()?);
    // The parser's own message quotes the value.
    Ok(uuid.ok_or_else(|| Problems::one(path, "not a UUID")))
}

/// A UUID in any of these forms.
pub(crate) fn uuid_from_text(text: &str) -> Option<Uuid> {
    // The `uuid` crate takes the prefix in any case; the version beneath Prefect does not.
    let is_other_urn = text.len() > MAX_UUID_LENGTH && !text.starts_with(URN_PREFIX);
    Uuid::try_parse(text).ok().filter(|_| !is_other_urn)
}

pub(super) fn optional_uuid(
    reader: &mut Reader<'_>,
    path: &'static str,
) -> JiterResult<Field<Option<Uuid>>> {
    let peek = reader.jiter.peek()?;
    if peek == Peek::Null {
        reader.skip(peek, NUM_OPEN_AROUND_FIELD)?;
        return Ok(Ok(None));
    }
    Ok(uuid(reader, path)?.map(Some))
}

/// A datetime in any of the forms that [`mod@datetime`] reads.
pub(super) fn datetime(
    reader: &mut Reader<'_>,
    path: &'static str,
) -> JiterResult<Field<DateTime<Utc>>> {
    let peek = reader.jiter.peek()?;
    let read = match peek {
        Peek::String => datetime::from_text(reader.jiter.known_str()?),
        _ if peek.is_num() => datetime::from_number(reader.number(peek)?),
        _ => return wrong(reader, peek, path, "a datetime"),
    };
    Ok(read.map_err(|error| Problems::one(path, error)))
}

pub(super) fn resource(
    reader: &mut Reader<'_>,
    limits: &EventLimits,
) -> JiterResult<Field<Resource>> {
    let peek = reader.jiter.peek()?;
    resource_at(reader, peek, Place::Primary, limits)
}

pub(super) fn related(
    reader: &mut Reader<'_>,
    path: &'static str,
    limits: &EventLimits,
) -> JiterResult<Field<Vec<Resource>>> {
    let peek = reader.jiter.peek()?;
    if peek != Peek::Array {
        return wrong(reader, peek, path, "an array");
    }
    let mut related = Vec::new();
    let mut problems = Problems::default();
    let mut num_read = 0_usize;
    let mut next = reader.jiter.known_array()?;
    while let Some(peek) = next {
        match resource_at(reader, peek, Place::Related(num_read), limits)? {
            // What is beyond the limit is checked, but not held: the event is refused anyway.
            Ok(resource) if num_read < limits.max_related_resources => related.push(resource),
            Ok(_) => {}
            Err(wrong) => problems.append(wrong),
        }
        num_read += 1;
        next = reader.jiter.array_step()?;
    }
    if num_read > limits.max_related_resources {
        let max = limits.max_related_resources;
        problems.add(path, format_args!("more than {max} resources"));
    }
    Ok(if problems.is_empty() {
        Ok(related)
    } else {
        Err(problems)
    })
}

#[derive(Clone, Copy)]
enum Place {
    Primary,
    Related(usize),
}

impl Place {
    /// How many arrays and objects stand open around a label of the resource.
    fn num_open_around_label(self) -> usize {
        match self {
            Self::Primary => NUM_OPEN_AROUND_FIELD + 1,
            Self::Related(_) => NUM_OPEN_AROUND_FIELD + 2,
        }
    }

    fn required_labels(self) -> &'static [&'static str] {
        match self {
            Self::Primary => &[ID_LABEL],
            Self::Related(_) => &[ID_LABEL, ROLE_LABEL],
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Primary => f.write_str("resource"),
            Self::Related(index) => write!(f, "related.{index}"),
        }
    }
}

fn resource_at(
    reader: &mut Reader<'_>,
    peek: Peek,
    place: Place,
    limits: &EventLimits,
) -> JiterResult<Field<Resource>> {
    let mut problems = Problems::default();
    if peek != Peek::Object {
        reader.skip(peek, place.num_open_around_label() - 1)?;
        problems.add(place, wrong_kind("an object", peek));
        return Ok(Err(problems));
    }
    let labels = read_labels(reader, place, limits, &mut problems)?;
    // A label of the wrong kind is not missing, so what is missing is known only without such.
    if problems.is_empty() {
        labels.check(place, &mut problems);
    }
    Ok(if problems.is_empty() {
        Ok(labels.resource)
    } else {
        Err(problems)
    })
}

/// Reads labels, each of which must be a string, those that a later one replaces included.
fn read_labels(
    reader: &mut Reader<'_>,
    place: Place,
    limits: &EventLimits,
    problems: &mut Problems,
) -> JiterResult<Labels> {
    let mut labels = Labels::new(Resource::of(reader.text), limits.max_labels_per_resource);
    let mut num_read = 0_usize;
    let mut next = reader
        .jiter
        .known_object()?
        .map(|key| labels.resource.keep(key));
    while let Some(label) = next {
        num_read += 1;
        let peek = reader.jiter.peek()?;
        if peek == Peek::String {
            labels.set(label, reader.jiter.known_str()?);
        } else {
            reader.skip(peek, place.num_open_around_label())?;
            let shown = shown(labels.resource.kept(label), num_read);
            labels.resource.forget(label);
            let problem = wrong_kind("a string", peek);
            problems.add(place, format_args!("label {shown} {problem}"));
        }
        next = reader
            .jiter
            .next_key()?
            .map(|key| labels.resource.keep(key));
    }
    Ok(labels)
}

/// Labels with distinct keys, as a Python dictionary would hold them: a key that comes again
/// keeps its place and takes the new value.
struct Labels {
    resource: Resource,
    /// Where each label is in the resource; only for resources with many.
    places: HashMap<String, usize>,
    max_labels: usize,
    has_too_many: bool,
}

impl Labels {
    /// Up to so many labels comparing them all is faster than hashing; beyond it would be slow.
    const MAX_COMPARED: usize = 32;

    fn new(resource: Resource, max_labels: usize) -> Self {
        Self {
            resource,
            places: HashMap::new(),
            max_labels,
            has_too_many: false,
        }
    }

    fn set(&mut self, label: Span, value: &str) {
        if let Some(place) = self.place_of(self.resource.kept(label)) {
            self.resource.forget(label);
            let value = self.resource.keep(value);
            self.resource.set(place, value);
        } else if self.resource.labels().len() >= self.max_labels {
            // No more are held, so that memory is bounded by the limit and not by the sender.
            self.resource.forget(label);
            self.has_too_many = true;
        } else {
            let value = self.resource.keep(value);
            self.resource.add(label, value);
            self.index_new_labels();
        }
    }

    fn place_of(&self, label: &str) -> Option<usize> {
        if self.places.is_empty() {
            self.resource.place(label)
        } else {
            self.places.get(label).copied()
        }
    }

    fn index_new_labels(&mut self) {
        if self.resource.labels().len() > Self::MAX_COMPARED {
            let num_indexed = self.places.len();
            let new = self.resource.keys_from(num_indexed).zip(num_indexed..);
            self.places
                .extend(new.map(|(key, place)| (key.to_owned(), place)));
        }
    }

    fn check(&self, place: Place, problems: &mut Problems) {
        if self.has_too_many {
            problems.add(place, format_args!("more than {} labels", self.max_labels));
            return;
        }
        for label in place.required_labels() {
            match self.resource.get(label) {
                None => problems.add(place, format_args!("label {label} missing")),
                Some("") => {
                    problems.add(place, format_args!("label {label} empty"));
                }
                Some(_) => {}
            }
        }
    }
}

/// A label as a reason names it: by its key where that reads as a name, else by its number.
fn shown(label: &str, number: usize) -> String {
    const MAX_LENGTH: usize = 100;
    let is_name = !label.is_empty()
        && label.len() <= MAX_LENGTH
        && label.bytes().all(|byte| byte.is_ascii_graphic());
    if is_name {
        label.to_owned()
    } else {
        format!("number {number}")
    }
}

/// Consumes the value that was peeked and says that it is of the wrong kind.
fn wrong<T>(
    reader: &mut Reader<'_>,
    peek: Peek,
    path: &'static str,
    expected: &str,
) -> JiterResult<Field<T>> {
    reader.skip(peek, NUM_OPEN_AROUND_FIELD)?;
    Ok(Err(Problems::one(path, wrong_kind(expected, peek))))
}

fn wrong_kind(expected: &str, peek: Peek) -> String {
    format!("must be {expected}, not {}", kind_of(peek))
}
