//! The output of Rust's test executables: which tests ran, and how they ended. It starts none of them.

/// How one test ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It passed.
    Passed,
    /// It failed.
    Failed,
    /// It was not run, as its `#[ignore]` says.
    Ignored,
}

/// What the lines of one executable's stdout have told so far; or of several, one after the other,
/// as for tests in documentation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Tests that are to run, from the first line of each.
    pub planned: usize,
    /// Tests whose line was seen.
    pub ended: usize,
    /// The numbers of the last line of each. None: no executable came to its end.
    pub counts: Option<Counts>,
}

/// Numbers of tests.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// That passed.
    pub passed: usize,
    /// That failed.
    pub failed: usize,
    /// That were not run, though they were asked for.
    pub skipped: usize,
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl Counts {
    /// All tests that were asked for.
    #[must_use]
    pub fn total(self) -> usize {
        self.passed + self.failed + self.skipped
    }
}

impl std::fmt::Display for Counts {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { passed, failed, skipped } = self;
        write!(formatter, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

impl Report {
    /// Takes in one line; the test that it is about, if it is about one.
    pub fn take<'a>(&mut self, line: &'a str) -> Option<(&'a str, Ended)> {
        if let Some(counts) = result(line) {
            *self.counts.get_or_insert_default() += counts;
            return None;
        }
        if let Some(planned) = planned(line) {
            self.planned += planned;
            return None;
        }
        let case = case(line)?;
        self.ended += 1;
        Some(case)
    }
}

/// The number in `running 7 tests`.
fn planned(line: &str) -> Option<usize> {
    let rest = line.strip_prefix("running ")?;
    let number = rest.strip_suffix(" tests").or_else(|| rest.strip_suffix(" test"))?;
    number.parse().ok()
}

/// `test a::b ... ok`; some harnesses fill up short names with spaces.
fn case(line: &str) -> Option<(&str, Ended)> {
    let (name, how) = line.strip_prefix("test ")?.split_once(" ... ")?;
    let ended = match how {
        "ok" => Ended::Passed,
        "FAILED" => Ended::Failed,
        _ if how == "ignored" || how.starts_with("ignored, ") => Ended::Ignored,
        _ => return None,
    };
    Some((name.trim_end(), ended))
}

/// `test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1.00s`
fn result(line: &str) -> Option<Counts> {
    let (_, rest) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let number = |word: &str| {
        let part = rest.split("; ").find_map(|part| part.trim().strip_suffix(word))?;
        part.trim().parse().ok()
    };
    Some(Counts {
        passed: number("passed")?,
        failed: number("failed")?,
        skipped: number("ignored")?,
    })
}

/// The names that an executable prints when it is called with `--list`.
#[must_use]
pub fn names(listing: &str) -> Vec<&str> {
    listing.lines().filter_map(|line| line.strip_suffix(": test")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_followed() {
        let mut report = Report::default();
        let output = "\nrunning 4 tests\ntest a::b ... ok\ntest c ... ignored, takes long\n\
            test d has been running for over 60 seconds\ntest d - should panic ... ok\n\
            test e ... FAILED\n\nfailures:\n\n---- e stdout ----\ntest of something ... else\n\n\
            test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 7 filtered out; \
            finished in 0.01s\n";
        let cases: Vec<_> = output.lines().filter_map(|line| report.take(line)).collect();
        let want = [
            ("a::b", Ended::Passed),
            ("c", Ended::Ignored),
            ("d - should panic", Ended::Passed),
            ("e", Ended::Failed),
        ];
        assert_eq!(cases, want);
        assert_eq!((report.planned, report.ended), (4, 4));
        assert_eq!(report.counts, Some(Counts { passed: 2, failed: 1, skipped: 1 }));
    }

    #[test]
    fn one_after_the_other() {
        let mut report = Report::default();
        let output = "running 1 test\ntest a    ... ok\n\ntest result: ok. 1 passed; 0 failed; \
            0 ignored; 0 measured; 0 filtered out; finished in 0.01s\n\n"
            .repeat(2);
        let cases: Vec<_> = output.lines().filter_map(|line| report.take(line)).collect();
        assert_eq!(cases, [("a", Ended::Passed); 2]);
        assert_eq!(report.planned, 2);
        assert_eq!(report.counts, Some(Counts { passed: 2, failed: 0, skipped: 0 }));
    }

    #[test]
    fn an_executable_that_dies_has_no_counts() {
        let mut report = Report::default();
        for line in ["running 1 test", "thread main has overflowed its stack"] {
            assert_eq!(report.take(line), None);
        }
        assert_eq!((report.planned, report.counts), (1, None));
    }

    #[test]
    fn listings() {
        assert_eq!(
            names("a::b: test\nc: test\nd: benchmark\n\n2 tests, 1 benchmark\n"),
            ["a::b", "c"]
        );
    }
}
