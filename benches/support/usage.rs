//! What processes cost, as Linux tells it.

use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// How often the memory of a process is looked at.
const LOOK: Duration = Duration::from_millis(10);
/// A tick of the kernel's accounting, the same on every architecture.
const TICK: Duration = Duration::from_millis(10);

/// A program that has run to its end.
pub(crate) struct Ran {
    pub(crate) took: Duration,
    pub(crate) cpu: Duration,
    pub(crate) peak_mib: f64,
    pub(crate) stdout: String,
}

/// Runs a program, which must succeed.
pub(crate) fn run(command: &mut Command) -> Ran {
    let cpu_before = children_cpu();
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
        cpu: children_cpu() - cpu_before,
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

/// The most memory that a process has had resident; `None` once it has ended.
pub(crate) fn peak_kib_of(id: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    peak.trim().trim_end_matches(" kB").parse().ok()
}

/// The processor time that a process has used.
pub(crate) fn cpu_of(id: u32) -> Duration {
    ticks(&id.to_string(), 13)
}

/// The processor time that this process has used.
pub(crate) fn own_cpu() -> Duration {
    ticks("self", 13)
}

/// The processor time of all processes that this one has started and that have ended.
fn children_cpu() -> Duration {
    ticks("self", 15)
}

/// The sum of two neighbouring fields, user and system time.
fn ticks(process: &str, first: usize) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    // The second field is a name in brackets that may hold anything.
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    let fields = rest.split(' ').skip(first - 2).take(2);
    TICK * fields.map(|field| field.parse::<u32>().unwrap()).sum()
}
