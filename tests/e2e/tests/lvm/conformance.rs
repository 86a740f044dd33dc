//! The cases of ring 3, which the simulation passes as well, against the driver on real LVM: so neither drifts from the other.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cinderblock_lab::cargo;
use cinderblock_lab::driver::SOCKET;
use cinderblock_lab::libtest::Report;

use crate::support::{GIB, pooled, started};

const TIMEOUT: Duration = Duration::from_mins(8);

#[test]
fn the_cases_of_the_simulation_pass_on_real_lvm() -> Result<()> {
    // As the runner of all rings builds it: other crates in sight would mean other features, and
    // everything compiled once more.
    let words = ["test", "--workspace", "--test", "conformance", "--no-run"];
    let built = cargo::build(&words)?.into_iter().find(|it| it.target == "conformance");
    let built = built.context("cargo built no conformance tests")?.executable;
    started("conformance", &[20 * GIB, 20 * GIB], &pooled(2, "50%"), |machine| {
        // Where host and VM see the same, and where it goes with the driver's copy.
        let program = machine.lab.dir().join("driver").join("conformance");
        fs::copy(&built, &program).with_context(|| format!("copying {}", built.display()))?;
        let words = [program.display().to_string(), "--test-threads=4".to_owned()];
        let output =
            machine.node.exec(words).env("CINDERBLOCK_ENDPOINT", SOCKET).timeout(TIMEOUT).run()?;
        let (text, mut report) = (output.stdout_text(), Report::default());
        for line in text.lines() {
            report.take(line);
        }
        let counts = report.counts.with_context(|| {
            format!("it did not come to its end: {report:?}\n{text}\n{}", output.stderr_text())
        })?;
        println!("conformance on real LVM: {counts:?}");
        let good = output.status.success() && counts.failed == 0 && counts.skipped == 0;
        ensure!(good && counts.passed > 0, "{counts:?}\n{text}\n{}", output.stderr_text());
        Ok(())
    })
}
