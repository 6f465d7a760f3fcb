//! What processes have used, from `/proc`.

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// How often the memory of a process is looked at.
const LOOK: Duration = Duration::from_millis(10);

/// The kernel shows processor time in hundredths of a second on every architecture of Linux.
const TICK: Duration = Duration::from_millis(10);

/// One line of `/proc/<pid>/stat`, as far as it is needed.
struct Stat {
    parent: u32,
    own: Duration,
    /// Of its children that have ended.
    of_ended: Duration,
}

impl Stat {
    fn of(process: &str) -> Option<Self> {
        let line = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        // The name before may hold anything, parentheses and spaces included.
        let (_, fields) = line.rsplit_once(')')?;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let ticks = |at: usize| Some(TICK * fields.get(at)?.parse().ok()?);
        Some(Self {
            parent: fields.get(1)?.parse().ok()?,
            own: ticks(11)? + ticks(12)?,
            of_ended: ticks(13)? + ticks(14)?,
        })
    }
}

/// The processor time of a process.
pub(crate) fn of_process(id: u32) -> Duration {
    Stat::of(&id.to_string()).unwrap().own
}

/// The processor time of a process and its children, those that have ended included.
pub(crate) fn of_tree(id: u32) -> Duration {
    let processes = std::fs::read_dir("/proc").unwrap();
    let children: Duration = processes
        .filter_map(|entry| Stat::of(entry.ok()?.file_name().to_str()?))
        .filter(|stat| stat.parent == id)
        .map(|stat| stat.own)
        .sum();
    let parent = Stat::of(&id.to_string()).unwrap();
    children + parent.own + parent.of_ended
}

/// A program that has run to its end.
pub(crate) struct Ran {
    pub(crate) took: Duration,
    pub(crate) cpu: Duration,
    pub(crate) peak_mib: f64,
    pub(crate) stdout: String,
}

/// Runs a program, which must succeed.
pub(crate) fn run(command: &mut Command) -> Ran {
    let cpu_before = of_ended_children();
    let started = Instant::now();
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap();
    let (output, peak_kib) = wait(child);
    let took = started.elapsed();
    assert!(output.status.success(), "{command:?}: {output:?}");
    Ran {
        took,
        cpu: of_ended_children() - cpu_before,
        peak_mib: peak_kib as f64 / 1024.0,
        stdout: String::from_utf8(output.stdout).unwrap(),
    }
}

/// Its memory can only be asked for while it is there.
fn wait(child: Child) -> (std::process::Output, u64) {
    let (id, ended, peak_kib) = (child.id(), AtomicBool::new(false), AtomicU64::new(0));
    let output = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                peak_kib.fetch_max(peak_kib_of(id).unwrap_or(0), Ordering::Relaxed);
                std::thread::sleep(LOOK);
            }
        });
        let output = child.wait_with_output().unwrap();
        ended.store(true, Ordering::Relaxed);
        output
    });
    (output, peak_kib.into_inner())
}

/// The most memory that a process has had resident so far, in MiB.
pub(crate) fn peak_memory(id: u32) -> f64 {
    peak_kib_of(id).unwrap() as f64 / 1024.0
}

/// The same in KiB; `None` once it has ended.
fn peak_kib_of(id: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let mut lines = status.lines();
    let peak = lines.find_map(|line| line.strip_prefix("VmHWM:"))?;
    peak.trim().trim_end_matches(" kB").parse().ok()
}

/// The processor time of this process.
pub(crate) fn own() -> Duration {
    Stat::of("self").unwrap().own
}

/// The processor time of all processes that this one has started and that have ended.
fn of_ended_children() -> Duration {
    Stat::of("self").unwrap().of_ended
}
