//! Events shaped like those of a busy Prefect server: 58 % task runs, 24 % flow runs, 12 % heartbeats,
//! the rest small ones; 2.3 KB and 3 related resources on average, UUIDv7 ids in rising order of time.

use chrono::{DateTime, TimeDelta, Utc};
use fastrand::Rng;
use serde_json::{Value, json};
use uuid::{Builder, Uuid};

use super::load::time_ordered_id;

/// So many different ones; more would only be longer to make.
const NUM_EVENTS: usize = 10_000;
/// 33 a second.
const BETWEEN: TimeDelta = TimeDelta::milliseconds(30);
const STATES: [&str; 4] = ["Pending", "Running", "Completed", "Failed"];
/// What a failed run says.
const TRACEBACK: &str = "Task run encountered an exception: Traceback (most recent call last):\n  \
     File \"/opt/prefect/flows/etl.py\", line 145, in transform\n    rows = client.query(sql)\n\
     sqlalchemy.exc.OperationalError: could not connect to server: \"db-2\" — naïve retry";

/// One event a line; the same ones every time.
pub(crate) fn lines() -> String {
    let mut random = Rng::with_seed(2_302);
    let start: DateTime<Utc> = DateTime::UNIX_EPOCH + TimeDelta::days(20_000);
    let events = (0..NUM_EVENTS).map(|number| {
        let occurred = start + BETWEEN * i32::try_from(number).unwrap();
        event(occurred, &mut random).to_string()
    });
    events.collect::<Vec<_>>().join("\n")
}

fn event(occurred: DateTime<Utc>, random: &mut Rng) -> Value {
    let mut event = match random.u8(..100) {
        ..58 => task_run(occurred, random),
        58..82 => flow_run(occurred, random),
        82..88 => flow_run_heartbeat(random),
        88..94 => worker_heartbeat(random),
        _ => small(random),
    };
    let millis = u64::try_from(occurred.timestamp_millis()).unwrap();
    let id = time_ordered_id(millis, random.u128(..));
    event["id"] = json!(id);
    event["occurred"] = json!(written(occurred, "Z"));
    event["received"] = json!(written(occurred + TimeDelta::milliseconds(450), "Z"));
    event
}

fn written(time: DateTime<Utc>, zone: &str) -> String {
    format!("{}{zone}", time.format("%Y-%m-%dT%H:%M:%S%.6f"))
}

/// Any run: one that no other event is about.
fn any(random: &mut Rng) -> Uuid {
    Builder::from_random_bytes(random.u128(..).to_be_bytes()).into_uuid()
}

/// One of so many of a kind, which many events are about.
fn one_of(num: u64, random: &mut Rng) -> Uuid {
    let number = random.u64(..num);
    any(&mut Rng::with_seed(number))
}

fn state(random: &mut Rng) -> (&'static str, String, &'static str) {
    let name = STATES[random.usize(..STATES.len())];
    let message = if name == "Failed" { TRACEBACK } else { "" };
    (name, name.to_uppercase(), message)
}

fn related(kind: &str, id: Uuid, name: &str) -> Value {
    json!({
        "prefect.resource.id": format!("prefect.{kind}.{id}"),
        "prefect.resource.role": kind,
        "prefect.resource.name": name,
    })
}

fn tag(random: &mut Rng) -> Value {
    json!({
        "prefect.resource.id": format!("prefect.tag.team-{}", random.u8(..20)),
        "prefect.resource.role": "tag",
    })
}

/// What stands around a run of a deployment.
fn around(random: &mut Rng) -> Vec<Value> {
    let mut pool = related("work-pool", one_of(4, random), "k8s-pool-2");
    pool["prefect.work-pool.type"] = json!("kubernetes");
    vec![
        related("flow", one_of(50, random), "etl-hen-30"),
        related("deployment", one_of(100, random), "prod-nimble-52"),
        related("work-queue", one_of(8, random), "default"),
        pool,
    ]
}

fn task_run(occurred: DateTime<Utc>, random: &mut Rng) -> Value {
    let (name, kind, message) = state(random);
    let (task_run, flow_run, state) = (any(random), one_of(2_000, random), any(random));
    let flow = one_of(50, random);
    let time = written(occurred, "+00:00");
    let label = |kind: &str, id: Uuid| format!("prefect.{kind}.{id}");
    json!({
        "event": format!("prefect.task-run.{name}"),
        "resource": {
            "prefect.resource.id": label("task-run", task_run),
            "prefect.resource.name": "transform_gnu-64",
            "prefect.state-message": message,
            "prefect.state-type": kind,
            "prefect.state-name": name,
            "prefect.state-timestamp": time,
            "prefect.orchestration": "client",
        },
        "related": [
            related("flow-run", flow_run, "jolly-lynx212"),
            related("flow", flow, "etl-ant-4"),
            tag(random),
        ],
        "payload": {
            "intended": {"from": "PENDING", "to": kind},
            "initial_state": {
                "type": "PENDING", "name": "Pending", "message": "", "state_details": {},
            },
            "validated_state": {"type": kind, "name": name, "message": message},
            "task_run": task_run_details(&time, (task_run, flow_run, flow, state), random),
        },
        "follows": state,
    })
}

