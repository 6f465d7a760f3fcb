//! Events as a busy Prefect server sends them, in the shares and sizes that were seen there: 58 % of
//! task runs (3.1 KB), 24 % of flow runs (1.4 KB), 12 % heartbeats, some small ones; 2.3 KB and three
//! related resources on average. Ids are UUIDv7, rising, and new every time.
//!
//! `BENCH_EVENTS_FILE`, a compressed file with one event a line, takes others' events instead; they
//! get ids and times of their own.

use std::io::Read as _;
use std::path::Path;

use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use serde_json::{Value, json};
use uuid::{Builder, Uuid};

/// What the file of others' events, or the generator, is asked for.
enum Origin {
    Lines(Vec<String>),
    Generated,
}

/// So many events, each the text of a JSON object on one line; the first occurred at `first` and each
/// other a millisecond after the one before it.
pub(crate) fn events(num: usize, first: DateTime<Utc>) -> Vec<String> {
    #[expect(clippy::disallowed_methods, reason = "the benchmark's own setting")]
    let origin = match std::env::var("BENCH_EVENTS_FILE") {
        Ok(path) if !path.is_empty() => Origin::Lines(lines_of(Path::new(&path))),
        _ => Origin::Generated,
    };
    (0..num)
        .map(|number| {
            let at = first + TimeDelta::milliseconds(i64::try_from(number).unwrap());
            match &origin {
                Origin::Lines(lines) => made_new(&lines[number % lines.len()], number, at),
                Origin::Generated => generated(number, at),
            }
        })
        .collect()
}

/// The number of related resources of all of these events.
pub(crate) fn num_related(events: &[String]) -> usize {
    let related = |event: &String| {
        let event: Value = serde_json::from_str(event).unwrap();
        event["related"].as_array().map_or(0, Vec::len)
    };
    events.iter().map(related).sum()
}

/// How many and how large, for a benchmark's first line.
pub(crate) fn describe(events: &[String]) -> String {
    let num_bytes: usize = events.iter().map(String::len).sum();
    format!(
        "{} events, {} bytes and {:.1} related resources on average",
        events.len(),
        num_bytes / events.len(),
        num_related(events) as f64 / events.len() as f64
    )
}

fn lines_of(path: &Path) -> Vec<String> {
    let file = std::fs::File::open(path).unwrap();
    let mut text = String::new();
    flate2::read::GzDecoder::new(file)
        .read_to_string(&mut text)
        .unwrap();
    // Not `lines`, which also ends a line at a carriage return.
    let lines = text.split('\n').filter(|line| !line.is_empty());
    lines.map(str::to_owned).collect()
}

/// The event with another id and time, and not a byte of the rest changed.
fn made_new(line: &str, number: usize, at: DateTime<Utc>) -> String {
    let event: Value = serde_json::from_str(line).unwrap();
    let replaced = |line: &str, field: &str, with: &str| {
        let old = event[field].as_str().unwrap();
        line.replace(&format!("\"{old}\""), &format!("\"{with}\""))
    };
    let line = replaced(line, "id", &rising_id(number, at).to_string());
    replaced(&line, "occurred", &text(at))
}

fn text(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// A UUIDv7 of this moment; within a millisecond they rise with the number.
fn rising_id(number: usize, at: DateTime<Utc>) -> Uuid {
    let mut bytes: [u8; 10] = fastrand::u128(..).to_le_bytes()[..10].try_into().unwrap();
    bytes[..2].copy_from_slice(&u16::try_from(number & 0xfff).unwrap().to_be_bytes());
    let millis = u64::try_from(at.timestamp_millis()).unwrap();
    Builder::from_unix_timestamp_millis(millis, &bytes).into_uuid()
}

fn generated(number: usize, at: DateTime<Utc>) -> String {
    let now = text(at);
    let mut event = match fastrand::u8(..100) {
        0..58 => task_run(&now),
        58..82 => flow_run(&now),
        82..88 => worker_heartbeat(),
        88..94 => flow_run_heartbeat(),
        _ => small(&now),
    };
    event["id"] = json!(rising_id(number, at));
    event["received"] = json!(text(at + TimeDelta::milliseconds(300)));
    event["occurred"] = json!(now);
    event.to_string()
}

const STATES: [&str; 4] = ["Pending", "Running", "Completed", "Failed"];
const TRACEBACK: &str = "Task run encountered an exception: Traceback (most recent call last):\n  \
    File \"/opt/flows/etl.py\", line 544, in transform\n    rows = client.query(sql)\n\
    OperationalError: could not connect to server: \"db-6\" — naïve retry";

fn any<'a>(choices: &[&'a str]) -> &'a str {
    choices[fastrand::usize(..choices.len())]
}

