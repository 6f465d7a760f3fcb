//! A resource of an event. Its labels are not copied, unless they have escapes: they say where in the event's
//! text they stand.

use bytestring::ByteString;

use super::{ID_LABEL, ROLE_LABEL};

/// A business object that an event is about: labels with distinct keys, in the sender's order.
///
/// The id label is always there and not empty; on a related resource so is the role.
#[derive(Clone)]
pub struct Resource {
    text: ByteString,
    /// Keys and values that the text holds with escapes in them, one behind another.
    decoded: String,
    labels: Vec<(Span, Span)>,
}

/// Where a key or a value stands: in the text, or in what is decoded as if that stood behind the text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Span {
    start: usize,
    length: usize,
}

impl Resource {
    pub(super) fn of(text: &ByteString) -> Self {
        Self {
            text: text.clone(),
            decoded: String::new(),
            labels: Vec::new(),
        }
    }

    /// A resource of an event that this process makes; the event's rules are checked when it is built.
    pub fn new(id: &str) -> Self {
        Self::of(&ByteString::new()).with_label(ID_LABEL, id)
    }

    /// The same with a label more, or with another value for one that it has.
    pub fn with_label(mut self, key: &str, value: &str) -> Self {
        match self.place(key) {
            Some(place) => {
                let value = self.keep(value);
                self.set(place, value);
            }
            None => {
                let (key, value) = (self.keep(key), self.keep(value));
                self.add(key, value);
            }
        }
        self
    }

    /// The same as a related resource, with what it is to the event.
    pub fn with_role(self, role: &str) -> Self {
        self.with_label(ROLE_LABEL, role)
    }

    /// Of labels that were checked: distinct keys, a non-empty id.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn from_checked(labels: &[(impl AsRef<str>, impl AsRef<str>)]) -> Self {
        let mut resource = Self::of(&ByteString::new());
        for (key, value) in labels {
            let (key, value) = (resource.keep(key.as_ref()), resource.keep(value.as_ref()));
            resource.add(key, value);
        }
        resource
    }

    /// Keeps a key or a value, without a copy where it is a part of the text.
    pub(super) fn keep(&mut self, part: &str) -> Span {
        let length = part.len();
        let start = place_within(&self.text, part).unwrap_or_else(|| {
            let start = self.text.len() + self.decoded.len();
            self.decoded.push_str(part);
            start
        });
        Span { start, length }
    }

    pub(super) fn kept(&self, span: Span) -> &str {
        let (text, start): (&str, _) = match span.start.checked_sub(self.text.len()) {
            Some(start) => (&self.decoded, start),
            None => (&self.text, span.start),
        };
        text.get(start..start + span.length).unwrap_or_default()
    }

    /// Gives up what was kept last.
    pub(super) fn forget(&mut self, last: Span) {
        if let Some(start) = last.start.checked_sub(self.text.len()) {
            self.decoded.truncate(start);
        }
    }

    /// Where a label is among the others.
    pub(super) fn place(&self, label: &str) -> Option<usize> {
        // Most differ in length already, which spares a look at the text.
        let is_it = |key: Span| key.length == label.len() && self.kept(key) == label;
        self.labels.iter().position(|(key, _)| is_it(*key))
    }

    pub(super) fn keys_from(&self, place: usize) -> impl Iterator<Item = &str> {
        let labels = self.labels.iter().skip(place);
        labels.map(|&(key, _)| self.kept(key))
    }

    pub(super) fn add(&mut self, key: Span, value: Span) {
        self.labels.push((key, value));
    }

    pub(super) fn set(&mut self, place: usize, value: Span) {
        if let Some(label) = self.labels.get_mut(place) {
            label.1 = value;
        }
    }

    /// The value of one label.
    pub fn get(&self, label: &str) -> Option<&str> {
        let (_, value) = self.labels.get(self.place(label)?)?;
        Some(self.kept(*value))
    }

    /// The label [`ID_LABEL`](super::ID_LABEL), which every resource of a valid event has.
    pub fn id(&self) -> &str {
        self.get(ID_LABEL).unwrap_or_default()
    }

    /// The role of a related resource in the event; `None` where the label is missing.
    pub fn role(&self) -> Option<&str> {
        self.get(ROLE_LABEL)
    }

    /// All labels in order, id and role included.
    pub fn labels(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        let labels = self.labels.iter();
        labels.map(|&(key, value)| (self.kept(key), self.kept(value)))
    }

    /// The labels besides id and role, in order.
    pub fn other_labels(&self) -> impl Iterator<Item = (&str, &str)> {
        self.labels()
            .filter(|(key, _)| *key != ID_LABEL && *key != ROLE_LABEL)
    }
}

/// By its labels, wherever they stand.
impl PartialEq for Resource {
    fn eq(&self, other: &Self) -> bool {
        self.labels().eq(other.labels())
    }
}

impl Eq for Resource {}

/// The number of labels only; see [`ReceivedEvent`](super::ReceivedEvent)'s.
impl std::fmt::Debug for Resource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resource")
            .field("num_labels", &self.labels.len())
            .finish_non_exhaustive()
    }
}

/// Where in the text this part of it begins; `None` where it is no part but a text of its own.
fn place_within(text: &str, part: &str) -> Option<usize> {
    let start = part.as_ptr().addr().checked_sub(text.as_ptr().addr())?;
    // A text of its own may be empty, and then begin anywhere, even where this one ends.
    (start < text.len() && part.len() <= text.len() - start).then_some(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_the_text_is_not_copied_and_what_does_not_is() {
        let text = ByteString::from("the key and the value");
        let mut resource = Resource::of(&text);
        let key = resource.keep(&text[4..7]);
        let escaped = resource.keep("a \"value\"");
        let empty = resource.keep("");
        let last = resource.keep("höher");
        for part in ["not wanted", &text[..3]] {
            let part = resource.keep(part);
            resource.forget(part);
        }
        resource.add(key, escaped);
        resource.add(last, empty);
        assert_eq!(resource.decoded, "a \"value\"höher");
        assert!(resource.keys_from(1).eq(["höher"]));
        let labels: Vec<_> = resource.labels().collect();
        assert_eq!(labels, [("key", "a \"value\""), ("höher", "")]);
        let value = resource.keep(&text[16..]);
        resource.set(0, value);
        assert_eq!(resource.get("key"), Some("value"));
        assert_eq!(
            resource,
            Resource::from_checked(&[("key", "value"), ("höher", "")])
        );
        assert_ne!(
            resource,
            Resource::from_checked(&[("höher", ""), ("key", "value")])
        );
    }

    #[test]
    fn a_text_that_ends_where_another_begins_is_no_part_of_it() {
        let both = "onetwo";
        let (one, two) = both.split_at(3);
        assert_eq!(place_within(both, two), Some(3));
        assert_eq!(place_within(one, two), None);
        assert_eq!(place_within(two, one), None);
        assert_eq!(place_within(two, both), None);
        assert_eq!(place_within(one, both), None);
    }
}
