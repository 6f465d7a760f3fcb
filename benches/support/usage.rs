//! What processes have used, from `/proc`.

use std::time::Duration;

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

/// The most memory that a process has had resident so far, in MiB.
pub(crate) fn peak_memory(id: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let mut lines = status.lines();
    let peak = lines.find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kib: f64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    kib / 1024.0
}
