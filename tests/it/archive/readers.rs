//! Readers of others find what the tables had: DuckDB, pyarrow and pandas, in a folder and in a bucket.
//!
//! DuckDB reads the bucket through s3fs: its own extension for S3 is no part of its package.

use tokio::time::Instant;

use super::s3::Bucket;
use super::tools::{ask, python};
use super::*;

/// Opens an archive: the pattern that the handbook gives, a file system, and DuckDB.
const OPEN: &str = r#"
import sys, json, duckdb, fsspec, pyarrow.parquet as pq, pandas as pd
root, endpoint = sys.argv[1:]
glob = root + "/occurred_date=*/*.parquet"
duck = duckdb.connect()
# It would stand before the answer where a query takes long.
duck.execute("SET enable_progress_bar = false")
if endpoint:
    files = fsspec.filesystem("s3", key="key", secret="secret", use_listings_cache=False,
        client_kwargs={"endpoint_url": endpoint, "region_name": "us-east-1"})
    duck.register_filesystem(files)
else:
    files = fsspec.filesystem("file")
table = f"read_parquet('{glob}', hive_partitioning = true)"
"#;

const SUMS: &str = r#"
row = duck.sql(f"""SELECT count(*), count(DISTINCT id), sum(len(resources)), sum(len(payload)),
  epoch_us(min(occurred)), epoch_us(max(occurred)), min(occurred_date)::text,
  count(*) FILTER (WHERE CAST(occurred AT TIME ZONE 'UTC' AS date) = occurred_date::date),
  count(*) FILTER (WHERE resources[1].resource_id = 'test.1'),
  sum(CAST(json_extract(payload, '$.number') AS double))
  FROM {table}""").fetchall()[0]
print(json.dumps([str(v) for v in row]))
"#;

const IDS: &str = r#"
row = duck.sql(f"""SELECT list(id::text), sum(CAST(json_extract(payload, '$.number') AS double))
  FROM {table}""").fetchall()[0] if files.glob(glob) else ([], 0)
print(json.dumps([row[0] or [], row[1] or 0]))
"#;

const TYPES: &str = r#"
names = sorted(files.glob(glob))
tables = [pq.ParquetFile(files.open(name)).read() for name in names]
types = {name: str(tables[0].schema.field(name).type) for name in tables[0].schema.names}
assert all(table.schema.equals(tables[0].schema) for table in tables)
frame = pd.concat([pd.read_parquet(files.open(name)) for name in names])
print(json.dumps({"types": types, "rows": len(frame), "ids": frame["id"].nunique(),
  "times": {name: str(frame[name].dtype) for name in ["occurred", "received", "recorded"]},
  "resources": int(frame["resources"].map(len).sum()),
  "first": frame["resources"].iloc[0][0]["resource_id"],
  "numbers": float(frame["payload"].map(json.loads).map(lambda payload: payload["number"]).sum())}))
"#;

/// Where a reader looks.
struct Reader {
    python: PathBuf,
    root: String,
    endpoint: String,
}

impl Reader {
    fn of_folder(case: &Case) -> Option<Self> {
        Some(Self {
            python: python()?,
            root: case.archive_path().to_str().unwrap().to_owned(),
            endpoint: String::new(),
        })
    }

    fn of_bucket(bucket: &Bucket) -> Self {
        Self {
            python: bucket.python.clone(),
            root: "s3://bucket/some/events".to_owned(),
            endpoint: format!("http://{}", bucket.moto.address),
        }
    }

    fn ask(&self, question: &str) -> Value {
        let script = format!("{OPEN}{question}");
        ask(&self.python, &script, &[&self.root, &self.endpoint])
    }

    /// The ids of all events, none of which is there twice.
    fn ids(&self) -> BTreeSet<String> {
        let (list, sum): (Vec<String>, f64) = serde_json::from_value(self.ask(IDS)).unwrap();
        let ids: BTreeSet<String> = list.iter().cloned().collect();
        assert_eq!(ids.len(), list.len(), "none is there twice");
        assert_eq!(sum, 2.5 * list.len() as f64);
        ids
    }
}

fn of_tables(database: &Database) -> Vec<String> {
    let row = database.execute(
        "SELECT count(*), count(DISTINCT id), sum(1 + jsonb_array_length(related)), sum(length(payload::text)), \
         (extract(epoch FROM min(occurred)) * 1000000)::bigint, \
         (extract(epoch FROM max(occurred)) * 1000000)::bigint, \
         min(occurred AT TIME ZONE 'UTC')::date, count(*), \
         count(*) FILTER (WHERE resource_id = 'test.1'), sum((payload->>'number')::float) \
         FROM events WHERE event <> 'kept' AND occurred < now() - interval '7 days'",
    );
    row[0].iter().map(|cell| cell.clone().unwrap()).collect()
}

