//! `lab up`: options from the command line. The cluster and the driver's installation are in the lab.

use std::process::ExitCode;

use anyhow::{Context, Result};
use cinderblock_lab::{Cluster, Options, install};
use clap::Args;

use super::Which;

/// Bring a lab up; what runs already stays
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// How many nodes
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=9))]
    nodes: u8,
    /// Memory of each node in MiB [default: 1536]
    #[arg(long, value_name = "MIB")]
    memory: Option<u32>,
    /// A feature gate of Kubernetes, such as SomeFeature=true; may be repeated
    #[arg(long, value_name = "NAME=BOOL", value_parser = switch)]
    feature_gate: Vec<(String, bool)>,
    /// An API group and version, such as storage.k8s.io/v1beta1=true; may be repeated
    #[arg(long, value_name = "API=BOOL", value_parser = switch)]
    api: Vec<(String, bool)>,
    /// Kubernetes alone, without the driver
    #[arg(long)]
    no_driver: bool,
}

/// Runs it.
pub(super) fn run(which: &Which, arguments: &Arguments) -> Result<ExitCode> {
    let cluster = Cluster::up(options(which, arguments))?;
    if !arguments.no_driver {
        install::install(&cluster, &install::values())?;
    }
    println!("{}", cluster.status()?);
    if !arguments.no_driver {
        println!("StorageClasses {} and {}", install::THIN, install::THICK);
    }
    println!("try: cargo xtask lab kubectl get pods -A");
    Ok(ExitCode::SUCCESS)
}

fn options(which: &Which, arguments: &Arguments) -> Options {
    let mut options = Options::new(&which.name).nodes(arguments.nodes);
    if let Some(dir) = &which.dir {
        options = options.dir(dir);
    }
    if let Some(memory) = arguments.memory {
        let specs: Vec<_> =
            options.nodes.iter().map(|spec| spec.clone().memory_mib(memory)).collect();
        options = options.node_specs(specs);
    }
    for (name, on) in &arguments.feature_gate {
        options = options.feature_gate(name, *on);
    }
    for (name, on) in &arguments.api {
        options = options.api(name, *on);
    }
    options
}

fn switch(text: &str) -> Result<(String, bool)> {
    let (name, on) = text.split_once('=').context("write NAME=true or NAME=false")?;
    Ok((name.to_owned(), on.parse().context("write NAME=true or NAME=false")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switches() {
        assert_eq!(switch("A/b=true").unwrap(), ("A/b".to_owned(), true));
        for bad in ["A", "A=1", "A="] {
            assert!(switch(bad).unwrap_err().to_string().contains("NAME=true"), "{bad}");
        }
    }
}
