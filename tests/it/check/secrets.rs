//! Secrets that come from files; completions and the manual, which want no configuration at all.

use super::*;
use crate::support::server::Server;

fn setting(ran: &Ran, name: &str) -> (Value, Value) {
    let document = ran.json();
    let settings = document["settings"].as_array().unwrap();
    let found = settings.iter().find(|setting| setting["name"] == name);
    let found = found.unwrap();
    (found["value"].clone(), found["from"].clone())
}

#[test]
fn every_secret_may_stand_in_a_file() {
    let folder = Folder::new();
    folder.write("database", "sqlite://of-a-file.db\n");
    folder.write("redis", "redis://:hunter2@127.0.0.1:1/0\r\n");
    folder.write("auth", "admin:hunter2\n");
    let variables = [
        ("EVENT_PERSISTER_DATABASE_URL_FILE", "database"),
        ("EVENT_PERSISTER_REDIS_URL_FILE", "redis"),
        ("EVENT_PERSISTER_HTTP_AUTH_STRING_FILE", "auth"),
    ];
    let ran = check(&folder, &variables).exits(1);
    assert!(!ran.stdout.contains("hunter2"), "{ran:?}");
    let (value, from) = setting(&ran, "database.url");
    assert_eq!(value, "sqlite://of-a-file.db");
    assert_eq!(from, "EVENT_PERSISTER_DATABASE_URL_FILE (database)");
    assert_eq!(setting(&ran, "redis.url").0, "redis://:***@127.0.0.1:1/0");
    assert_eq!(setting(&ran, "http.auth_string").0, "***");
}

#[tokio::test]
async fn the_auth_string_of_a_file_counts_without_its_end_of_line() {
    let folder = Folder::new();
    folder.write("auth", "admin:hunter2\n");
    let file = ("EVENT_PERSISTER_HTTP_AUTH_STRING_FILE", "auth");
    let server = Server::start(&folder, &[file]).ready().await;
    assert_eq!(server.get("/metrics").await.status(), 401);
    let authorized = crate::support::client::client()
        .get(server.url("/metrics"))
        .basic_auth("admin", Some("hunter2"))
        .send()
        .await
        .unwrap();
    assert_eq!(authorized.status(), 200);
    server.terminate().in_good_order();
}

#[test]
fn a_secret_that_is_given_twice_or_cannot_be_read_is_an_error() {
    let folder = Folder::new();
    let variable = "EVENT_PERSISTER_DATABASE_URL";
    let file = "EVENT_PERSISTER_DATABASE_URL_FILE";
    check(&folder, &[(variable, "sqlite://a.db"), (file, "database")])
        .exits(2)
        .complains(&[variable, file, "keep one"]);
    check(&folder, &[(file, "missing")])
        .exits(2)
        .complains(&[file, "cannot read missing"]);
    folder.write("empty", "\n");
    check(&folder, &[(file, "empty")])
        .exits(2)
        .complains(&[file, "is empty"]);
}

#[test]
fn what_stands_in_a_wrong_file_is_not_repeated() {
    let folder = Folder::new();
    folder.write("wrong", "hunter2\n");
    for name in ["DATABASE_URL", "REDIS_URL"] {
        let file = format!("EVENT_PERSISTER_{name}_FILE");
        let ran = check(&folder, &[(&file, "wrong")])
            .exits(2)
            .complains(&[&file]);
        assert!(!ran.stderr.contains("hunter2"), "{ran:?}");
    }
}

#[test]
fn a_flag_comes_before_the_file_of_a_variable() {
    let folder = Folder::new();
    folder.write("database", "sqlite://of-a-file.db");
    let file = ("EVENT_PERSISTER_DATABASE_URL_FILE", "database");
    let flag = ["--database-url", "sqlite://of-a-flag.db"];
    let ran = check_with(&folder, &flag, &[file]).exits(0);
    assert_eq!(setting(&ran, "database.url").0, "sqlite://of-a-flag.db");
}

#[test]
fn completions_need_no_configuration_and_are_right() {
    let folder = Folder::new();
    let wrong = [("EVENT_PERSISTER_NONSENSE", "1")];
    for shell in ["bash", "zsh", "fish"] {
        let ran = folder
            .run_with(&["completions", shell], &wrong)
            .exits(0)
            .prints(&["dead-letters", "replay", "database-url", "completions"]);
        folder.write(shell, &ran.stdout);
    }
    let parsed = std::process::Command::new("bash")
        .args(["-n", "bash"])
        .current_dir(folder.path())
        .status();
    assert!(parsed.unwrap().success());
    folder.run(&["completions", "tcsh"]).exits(2);
}

#[test]
fn the_manual_has_a_page_for_each_command() {
    let folder = Folder::new();
    let wrong = [("EVENT_PERSISTER_NONSENSE", "1")];
    folder.run_with(&["manual", "pages"], &wrong).exits(0);
    let page = |name: &str| {
        let path = folder.path().join("pages").join(name);
        std::fs::read_to_string(path).unwrap()
    };
    let front = page("event-persister.1");
    assert!(front.contains(".TH event-persister 1"), "{front}");
    assert!(
        front.contains("event\\-persister\\-dead\\-letters(1)"),
        "{front}"
    );
    let replay = page("event-persister-dead-letters-replay.1");
    assert!(replay.contains("\\-\\-database\\-url"), "{replay}");
    assert!(!replay.contains("\\-\\-listen"), "{replay}");

    folder.write("file", "");
    folder
        .run_with(&["manual", "file/pages"], &[])
        .exits(1)
        .complains(&["cannot write to file/pages"]);
}
