//! `archive list`, `archive verify`, `check`, and what is said where something is wrong.

use super::*;

fn first_file(case: &Case) -> PathBuf {
    let files = case.run(&["archive", "list", "--json"]).exits(0).json();
    case.archive_path().join(files[0]["file"].as_str().unwrap())
}

fn verified(case: &Case) -> String {
    let ran = case.run(&["archive", "verify"]).exits(1);
    ran.stdout
}

#[test]
fn every_damage_is_found() {
    let case = Case::sqlite();
    case.store_events(60);
    case.trim().exits(0);
    case.is_in_order();
    case.run(&["archive", "verify"])
        .exits(0)
        .prints(&["are right"]);
    let file = first_file(&case);
    let whole = std::fs::read(&file).unwrap();
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    std::fs::write(&file, &damaged).unwrap();
    assert!(verified(&case).contains("its checksum is another"));
    std::fs::write(&file, &whole[..whole.len() - 1]).unwrap();
    assert!(verified(&case).contains("bytes, not"));
    std::fs::remove_file(&file).unwrap();
    assert!(verified(&case).contains("cannot read"));
    std::fs::write(&file, &whole).unwrap();
    std::fs::copy(&file, file.with_file_name("000000000000-copy.parquet")).unwrap();
    assert!(verified(&case).contains("it is a copy of occurred_date="));
}

#[test]
fn what_cannot_be_restored_is_named_and_stops_nothing_else() {
    let case = Case::sqlite();
    case.store_events(90);
    case.trim().exits(0);
    let num_left = case.in_tables().len() as u64;
    let listed = case.run(&["archive", "list", "--json"]).exits(0).json();
    let [damaged, missing, others @ ..] = listed.as_array().unwrap().as_slice() else {
        panic!("{listed}");
    };
    let name = |file: &Value| file["file"].as_str().unwrap().to_owned();
    let num_events = |file: &Value| file["events"].as_u64().unwrap();
    let num_others: u64 = others.iter().map(num_events).sum();
    assert!(num_others > 0);
    let (damaged_path, missing_path) = (
        case.archive_path().join(name(damaged)),
        case.archive_path().join(name(missing)),
    );
    let whole = std::fs::read(&damaged_path).unwrap();
    let away = std::fs::read(&missing_path).unwrap();
    std::fs::remove_file(&missing_path).unwrap();
    // The middle is payload, which may well be read as another.
    let mut other = whole.clone();
    other[whole.len() / 2] ^= 1;
    std::fs::write(&damaged_path, &other).unwrap();
    case.run(&["archive", "restore"]).exits(1).complains(&[
        &format!("{} is not what its manifest says", name(damaged)),
        &format!("{} is not in the archive", name(missing)),
        "not all of the archive was restored",
    ]);
    assert_eq!(case.in_tables().len() as u64, num_left + num_others);
    // A database that has archived none of them.
    std::fs::write(&damaged_path, &whole[..whole.len() / 2]).unwrap();
    let url = format!("sqlite://{}", case.folder.path().join("other.db").display());
    let elsewhere = ["archive", "restore", "--json", "--database-url", &url];
    let ran = case.run(&elsewhere).exits(1);
    assert_eq!(ran.json()["stored"], num_others);
    ran.complains(&[&format!("{} cannot be read", name(damaged))]);
    std::fs::write(&damaged_path, &whole).unwrap();
    std::fs::write(&missing_path, &away).unwrap();
    case.run(&["archive", "restore"]).exits(0);
    let num_archived: u64 = listed.as_array().unwrap().iter().map(num_events).sum();
    assert_eq!(case.in_tables().len() as u64, num_left + num_archived);
}

#[test]
fn who_has_lost_the_address_of_the_archive_is_told_before_anything_is_removed() {
    const UNSET: (&str, &str) = ("EVENT_PERSISTER_ARCHIVE_URL", "");
    const SAID: &str =
        "archive.url is not set, though events of this database were archived before";
    let case = Case::sqlite();
    case.store_events(30);
    let never = case.run_with(&["trim", "--dry-run"], &[UNSET]).exits(0);
    assert!(!never.stderr.contains(SAID), "{never:?}");
    case.trim().exits(0);
    case.run_with(&["trim", "--yes"], &[UNSET])
        .exits(0)
        .complains(&[SAID]);
    let service = case.serve(&[UNSET]);
    crate::support::wait::until_blocking("the warning", || service.log().contains(SAID));
}

#[test]
fn a_check_tells_whether_it_can_be_written_and_is_the_same() {
    let case = Case::sqlite();
    let findings = |case: &Case, more: &[(&str, &str)]| -> BTreeMap<String, (String, String)> {
        let checked = case.run_with(&["check", "--json"], more).json();
        let findings = checked["findings"].as_array().unwrap().iter();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let archive = findings.filter(|finding| text(&finding["id"]).starts_with("archive."));
        archive
            .map(|finding| {
                (
                    text(&finding["id"]),
                    (text(&finding["severity"]), text(&finding["what"])),
                )
            })
            .collect()
    };
    let before = findings(&case, &[]);
    assert!(
        before["archive.same"].1.contains("no archive yet"),
        "{before:?}"
    );
    assert!(!case.archive_path().exists(), "a check makes nothing");
    case.store_events(30);
    case.trim().exits(0);
    let after = findings(&case, &[]);
    assert!(
        after.values().all(|(severity, _)| severity == "ok"),
        "{after:?}"
    );
    for id in [
        "archive.same",
        "archive.writable",
        "archive.clock",
        "archive.known",
        "archive.complete",
    ] {
        assert!(after.contains_key(id), "{id}: {after:?}");
    }
    let file = first_file(&case);
    let away = file.with_extension("away");
    std::fs::rename(&file, &away).unwrap();
    let missing = findings(&case, &[]);
    assert_eq!(missing["archive.complete"].0, "error", "{missing:?}");
    std::fs::rename(&away, &file).unwrap();
    let unset = findings(&case, &[("EVENT_PERSISTER_ARCHIVE_URL", "")]);
    assert_eq!(unset["archive.unset"].0, "warning");
    std::fs::remove_file(case.archive_path().join("_event_persister_archive.json")).unwrap();
    let gone = findings(&case, &[]);
    assert_eq!(gone["archive.same"].0, "error", "{gone:?}");
    // Of what is not this database's archive, nothing more is said.
    assert!(!gone.contains_key("archive.known"), "{gone:?}");
    assert!(!gone.contains_key("archive.complete"), "{gone:?}");
}

#[test]
fn a_database_without_an_archive_says_so() {
    let folder = Folder::new();
    folder.run(&["migrate"]).exits(0);
    folder
        .run(&["archive", "list"])
        .exits(0)
        .prints(&["nothing was archived"]);
    folder
        .run(&["archive", "verify"])
        .exits(1)
        .complains(&["archive.url"]);
    folder
        .run(&["archive", "restore"])
        .exits(1)
        .complains(&["archive.url"]);
    let wrong = [("EVENT_PERSISTER_ARCHIVE_URL", "ftp://host/x")];
    folder
        .run_with(&["check"], &wrong)
        .exits(2)
        .complains(&["s3://bucket/prefix"]);
}
