//! Whether an event that has just come in is one that a filter asks for: as the database would say, but that
//! letters of either case are told apart everywhere but in a search.

use super::filter::{AnyResourceFilter, EventFilter, Labels, NameFilter, RelatedFilter};
use super::text_query::TextQuery;
use crate::event::{ID_LABEL, ROLE_LABEL, ReceivedEvent, Resource};

impl EventFilter {
    /// Whether the event is one of those that are wanted.
    pub fn matches(&self, event: &ReceivedEvent) -> bool {
        self.occurred.contains(event.occurred)
            && self.event.matches(&event.event)
            && (self.id.is_empty() || self.id.contains(&event.id))
            && self.matches_resource(&event.resource)
            && self.related.iter().all(|filter| filter.matches(event))
            && self.any_resource.iter().all(|filter| filter.matches(event))
            && self.text.as_deref().is_none_or(|query| found(query, event))
    }

    fn matches_resource(&self, resource: &Resource) -> bool {
        let filter = &self.resource;
        is_one_of(resource.id(), &filter.id)
            && begins(resource.id(), &filter.id_prefix)
            && filter.labels.matches(resource, None)
    }
}

impl NameFilter {
    fn matches(&self, name: &str) -> bool {
        begins(name, &self.prefix)
            && !self
                .exclude_prefix
                .iter()
                .any(|prefix| name.starts_with(prefix))
            && is_one_of(name, &self.name)
            && !self.exclude_name.iter().any(|other| other == name)
    }
}

impl RelatedFilter {
    fn matches(&self, event: &ReceivedEvent) -> bool {
        let Self {
            id,
            role,
            resources_in_roles,
            labels,
        } = self;
        let asks = !(id.is_empty()
            && role.is_empty()
            && resources_in_roles.is_empty()
            && labels.is_empty());
        let is_meant = |resource: &Resource, of_resource: &str| {
            let is_pair =
                |(id, role): &(String, String)| id == resource.id() && role == of_resource;
            is_one_of(resource.id(), id)
                && is_one_of(of_resource, role)
                && (resources_in_roles.is_empty() || resources_in_roles.iter().any(is_pair))
                && labels.matches(resource, Some(of_resource))
        };
        let mut related = event.related.iter();
        !asks
            || related.any(|resource| is_meant(resource, resource.role().unwrap_or_default()))
            // The primary resource has no role, and is meant where that is asked for.
            || (role.iter().any(String::is_empty) && is_meant(&event.resource, ""))
    }
}

impl AnyResourceFilter {
    fn matches(&self, event: &ReceivedEvent) -> bool {
        let is_meant = |resource: &Resource, role: &str| {
            is_one_of(resource.id(), &self.id)
                && begins(resource.id(), &self.id_prefix)
                && self.labels.matches(resource, Some(role))
        };
        let mut related = event.related.iter();
        is_meant(&event.resource, "")
            || related.any(|resource| is_meant(resource, resource.role().unwrap_or_default()))
    }
}

impl Labels {
    /// Whether the resource has them all; `role` where the role counts as a label.
    fn matches(&self, resource: &Resource, role: Option<&str>) -> bool {
        self.0
            .iter()
            .all(|(label, patterns)| match (label.as_str(), role) {
                (ID_LABEL, _) => patterns.is_empty() || any_matches(patterns, resource.id()),
                (ROLE_LABEL, Some(role)) => is_one_of(role, patterns),
                (ROLE_LABEL, None) => false,
                (label, _) => resource
                    .get(label)
                    .is_some_and(|value| any_matches(patterns, value)),
            })
    }
}

fn is_one_of(text: &str, texts: &[String]) -> bool {
    texts.is_empty() || texts.iter().any(|one| one == text)
}

fn begins(text: &str, prefixes: &[String]) -> bool {
    prefixes.is_empty() || prefixes.iter().any(|prefix| text.starts_with(prefix))
}

fn any_matches(patterns: &[String], value: &str) -> bool {
    patterns
        .iter()
        .any(|pattern| match pattern.strip_prefix('!') {
            Some(pattern) => !is_like(value, pattern),
            None => is_like(value, pattern),
        })
}

/// Whether the text fits a pattern in which `*` is any text and `?` any character.
fn is_like(text: &str, pattern: &str) -> bool {
    let (text, pattern): (Vec<char>, Vec<char>) =
        (text.chars().collect(), pattern.chars().collect());
    let (mut at, mut place) = (0, 0);
    // Where the last `*` stands, and how much of the text it has taken.
    let mut star: Option<(usize, usize)> = None;
    while at < text.len() {
        match pattern.get(place) {
            Some('*') => {
                star = Some((place, at));
                place += 1;
            }
            Some(&c) if c == '?' || c == text[at] => {
                at += 1;
                place += 1;
            }
            _ => match star {
                Some((of_star, taken)) => {
                    star = Some((of_star, taken + 1));
                    (place, at) = (of_star + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern[place..].iter().all(|c| *c == '*')
}

/// Whether a search finds the event by its name, the values of its labels, or its payload.
fn found(query: &str, event: &ReceivedEvent) -> bool {
    let query = TextQuery::parse(query);
    let mut text = event.event.clone();
    for resource in std::iter::once(&event.resource).chain(&event.related) {
        for (_, value) in resource.labels() {
            text.push(' ');
            text.push_str(value);
        }
    }
    text.push(' ');
    text.push_str(event.payload());
    let text = text.to_lowercase();
    let has = |term: &String| text.contains(&term.to_lowercase());
    (query.include.is_empty() || query.include.iter().any(has))
        && !query.exclude.iter().any(has)
        && query.required.iter().all(has)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_mean_what_they_mean_to_the_database() {
        for (text, pattern, fits) in [
            ("", "", true),
            ("", "*", true),
            ("", "?", false),
            ("abc", "abc", true),
            ("abc", "ab", false),
            ("abc", "a?c", true),
            ("abc", "a*", true),
            ("abc", "*c", true),
            ("abcbc", "a*bc", true),
            ("abcbd", "a*bc", false),
            ("aXb", "a_b", false),
            ("a%b", "a%b", true),
            ("grün", "gr?n", true),
            ("ABC", "abc", false),
            ("[a-z]", "[a-z]", true),
            ("x", "[a-z]", false),
            ("ab", "a**b*", true),
        ] {
            assert_eq!(is_like(text, pattern), fits, "{text} {pattern}");
        }
    }
}
