//! Paused time for the tests of this crate.

use std::io::Write as _;
use std::time::Duration;

/// No test waits for longer on purpose. Longer, and a pipeline looks at itself for too many seconds.
const PATIENCE: Duration = Duration::from_secs(24 * 60 * 60);

/// Pauses time, and watches over the test: where nothing is left to do, time jumps ahead, so that a test
/// which waits for something that never comes fails at once.
pub(crate) fn pause_time() {
    tokio::time::pause();
    actix_rt::spawn(async {
        tokio::time::sleep(PATIENCE).await;
        let thread = std::thread::current();
        let test = thread.name().unwrap_or("a test");
        // A panic would stay in this task, and what is printed in the usual way is kept back.
        writeln!(std::io::stderr(), "{test} waits for what never comes").ok();
        std::process::exit(101);
    });
}