fn task_run_details(
    time: &str,
    (task_run, flow_run, flow, state): (Uuid, Uuid, Uuid, Uuid),
    random: &mut Rng,
) -> Value {
    let mut details = json!({
        "id": task_run, "created": time, "updated": time, "name": "transform_gnu-64",
        "flow_run_id": flow_run, "task_key": "transform_gnu-c2c76cf4", "dynamic_key": any(random),
        "cache_key": null, "cache_expiration": null, "task_version": null,
        "empirical_policy": {
            "max_retries": 0, "retry_delay_seconds": 0.0, "retries": 3, "retry_delay": [10, 30, 60],
            "retry_jitter_factor": null,
        },
        "tags": ["critical"],
        "labels": {
            "prefect.flow.id": flow, "prefect.flow-run.id": flow_run,
        },
        "task_inputs": {"df": [{"input_type": "task_run", "id": any(random)}], "conn": [], "config": []},
        "run_count": 1, "flow_run_run_count": 1, "expected_start_time": time,
        "next_scheduled_start_time": null, "start_time": time, "end_time": null,
        "total_run_time": random.f64() * 60.0, "estimated_run_time": random.f64() * 60.0,
        "estimated_start_time_delta": random.f64() * 9.0, "state_id": state,
    });
    details["state"] = json!({
        "id": state, "type": "RUNNING", "name": "Running", "timestamp": time, "message": "", "data": null,
        "state_details": {
            "flow_run_id": flow_run, "task_run_id": task_run, "child_flow_run_id": null,
            "scheduled_time": null, "cache_key": null, "cache_expiration": null, "deferred": false,
            "untrackable_result": false, "pause_timeout": null, "pause_reschedule": false,
            "pause_key": null, "run_input_keyset": null, "refresh_cache": null, "retriable": null,
            "transition_id": any(random), "task_parameters_id": null,
        },
    });
    details
}

fn flow_run(occurred: DateTime<Utc>, random: &mut Rng) -> Value {
    let (name, kind, _) = state(random);
    json!({
        "event": format!("prefect.flow-run.{name}"),
        "resource": {
            "prefect.resource.id": format!("prefect.flow-run.{}", one_of(2_000, random)),
            "prefect.resource.name": "cosmic-hen851",
            "prefect.run-count": "1",
            "prefect.state-message": "All states completed.",
            "prefect.state-name": name,
            "prefect.state-timestamp": written(occurred, "+00:00"),
            "prefect.state-type": kind,
        },
        "related": around(random),
        "payload": {
            "intended": {"from": "PENDING", "to": kind},
            "initial_state": {"type": "PENDING", "name": "Pending"},
            "validated_state": {"type": kind, "name": name, "message": "All states completed."},
        },
        "follows": any(random),
    })
}

fn flow_run_heartbeat(random: &mut Rng) -> Value {
    json!({
        "event": "prefect.flow-run.heartbeat",
        "resource": {
            "prefect.resource.id": format!("prefect.flow-run.{}", one_of(2_000, random)),
            "prefect.resource.name": "gentle-toad256",
        },
        "related": around(random),
        "payload": {},
        "follows": null,
    })
}

fn worker_heartbeat(random: &mut Rng) -> Value {
    let worker = one_of(10, random);
    json!({
        "event": "prefect.worker.heartbeat",
        "resource": {
            "prefect.resource.id": format!("prefect.worker.kubernetes.kubernetesworker-{worker}"),
            "prefect.resource.name": format!("KubernetesWorker {worker}"),
            "prefect.version": "3.8.8",
            "prefect.worker-type": "kubernetes",
        },
        "related": [related("work-pool", one_of(4, random), "k8s-pool-2")],
        "payload": {},
        "follows": null,
    })
}

fn small(random: &mut Rng) -> Value {
    json!({
        "event": "my.custom.metric",
        "resource": {
            "prefect.resource.id": format!("my.dataset.{}", random.u16(..400)),
            "kind": "table",
        },
        "related": [
            related("flow-run", one_of(2_000, random), "tidy-vole164"),
            related("flow", one_of(50, random), "etl-quail-47"),
        ],
        "payload": {
            "level": "WARN",
            "message": "wrote 72467 rows — ünï ✓",
            "n": random.u32(..),
            "f": random.f64(),
        },
        "follows": null,
    })
}
