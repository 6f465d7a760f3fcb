//! A filter out of JSON: what it takes, and what is said of what it does not take, is Prefect's.

use chrono::{DateTime, Utc};
use serde_json::Value;

use super::filter::{
    AnyResourceFilter, EventFilter, Labels, NameFilter, Occurred, Order, RelatedFilter,
    ResourceFilter,
};
use super::problems::{Loc, Problems};
use super::values::{given, list, moment, no_others, object, text, texts, truth, uuid};
use crate::event::{ID_LABEL, ROLE_LABEL};

/// The longest search, in characters.
const MAX_QUERY: usize = 200;

pub(super) fn filter(
    problems: &mut Problems,
    at: &Loc<'_>,
    value: &Value,
    now: DateTime<Utc>,
) -> Option<EventFilter> {
    let filter = object(problems, at, value)?;
    let mut parsed = EventFilter::all(now);
    if let Some(value) = filter.get("occurred") {
        occurred(problems, &at.key("occurred"), value, &mut parsed.occurred);
    }
    if let Some(value) = given(filter, "event") {
        parsed.event = names(problems, &at.key("event"), value).unwrap_or_default();
    }
    if let Some(value) = given(filter, "resource") {
        parsed.resource = resource(problems, &at.key("resource"), value).unwrap_or_default();
    }
    if let Some(value) = given(filter, "related") {
        let (at, name) = (at.key("related"), "EventRelatedFilter");
        parsed.related = one_or_more(problems, &at, value, name, related);
    }
    if let Some(value) = given(filter, "any_resource") {
        let (at, name) = (at.key("any_resource"), "EventAnyResourceFilter");
        parsed.any_resource = one_or_more(problems, &at, value, name, any_resource);
    }
    if let Some(value) = filter.get("id") {
        let at = at.key("id");
        if let Some(filter) = object(problems, &at, value) {
            if let Some(value) = given(filter, "id") {
                let at = at.key("id");
                for (index, value) in list(problems, &at, value)
                    .unwrap_or_default()
                    .iter()
                    .enumerate()
                {
                    parsed.id.extend(uuid(problems, &at.index(index), value));
                }
            }
            no_others(problems, &at, filter, &["id"]);
        }
    }
    if let Some(value) = given(filter, "text") {
        parsed.text = search(problems, &at.key("text"), value);
    }
    if let Some(value) = filter.get("order") {
        parsed.order = match value.as_str() {
            Some("ASC") => Order::Asc,
            Some("DESC") => Order::Desc,
            _ => {
                problems.add(&at.key("order"), "enum", "give 'ASC' or 'DESC'");
                Order::Desc
            }
        };
    }
    let known = [
        "occurred",
        "event",
        "resource",
        "related",
        "any_resource",
        "id",
        "text",
        "order",
    ];
    no_others(problems, at, filter, &known);
    Some(parsed)
}

fn occurred(problems: &mut Problems, at: &Loc<'_>, value: &Value, parsed: &mut Occurred) {
    let Some(filter) = object(problems, at, value) else {
        return;
    };
    for (key, bound) in [("since", &mut parsed.since), ("until", &mut parsed.until)] {
        if let Some(value) = filter.get(key) {
            *bound = moment(problems, &at.key(key), value).unwrap_or(*bound);
        }
    }
    no_others(problems, at, filter, &["since", "until"]);
}

fn names(problems: &mut Problems, at: &Loc<'_>, value: &Value) -> Option<NameFilter> {
    const KEYS: [&str; 4] = ["prefix", "exclude_prefix", "name", "exclude_name"];
    let filter = object(problems, at, value)?;
    let mut lists = KEYS.map(|key| {
        let value = given(filter, key)?;
        texts(problems, &at.key(key), value)
    });
    let [prefix, exclude_prefix, name, exclude_name] =
        [0, 1, 2, 3].map(|place: usize| lists[place].take().unwrap_or_default());
    no_others(problems, at, filter, &KEYS);
    Some(NameFilter {
        prefix,
        exclude_prefix,
        name,
        exclude_name,
    })
}

fn resource(problems: &mut Problems, at: &Loc<'_>, value: &Value) -> Option<ResourceFilter> {
    let filter = object(problems, at, value)?;
    let parsed = ResourceFilter {
        id: member(problems, at, filter, "id", texts),
        id_prefix: member(problems, at, filter, "id_prefix", texts),
        labels: member(problems, at, filter, "labels", labels),
        distinct: match filter.get("distinct") {
            Some(value) => truth(problems, &at.key("distinct"), value).unwrap_or_default(),
            None => false,
        },
    };
    no_others(
        problems,
        at,
        filter,
        &["id", "id_prefix", "labels", "distinct"],
    );
    Some(parsed)
}