/// The id of one of a few things that many events are about, such as a flow.
fn known(kind: &str, num: u8) -> String {
    let number = u128::from(fastrand::u8(..num)) + kind.len() as u128 * 0x1_0000;
    format!(
        "prefect.{kind}.{}",
        Uuid::from_u128(number * 0x0123_4567_89ab_cdef)
    )
}

fn related(role: &str, id: &str) -> Value {
    json!({
        "prefect.resource.id": id,
        "prefect.resource.role": role,
        "prefect.resource.name": format!("{}-{}", any(&["etl", "ingest", "report"]), fastrand::u8(..)),
    })
}

fn state(name: &str, now: &str, flow_run: Uuid, task_run: Uuid) -> Value {
    json!({
        "id": Uuid::new_v4(),
        "type": name.to_uppercase(),
        "name": name,
        "timestamp": now,
        "message": if name == "Failed" { TRACEBACK } else { "" },
        "data": null,
        "state_details": {
            "flow_run_id": flow_run, "task_run_id": task_run, "child_flow_run_id": null,
            "scheduled_time": null, "cache_key": null, "cache_expiration": null, "deferred": false,
            "untrackable_result": false, "pause_timeout": null, "pause_reschedule": false,
            "pause_key": null, "run_input_keyset": null, "refresh_cache": null, "retriable": null,
            "transition_id": Uuid::new_v4(), "task_parameters_id": null,
        },
    })
}

fn task_run(now: &str) -> Value {
    let name = any(&STATES);
    let (run, flow_run) = (Uuid::new_v4(), Uuid::new_v4());
    let flow = known("flow", 50);
    let message = if name == "Failed" { TRACEBACK } else { "" };
    let mut others = vec![
        related("flow-run", &format!("prefect.flow-run.{flow_run}")),
        related("flow", &flow),
    ];
    // None, one or two, fewer of the two.
    let num_tags = fastrand::usize(..5) / 2;
    let tags = (0..num_tags).map(|_| related("tag", &known("tag", 20)));
    others.extend(tags);
    json!({
        "event": format!("prefect.task-run.{name}"),
        "resource": {
            "prefect.resource.id": format!("prefect.task-run.{run}"),
            "prefect.resource.name": format!("transform-{}", fastrand::u8(..)),
            "prefect.state-message": message,
            "prefect.state-type": name.to_uppercase(),
            "prefect.state-name": name,
            "prefect.state-timestamp": now,
            "prefect.orchestration": "client",
        },
        "related": others,
        "follows": Uuid::new_v4(),
        "payload": {
            "intended": {"from": "RUNNING", "to": name.to_uppercase()},
            "initial_state": {"type": "RUNNING", "name": "Running", "message": "", "state_details": {}},
            "validated_state": {"type": name.to_uppercase(), "name": name, "message": message},
            "task_run": as_stored(name, now, flow_run, run, &flow),
        },
    })
}

