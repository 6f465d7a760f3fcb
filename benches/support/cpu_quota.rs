//! Limits how much CPU a process may use, by a control group of its own. Needs root.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Short, so that what the process does is slower and not halting.
const PERIOD: Duration = Duration::from_millis(10);

/// Lasts as long as the processes in it should be limited; must outlive them.
pub(crate) struct CpuQuota(PathBuf);

impl CpuQuota {
    /// For each process that it is made for, so many cores.
    pub(crate) fn new(name: &str, cores: f64) -> Self {
        let root = Path::new("/sys/fs/cgroup");
        let (period, quota) = (PERIOD.as_micros(), PERIOD.mul_f64(cores).as_micros());
        let folder = |parent: PathBuf| {
            let folder = parent.join(format!(
                "event-persister-bench-{}-{name}",
                std::process::id()
            ));
            let made = fs::create_dir(&folder);
            made.unwrap_or_else(|error| panic!("{}: {error}; run this as root", folder.display()));
            folder
        };
        // Version 2 has one tree, version 1 one for each kind of limit.
        if root.join("cgroup.controllers").exists() {
            write(&root.join("cgroup.subtree_control"), "+cpu");
            let folder = folder(root.to_owned());
            write(&folder.join("cpu.max"), &format!("{quota} {period}"));
            Self(folder)
        } else {
            let folder = folder(root.join("cpu"));
            write(&folder.join("cpu.cfs_period_us"), &period.to_string());
            write(&folder.join("cpu.cfs_quota_us"), &quota.to_string());
            Self(folder)
        }
    }

    pub(crate) fn limit(&self, process: u32) {
        write(&self.0.join("cgroup.procs"), &process.to_string());
    }
}

impl Drop for CpuQuota {
    fn drop(&mut self) {
        // What is left after a panic goes with the machine.
        fs::remove_dir(&self.0).ok();
    }
}

fn write(file: &Path, value: &str) {
    fs::write(file, value).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
}