fn count_and_sum(case: &Case, reader: &Reader) {
    case.store_events(300);
    let before = of_tables(case.database());
    case.trim().exits(0);
    let found: Vec<String> = serde_json::from_value(reader.ask(SUMS)).unwrap();
    assert_eq!(found.len(), before.len());
    let number = |text: &String| text.parse::<f64>().unwrap();
    for (place, (found, before)) in found.iter().zip(&before).enumerate() {
        if place == 6 {
            assert_eq!(found, before);
        } else {
            assert_eq!(number(found), number(before), "{place}");
        }
    }
    let found = reader.ask(TYPES);
    assert_eq!(found["rows"].to_string(), before[0]);
    assert_eq!(found["ids"].to_string(), before[1]);
    assert_eq!(found["resources"].to_string(), before[2]);
    assert_eq!(found["numbers"].as_f64().unwrap(), number(&before[9]));
    assert_eq!(found["first"], "test.1");
    let types = &found["types"];
    let times = ["occurred", "received", "recorded"];
    for text in ["id", "event", "follows", "payload"] {
        assert_eq!(types[text], "string", "{text}: {types}");
    }
    for time in times {
        assert_eq!(types[time], "timestamp[us, tz=UTC]", "{time}: {types}");
        assert_eq!(found["times"][time], "datetime64[us, UTC]", "{time}");
    }
    let list = "list<element: struct<resource_id: string not null, resource_role: string not null, \
        resource: string not null> not null>";
    assert_eq!(types["resources"], list);
}

#[tokio::test]
async fn count_and_sum_what_the_tables_had() {
    let case = Case::postgres();
    let Some(reader) = Reader::of_folder(&case) else {
        return;
    };
    count_and_sum(&case, &reader);
}

#[tokio::test]
async fn count_and_sum_what_the_tables_had_in_a_bucket() {
    let Some(bucket) = Bucket::new(Case::postgres()).await else {
        return;
    };
    count_and_sum(&bucket.case, &Reader::of_bucket(&bucket));
}

/// A reader that comes at any moment of a pass sees each file whole or not at all, and no event twice. What it
/// sees is in no table any more. Before and after a pass archive and tables have all; meanwhile no more is missing
/// than what is on its way.
fn during_a_pass(case: &Case, reader: &Reader, max_missing: usize) {
    let all = case.store_events(400);
    let began = Instant::now();
    assert_eq!(reader.ids().len(), 0);
    // The next file comes no sooner than a reader has had a chance to see the one before.
    let pause = (began.elapsed() / 2).as_millis().clamp(200, 1_000);
    let slowly =
        format!("archive::after-removal=sleep(60);archive::after-publishing=sleep({pause})");
    let mut command = case.folder.command(&["trim", "--yes"]);
    command.envs(case.all_variables(&[("FAILPOINTS", &slowly)]));
    assert_eq!(case.in_tables(), all);
    let trimmer = std::thread::spawn(move || Ran::new(command.output().unwrap()));
    let (mut seen, mut num_between) = (BTreeSet::new(), 0);
    while !trimmer.is_finished() {
        let before = reader.ids();
        let in_tables = case.in_tables();
        let after = reader.ids();
        assert!(seen.is_subset(&before) && before.is_subset(&after));
        assert!(before.is_disjoint(&in_tables), "in both");
        let num_there = after.union(&in_tables).count();
        assert!(num_there + max_missing >= all.len(), "{num_there}");
        num_between += usize::from(!after.is_empty() && in_tables.len() > all.len() / 10);
        seen = after;
    }
    trimmer.join().unwrap().exits(0);
    assert!(num_between > 0, "it was looked at");
    let archived = reader.ids();
    let in_tables = case.in_tables();
    assert!(archived.is_disjoint(&in_tables));
    assert_eq!(archived.len() + in_tables.len(), all.len());
}

#[tokio::test]
async fn during_a_pass_over_sqlite() {
    let case = Case::sqlite();
    let Some(reader) = Reader::of_folder(&case) else {
        return;
    };
    during_a_pass(&case, &reader, 40);
}

/// A partition goes with all of its files, which readers see one after the other.
#[tokio::test]
async fn during_a_pass_over_partitions() {
    let case = Case::postgres().whole();
    let Some(reader) = Reader::of_folder(&case) else {
        return;
    };
    during_a_pass(&case, &reader, 134);
}

#[tokio::test]
async fn during_a_pass_into_a_bucket() {
    let Some(bucket) = Bucket::new(Case::postgres()).await else {
        return;
    };
    during_a_pass(&bucket.case, &Reader::of_bucket(&bucket), 40);
}
