//! Redis servers and streams that are not as they should be.

use super::*;
use crate::cli::event;
use crate::support::bus;
use crate::support::ports::free_port;
use crate::support::redis::{RedisServer, ServerOptions, TestStream};

/// A durable server with a stream that is read up to its end, and its guard.
struct Bus {
    server: RedisServer,
    stream: TestStream,
    folder: Folder,
}

impl Bus {
    fn new() -> Self {
        let bus = Self::empty();
        bus.stream.publish(&[event("2999-01-01T00:00:00Z")]);
        bus.make_groups();
        bus
    }

    fn empty() -> Self {
        let server = RedisServer::start_with(ServerOptions {
            durable: true,
            ..ServerOptions::default()
        });
        Self {
            stream: server.stream(),
            server,
            folder: Folder::new(),
        }
    }

    fn make_groups(&self) {
        for group in ["event-persister-guard", "event-persister"] {
            self.command(&format!("XGROUP CREATE events {group} 0-1"));
        }
    }

    fn command(&self, words: &str) {
        let _: ::redis::Value = self.stream.command(words);
    }

    fn check(&self) -> Ran {
        self.check_with(&[])
    }

    fn check_with(&self, variables: &[(&str, &str)]) -> Ran {
        let url = self.server.url();
        let url = [("EVENT_PERSISTER_REDIS_URL", url.as_str())];
        check(&self.folder, &[&url, variables].concat())
    }

    /// Checks as a user who may do everything but this.
    fn check_without(&self, commands: &str) -> Ran {
        self.command(&format!(
            "ACL SETUSER limited on >hunter2 ~* +@all {commands}"
        ));
        let url = format!("redis://limited:hunter2@127.0.0.1:{}/0", self.server.port());
        let ran = check(&self.folder, &[("EVENT_PERSISTER_REDIS_URL", &url)]);
        assert!(!ran.stdout.contains("hunter2"), "{ran:?}");
        ran
    }
}

#[test]
fn a_durable_server_with_stream_and_groups_is_good_and_stays_as_it_is() {
    let bus = Bus::new();
    let before: Vec<::redis::Value> = bus.stream.command("XINFO GROUPS events");
    finds_nothing(&bus.check());
    let after: Vec<::redis::Value> = bus.stream.command("XINFO GROUPS events");
    assert_eq!(before, after);
    assert_eq!(bus.stream.len(), 1);
    let keys: usize = bus.stream.command("DBSIZE");
    assert_eq!(keys, 1);
}

#[tokio::test]
async fn a_service_of_ours_at_work_is_no_fault_nor_is_one_that_has_ended() {
    let bus = bus::Bus::into_sqlite();
    let server = bus.start().ready().await;
    bus.stream.publish(&[event("2999-01-01T00:00:00Z")]);
    bus.until_settled(&server).await;
    let checked = check(&bus.folder, &bus.variables());
    finds_nothing(&checked);
    checked.prints(&["1 consumer, 1 of them active"]);
    server.terminate().in_good_order();
    finds_nothing(&check(&bus.folder, &bus.variables()));
}

#[test]
fn nobody_there() {
    let url = format!("redis://127.0.0.1:{}/0", free_port());
    let ran = check(&Folder::new(), &[("EVENT_PERSISTER_REDIS_URL", &url)]);
    finds_only(&ran, "redis.reachable", "error", "nothing listens there");
}

#[test]
fn a_policy_that_evicts_the_stream() {
    let bus = Bus::new();
    bus.command("CONFIG SET maxmemory 1gb");
    bus.command("CONFIG SET maxmemory-policy allkeys-lru");
    finds_only(&bus.check(), "redis.eviction", "error", "noeviction");
    bus.command("CONFIG SET maxmemory-policy volatile-lru");
    finds_only(&bus.check(), "redis.eviction", "warning", "noeviction");
    bus.command("CONFIG SET maxmemory-policy noeviction");
    finds_nothing(&bus.check());
}

#[test]
fn memory_that_is_nearly_full() {
    let bus = Bus::new();
    // So much that what a connection takes is nothing beside it.
    bus.command("SETRANGE ballast 40000000 x");
    let info: String = bus.stream.command("INFO memory");
    let used = info
        .lines()
        .find_map(|line| line.strip_prefix("used_memory:"));
    let used: u64 = used.unwrap().parse().unwrap();
    bus.command(&format!("CONFIG SET maxmemory {}", used * 100 / 88));
    finds_only(&bus.check(), "redis.memory", "warning", "raise maxmemory");
}

#[test]
fn a_server_that_forgets_everything() {
    let bus = Bus::new();
    bus.command("CONFIG SET appendonly no");
    finds_only(
        &bus.check(),
        "redis.persistence",
        "warning",
        "appendonly yes",
    );
}

#[test]
fn a_replica() {
    let bus = Bus::new();
    bus.command("REPLICAOF 127.0.0.1 1");
    finds_only(&bus.check(), "redis.role", "error", "primary");
}

#[test]
fn a_stream_that_is_not_there() {
    let bus = Bus::empty();
    finds_only(&bus.check(), "redis.stream", "warning", "redis.stream");
}

#[test]
fn something_else_in_the_place_of_the_stream() {
    let bus = Bus::empty();
    bus.command("SET events 1");
    finds_only(
        &bus.check(),
        "redis.reachable",
        "error",
        "name another stream",
    );
}

#[test]
fn a_group_that_is_not_there() {
    let bus = Bus::new();
    bus.command("XGROUP DESTROY events event-persister");
    finds_only(
        &bus.check(),
        "redis.group",
        "warning",
        "start `event-persister`",
    );
}