/// A task run as the server keeps it, which its events carry whole.
fn as_stored(name: &str, now: &str, flow_run: Uuid, run: Uuid, flow: &str) -> Value {
    json!({
        "id": run, "created": now, "updated": now, "name": "transform",
        "flow_run_id": flow_run, "task_key": "transform-4e3b744f",
        "dynamic_key": Uuid::new_v4(), "cache_key": null, "cache_expiration": null,
        "task_version": null,
        "empirical_policy": {
            "max_retries": 0, "retry_delay_seconds": 0.0, "retries": 3,
            "retry_delay": [10, 30, 60], "retry_jitter_factor": null,
        },
        "tags": [],
        "labels": {"prefect.flow.id": flow, "prefect.flow-run.id": flow_run},
        "state_id": Uuid::new_v4(),
        "task_inputs": {
            "df": [], "config": [],
            "conn": [{"input_type": "task_run", "id": Uuid::new_v4()}],
        },
        "state_type": name.to_uppercase(), "state_name": name, "run_count": 1,
        "flow_run_run_count": 1, "expected_start_time": now,
        "next_scheduled_start_time": null, "start_time": now, "end_time": null,
        "total_run_time": fastrand::f64() * 100.0,
        "estimated_run_time": fastrand::f64() * 100.0,
        "estimated_start_time_delta": fastrand::f64(),
        "state": state(name, now, flow_run, run),
    })
}

fn flow_run(now: &str) -> Value {
    let name = any(&STATES);
    let mut others = vec![
        related("flow", &known("flow", 50)),
        related("deployment", &known("deployment", 80)),
        related("work-queue", &known("work-queue", 5)),
        related("work-pool", &known("work-pool", 3)),
    ];
    if fastrand::u8(..6) == 0 {
        others.push(related("tag", &known("tag", 20)));
    }
    json!({
        "event": format!("prefect.flow-run.{name}"),
        "resource": {
            "prefect.resource.id": format!("prefect.flow-run.{}", Uuid::new_v4()),
            "prefect.resource.name": format!("cosmic-hen{}", fastrand::u16(..)),
            "prefect.run-count": "1",
            "prefect.state-message": "All states completed.",
            "prefect.state-name": name,
            "prefect.state-timestamp": now,
            "prefect.state-type": name.to_uppercase(),
        },
        "related": others,
        "follows": Uuid::new_v4(),
        "payload": {
            "intended": {"from": "PENDING", "to": name.to_uppercase()},
            "initial_state": {"type": "PENDING", "name": "Pending"},
            "validated_state": {
                "type": name.to_uppercase(), "name": name, "message": "All states completed.",
            },
        },
    })
}

fn flow_run_heartbeat() -> Value {
    json!({
        "event": "prefect.flow-run.heartbeat",
        "resource": {
            "prefect.resource.id": format!("prefect.flow-run.{}", Uuid::new_v4()),
            "prefect.resource.name": format!("cosmic-hen{}", fastrand::u16(..)),
        },
        "related": [
            related("flow", &known("flow", 50)),
            related("deployment", &known("deployment", 80)),
            related("work-queue", &known("work-queue", 5)),
            related("work-pool", &known("work-pool", 3)),
        ],
    })
}

fn worker_heartbeat() -> Value {
    json!({
        "event": "prefect.worker.heartbeat",
        "resource": {
            "prefect.resource.id": known("worker", 30),
            "prefect.resource.name": "ProcessWorker 0a3f",
            "prefect.worker-type": "process",
            "prefect.version": "3.8.0",
        },
        "related": [related("work-pool", &known("work-pool", 3))],
        "payload": {"heartbeat_interval_seconds": 30, "concurrency_limit": 10, "slots_in_use": 4},
    })
}

fn small(now: &str) -> Value {
    json!({
        "event": any(&["dataset.materialized", "my.custom.metric", "app.log.written"]),
        "resource": {
            "prefect.resource.id": format!("dataset.{}", fastrand::u16(..)),
            "prefect.resource.name": "a dataset",
        },
        "related": [related("flow-run", &known("flow-run", 200)), related("flow", &known("flow", 50))],
        "payload": {"at": now, "value": fastrand::f64(), "rows": fastrand::u32(..), "unit": "µs"},
    })
}
