//! `cargo xtask bench`: what the driver costs, as a table and as JSON. Nothing is judged by time here; the counts of LVM processes are held to their budgets.

mod copies;
mod kubernetes;
mod lvm_settings;
mod pods;
mod samples;
mod spent;
mod standalone;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use cinderblock_lab::packages;
use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

/// The most LVM processes of each operation.
const BUDGETS: [(&str, usize); 13] = [
    ("create_thick", 1),
    ("create_thin", 1),
    ("delete", 1),
    ("snapshot_thin", 1),
    ("snapshot_thick", 1),
    ("restore_thin", 1),
    ("clone_thin", 1),
    ("expand", 1),
    ("stage_first", 1),
    ("stage_again", 0),
    ("publish", 0),
    ("unpublish", 0),
    ("stats", 0),
];

/// Measure LVM processes, latency, memory and API writes; needs root
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Write the figures there as JSON as well
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Measure this part alone
    #[arg(long, value_enum, value_name = "PART")]
    only: Option<Part>,
}

/// What can be measured by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Calls to one node: LVM processes, latency, copies
    Standalone,
    /// Claims and pods, memory of agent and controller, API writes
    Kubernetes,
    /// LVM's own commands with each of the settings that the driver gives them; no part of the whole
    LvmSettings,
}

/// Runs it.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    packages::ensure()?;
    let only = arguments.only;
    let mut figures = Map::new();
    let with_budgets = only.is_none_or(|it| it == Part::Standalone);
    if with_budgets {
        standalone::measure(&mut figures)?;
    }
    if only.is_none_or(|it| it == Part::Kubernetes) {
        kubernetes::measure(&mut figures)?;
    }
    if only == Some(Part::LvmSettings) {
        figures.insert("lvm_settings_to_defaults".to_owned(), lvm_settings::measure()?);
    }
    let figures = Value::Object(figures);
    told(arguments, &figures)?;
    let over = if with_budgets { over_budget(&figures["lvm_processes"]) } else { Vec::new() };
    for line in &over {
        println!("over its budget: {line}");
    }
    Ok(if over.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints the figures, and writes them where they are asked for.
fn told(arguments: &Arguments, figures: &Value) -> Result<()> {
    println!();
    table("", figures);
    if let Some(file) = &arguments.json {
        let text = serde_json::to_string_pretty(figures)?;
        std::fs::write(file, text + "\n").with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(())
}

/// Operations that took more LVM processes than they may, or were not counted.
fn over_budget(counts: &Value) -> Vec<String> {
    let over = |(name, budget): &(&str, usize)| {
        let count = counts[name].as_u64();
        let fine = count.is_some_and(|count| usize::try_from(count).is_ok_and(|it| it <= *budget));
        (!fine).then(|| format!("{name}: {} LVM processes, {budget} at most", json!(count)))
    };
    BUDGETS.iter().filter_map(over).collect()
}

/// Prints figures, one in a line, under the names of what they are part of.
fn table(path: &str, figures: &Value) {
    let Some(parts) = figures.as_object() else {
        println!("{path:48} {:>10}", figures.to_string());
        return;
    };
    for (name, part) in parts {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        table(&path, part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_held() {
        let good: Map<_, _> =
            BUDGETS.iter().map(|(name, count)| ((*name).to_owned(), json!(count))).collect();
        let mut counts = Value::Object(good);
        assert!(over_budget(&counts).is_empty());
        counts["stats"] = json!(1);
        counts["delete"] = Value::Null;
        assert_eq!(over_budget(&counts).len(), 2);
    }
}