#[test]
fn a_group_where_prefect_passes_it_over() {
    let bus = Bus::new();
    bus.command("XGROUP SETID events event-persister 0");
    finds_only(&bus.check(), "redis.group", "warning", "0-1");
}

#[test]
fn a_guard_that_is_not_there() {
    let bus = Bus::new();
    bus.command("XGROUP DESTROY events event-persister-guard");
    finds_only(
        &bus.check(),
        "redis.guard",
        "warning",
        "start `event-persister`",
    );
}

#[test]
fn a_guard_past_what_is_not_stored() {
    let bus = Bus::new();
    bus.command("XGROUP SETID events event-persister-guard $");
    finds_only(&bus.check(), "redis.guard", "error", "moves it back");
}

#[test]
fn a_guard_that_nobody_moves() {
    let bus = Bus::empty();
    bus.command("XADD events 1600000000000-0 data {}");
    bus.make_groups();
    bus.command("XGROUP SETID events event-persister $");
    finds_only(&bus.check(), "redis.guard", "warning", "guard remove");
}

#[test]
fn a_guard_that_was_left_behind() {
    let bus = Bus::new();
    let ran = bus.check_with(&[("EVENT_PERSISTER_REDIS_GUARD", "off")]);
    finds_only(
        &ran,
        "redis.guard",
        "warning",
        "event-persister guard remove",
    );
}

#[test]
fn a_guard_of_a_group_that_was_renamed() {
    let bus = Bus::new();
    for group in ["event-persister", "event-persister-guard"] {
        bus.command(&format!("XGROUP SETID events {group} $"));
    }
    bus.command("XGROUP CREATE events formerly-guard 0-1");
    let remedy = "XGROUP DESTROY events formerly-guard";
    finds_only(&bus.check(), "redis.other_guard", "warning", remedy);
}

#[test]
fn a_guard_that_is_off_beside_prefects_consumers() {
    let bus = Bus::new();
    bus.command("XGROUP DESTROY events event-persister-guard");
    let off = [("EVENT_PERSISTER_REDIS_GUARD", "off")];
    finds_nothing(&bus.check_with(&off));
    bus.command("XGROUP CREATE events reactive-triggers 0");
    finds_only(&bus.check_with(&off), "redis.guard", "warning", "to on");
}

#[test]
fn a_guard_that_prefect_would_delete() {
    let bus = Bus::new();
    bus.check_with(&[("EVENT_PERSISTER_REDIS_GUARD_GROUP", "ephemeral-guard")])
        .exits(2)
        .complains(&["ephemeral"]);
}

#[test]
fn a_backlog_that_retention_would_delete_unseen() {
    let bus = Bus::empty();
    bus.command("XADD events 1600000000000-0 data {}");
    bus.make_groups();
    let ran = bus.check();
    finds(&ran, "redis.retention", "error", "trim.every");
    finds(&ran, "redis.lag", "warning", "start `event-persister`");
    let ran = bus.check_with(&[("EVENT_PERSISTER_TRIM_EVERY", "off")]);
    finds_only(&ran, "redis.lag", "warning", "start `event-persister`");
}

#[test]
fn entries_that_nobody_acknowledges() {
    let bus = Bus::empty();
    bus.command("XADD events 1600000000000-0 data {}");
    bus.make_groups();
    bus.command("XREADGROUP GROUP event-persister somebody STREAMS events >");
    bus.command("XGROUP SETID events event-persister-guard 1600000000000-0");
    let ran = bus.check_with(&[("EVENT_PERSISTER_TRIM_EVERY", "off")]);
    finds_only(&ran, "redis.pending", "warning", "takes over");
}

#[test]
fn prefects_persister_in_the_same_group() {
    let bus = Bus::new();
    let name = "event-persister-web-7d9f-12-0a1b2c3d";
    bus.command(&format!(
        "XREADGROUP GROUP event-persister {name} STREAMS events >"
    ));
    let ran = bus.check();
    let remedy = "PREFECT_SERVER_SERVICES_EVENT_PERSISTER_ENABLED=false";
    finds_only(&ran, "redis.prefect_persister", "warning", remedy);
    ran.prints(&[name]);
}

#[test]
fn commands_that_are_forbidden() {
    let bus = Bus::new();
    for (commands, remedy) in [
        ("-xclaim", "+@stream"),
        ("-xreadgroup", "+@stream"),
        ("-eval", "+eval"),
        ("-time", "+time"),
        ("-xgroup", "ACL SETUSER limited ~events"),
    ] {
        let ran = bus.check_without(commands);
        finds_only(&ran, "redis.permissions", "error", remedy);
        let name = commands.trim_start_matches('-').to_uppercase();
        ran.prints(&[&name]);
    }
    finds_nothing(&bus.check_without(""));
}

#[test]
fn a_key_that_is_forbidden() {
    let bus = Bus::new();
    bus.command("ACL SETUSER elsewhere on >hunter2 ~other +@all");
    let url = format!(
        "redis://elsewhere:hunter2@127.0.0.1:{}/0",
        bus.server.port()
    );
    let ran = check(&bus.folder, &[("EVENT_PERSISTER_REDIS_URL", &url)]);
    finds(&ran, "redis.permissions", "error", "~events");
}

#[test]
fn a_server_that_does_not_tell_about_itself() {
    let bus = Bus::new();
    finds_only(
        &bus.check_without("-info"),
        "redis.info",
        "warning",
        "+info",
    );
}