fn related(problems: &mut Problems, at: &Loc<'_>, value: &Value) -> Option<RelatedFilter> {
    let filter = object(problems, at, value)?;
    let parsed = RelatedFilter {
        id: member(problems, at, filter, "id", texts),
        role: member(problems, at, filter, "role", texts),
        resources_in_roles: member(problems, at, filter, "resources_in_roles", pairs),
        labels: member(problems, at, filter, "labels", labels),
    };
    no_others(
        problems,
        at,
        filter,
        &["id", "role", "resources_in_roles", "labels"],
    );
    Some(parsed)
}

fn any_resource(problems: &mut Problems, at: &Loc<'_>, value: &Value) -> Option<AnyResourceFilter> {
    let filter = object(problems, at, value)?;
    let parsed = AnyResourceFilter {
        id: member(problems, at, filter, "id", texts),
        id_prefix: member(problems, at, filter, "id_prefix", texts),
        labels: member(problems, at, filter, "labels", labels),
    };
    no_others(problems, at, filter, &["id", "id_prefix", "labels"]);
    Some(parsed)
}

fn search(problems: &mut Problems, at: &Loc<'_>, value: &Value) -> Option<String> {
    let filter = object(problems, at, value)?;
    let at_query = at.key("query");
    let query = match filter.get("query") {
        Some(value) => text(problems, &at_query, value),
        None => {
            problems.add(&at_query, "missing", "give a text to search for");
            None
        }
    };
    let query = query.filter(|query| {
        let is_short = query.chars().count() <= MAX_QUERY;
        if !is_short {
            let msg = format!("give at most {MAX_QUERY} characters");
            problems.add(&at_query, "string_too_long", msg);
        }
        is_short
    });
    no_others(problems, at, filter, &["query"]);
    query.map(str::to_owned)
}

type Read<T> = fn(&mut Problems, &Loc<'_>, &Value) -> Option<T>;

fn member<T: Default>(
    problems: &mut Problems,
    at: &Loc<'_>,
    filter: &super::values::Object,
    key: &str,
    read: Read<T>,
) -> T {
    let value = given(filter, key);
    value
        .and_then(|value| read(problems, &at.key(key), value))
        .unwrap_or_default()
}

/// One filter or a list of them. Where it is neither, the problems of both are named, as those of alternatives.
fn one_or_more<T>(
    problems: &mut Problems,
    at: &Loc<'_>,
    value: &Value,
    name: &str,
    read: Read<T>,
) -> Vec<T> {
    let mut as_one = Problems::default();
    let one = read(&mut as_one, &at.key(name), value);
    if as_one.0.is_empty() {
        return one.into_iter().collect();
    }
    let mut as_list = Problems::default();
    let name = format!("list[{name}]");
    let at_list = at.key(&name);
    let mut all = Vec::new();
    for (index, value) in list(&mut as_list, &at_list, value)
        .unwrap_or_default()
        .iter()
        .enumerate()
    {
        all.extend(read(&mut as_list, &at_list.index(index), value));
    }
    if !as_list.0.is_empty() {
        problems.0.extend(as_one.0.into_iter().chain(as_list.0));
    }
    all
}

fn labels(problems: &mut Problems, at: &Loc<'_>, value: &Value) -> Option<Labels> {
    let Some(labels) = value.as_object() else {
        problems.add(at, "dict_type", "give an object of labels");
        return None;
    };
    let mut parsed = Vec::with_capacity(labels.len());
    for (label, value) in labels {
        let at = at.key(label);
        let patterns = match value {
            // An empty id or role asks for nothing.
            Value::String(text)
                if text.is_empty() && [ID_LABEL, ROLE_LABEL].contains(&label.as_str()) =>
            {
                Some(Vec::new())
            }
            Value::String(text) => Some(vec![text.clone()]),
            value => {
                let mut as_list = Problems::default();
                let list = texts(&mut as_list, &at.key("list[str]"), value);
                if !as_list.0.is_empty() {
                    problems.add(
                        &at.key("str"),
                        "string_type",
                        "give a pattern or a list of them",
                    );
                    problems.0.append(&mut as_list.0);
                }
                list
            }
        };
        parsed.push((label.clone(), patterns.unwrap_or_default()));
    }
    Some(Labels(parsed))
}

fn pairs(problems: &mut Problems, at: &Loc<'_>, value: &Value) -> Option<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    for (index, value) in list(problems, at, value)?.iter().enumerate() {
        let at = at.index(index);
        let msg = "give the id of a resource and its role";
        let Some(pair) = value.as_array() else {
            problems.add(&at, "tuple_type", msg);
            continue;
        };
        if pair.len() > 2 {
            problems.add(&at, "too_long", msg);
            continue;
        }
        let mut part = |place: usize| match pair.get(place) {
            Some(value) => text(problems, &at.index(place), value).map(str::to_owned),
            None => {
                problems.add(&at.index(place), "missing", msg);
                None
            }
        };
        pairs.extend(part(0).zip(part(1)));
    }
    Some(pairs)
}
