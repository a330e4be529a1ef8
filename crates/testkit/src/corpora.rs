//! Public corpora, which are too large for the repository.

use std::{io::Write as _, path::PathBuf};

/// The folder with public corpora, from `GARRISON_CORPORA`. Without it, says on standard output that the test is
/// skipped, in the words that `cargo xtask test` counts. Only for tests of what is larger than a test's own data:
/// what a machine lacks otherwise is a failure, as the test command installs it.
pub fn corpora(test: &str) -> Option<PathBuf> {
    let folder = std::env::var_os("GARRISON_CORPORA").map(PathBuf::from);
    if folder.is_none() {
        // Not `println!`, which the test harness keeps to itself when a test passes; one write, as tests run side by side.
        let line = format!("\nskipped: {test}: GARRISON_CORPORA does not name the folder of the corpora\n");
        let _ = std::io::stdout().write_all(line.as_bytes());
    }
    folder
}
