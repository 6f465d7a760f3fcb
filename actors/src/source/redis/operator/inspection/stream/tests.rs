use super::*;
use crate::finding::Severity;
use crate::source::redis::settings::consumer_name;

const NOW: u64 = 1_700_000_000_000;

fn group(name: &str, last_delivered: &str) -> Group {
    Group {
        name: name.to_owned(),
        num_consumers: 0,
        last_delivered: last_delivered.parse().unwrap(),
        lag: None,
    }
}

/// All was read and stored a second ago.
fn good() -> StreamFacts {
    StreamFacts {
        now: NOW,
        length: Some(3),
        groups: vec![
            group("event-persister", "1699999999000-5"),
            group("event-persister-guard", "1699999999000-0"),
        ],
        ..StreamFacts::default()
    }
}

fn bad(facts: &StreamFacts, retention: Option<Duration>) -> Vec<(&'static str, Severity)> {
    let findings = facts.judge(&RedisSettings::default(), retention);
    findings
        .into_iter()
        .filter(|finding| finding.severity > Severity::Ok)
        .map(|finding| (finding.id, finding.severity))
        .collect()
}

#[test]
fn a_stream_that_is_read_gives_no_reason_to_worry() {
    assert_eq!(bad(&good(), Some(Duration::from_secs(60))), []);
}

#[test]
fn prefects_consumers_are_told_from_ours() {
    assert!(is_prefects("event-persister-web-7d9f-12-0a1b2c3d"));
    assert!(!is_prefects(&consumer_name("web-7d9f")));
    assert!(!is_prefects("event-persister-0a1b2c3d"));
    assert!(!is_prefects("event-logger-web-12-0a1b2c3d"));
}

#[test]
fn prefects_consumers_matter_while_they_are_active() {
    let mut facts = good();
    let consumer = |idle| StreamInfoConsumer {
        name: "event-persister-web-12-0a1b2c3d".to_owned(),
        pending: 0,
        idle,
    };
    facts.consumers = vec![consumer(61_000)];
    assert_eq!(bad(&facts, None), []);
    facts.consumers = vec![consumer(1_000)];
    assert_eq!(
        bad(&facts, None),
        [("redis.prefect_persister", Severity::Warning)]
    );
}

#[test]
fn what_waits_for_longer_than_retention_would_be_deleted_unseen() {
    let mut facts = good();
    facts.oldest_unread = Some("1699999900000-0".parse().unwrap());
    assert_eq!(bad(&facts, Some(Duration::from_secs(101))), []);
    assert_eq!(
        bad(&facts, Some(Duration::from_secs(99))),
        [("redis.retention", Severity::Error)]
    );
    assert_eq!(bad(&facts, None), [], "nothing is ever deleted");
}

#[test]
fn the_guard_must_stand_where_it_guards() {
    let mut facts = good();
    facts.groups[1] = group("event-persister-guard", "1699999999500-0");
    assert_eq!(bad(&facts, None), [("redis.guard", Severity::Error)]);
    facts = good();
    facts.groups[0] = group("event-persister", "1699999900000-0");
    facts.groups[1] = group("event-persister-guard", "1699999000000-0");
    assert_eq!(bad(&facts, None), [("redis.guard", Severity::Warning)]);
    facts.groups.pop();
    assert_eq!(bad(&facts, None), [("redis.guard", Severity::Warning)]);
}

#[test]
fn new_groups_are_where_serve_makes_them() {
    let mut facts = good();
    facts.groups[0] = group("event-persister", "0-1");
    facts.groups[1] = group("event-persister-guard", "0-1");
    assert_eq!(bad(&facts, None), []);
    facts.groups[0] = group("event-persister", "0-0");
    assert_eq!(bad(&facts, None), [("redis.group", Severity::Warning)]);
}

#[test]
fn a_guard_of_a_group_that_nobody_reads_as_is_told_of() {
    let mut facts = good();
    let other = |id| group("orders-guard", id);
    facts.groups.push(other("1699999000000-0"));
    let findings = facts.judge(&RedisSettings::default(), None);
    let mut left = findings.iter().filter(|one| one.id == "redis.other_guard");
    let left = left.next().unwrap();
    assert!(left.what.contains("orders-guard") && left.what.contains("999 s behind"));
    let remedy = left.remedy.as_ref().unwrap();
    assert!(remedy.contains("as orders any more"), "{remedy}");
    assert!(remedy.contains("XGROUP DESTROY events orders-guard"));
    assert_eq!(bad(&facts, None).len(), 1);
    facts.groups[2] = other("1699999999000-0");
    assert_eq!(bad(&facts, None), [], "somebody moves it");
    facts.groups[2] = Group {
        num_consumers: 1,
        ..other("1699999000000-0")
    };
    assert_eq!(bad(&facts, None), [], "somebody reads as that group");
    facts.groups[2] = group("reactive-triggers", "1699999000000-0");
    assert_eq!(bad(&facts, None), [], "this is no guard");
}
