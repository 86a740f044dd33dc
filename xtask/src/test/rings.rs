//! The rings: which there are, in which order they run, what each proves and needs. Nothing is built or run here.

use std::fmt;

use cinderblock_lab::cargo::Target;

/// What a ring needs besides cargo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    /// Nothing.
    Nothing,
    /// Root and the lab's packages, to boot VMs.
    Vms,
    /// The same, and Kubernetes.
    Kubernetes,
}

/// Where a ring's tests come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tests {
    /// Libraries, programs and documentation, and the integration tests with these names.
    Units(&'static [&'static str]),
    /// The integration test with this name.
    Target(&'static str),
    /// csi-sanity.
    Sanity,
}

/// A ring.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ring {
    /// Its name on the command line.
    pub(crate) name: &'static str,
    /// What it does, in a line.
    pub(crate) about: &'static str,
    /// What it needs.
    pub(crate) needs: Needs,
    /// Whether it runs only when its name is given.
    pub(crate) on_demand: bool,
    tests: Tests,
}

/// All rings, from the quickest to the one that needs most.
pub(crate) static RINGS: [Ring; 9] = [
    Ring {
        name: "unit",
        about: "plans, parsers, names and arithmetic of every crate, on nothing but memory",
        needs: Needs::Nothing,
        on_demand: false,
        tests: Tests::Units(&["roundtrip", "wire"]),
    },
    Ring {
        name: "service",
        about: "every use case on a simulated host, cut and failed at every effect",
        needs: Needs::Nothing,
        on_demand: false,
        tests: Tests::Target("service"),
    },
    Ring {
        name: "conformance",
        about: "CSI over the real socket, on the simulated host",
        needs: Needs::Nothing,
        on_demand: false,
        tests: Tests::Target("conformance"),
    },
    Ring {
        name: "model",
        about: "random clients and faults on the simulated host, against a model of what must come of it",
        needs: Needs::Nothing,
        on_demand: false,
        tests: Tests::Target("model"),
    },
    Ring {
        name: "lvm",
        about: "the driver on real LVM in node VMs, with power cuts; conformance once more",
        needs: Needs::Vms,
        on_demand: false,
        tests: Tests::Target("lvm"),
    },
    Ring {
        name: "sanity",
        about: "csi-sanity on thin, thick, block, raid1 and encrypted volumes in a node VM",
        needs: Needs::Vms,
        on_demand: false,
        tests: Tests::Sanity,
    },
    Ring {
        name: "lab",
        about: "the lab's own VMs: boot, calls, networks, power cuts",
        needs: Needs::Vms,
        on_demand: false,
        tests: Tests::Target("vm"),
    },
    Ring {
        name: "kubernetes",
        about: "claims, pods and snapshots on a real Kubernetes of node VMs",
        needs: Needs::Kubernetes,
        on_demand: false,
        tests: Tests::Target("kubernetes"),
    },
    Ring {
        name: "lab-cluster",
        about: "the lab's own Kubernetes without a driver",
        needs: Needs::Kubernetes,
        on_demand: true,
        tests: Tests::Target("cluster"),
    },
];

impl Ring {
    /// The ring with this name.
    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        RINGS.iter().find(|ring| ring.name == name)
    }

    /// Whether it has the tests of this target.
    pub(crate) fn has(&self, kind: &str, name: &str) -> bool {
        match self.tests {
            Tests::Units(names) => kind == "lib" || kind == "bin" || in_tests(names, kind, name),
            Tests::Target(own) => in_tests(&[own], kind, name),
            Tests::Sanity => false,
        }
    }

    /// Whether it is csi-sanity.
    pub(crate) fn is_sanity(&self) -> bool {
        self.tests == Tests::Sanity
    }

    /// Whether it has the tests in the documentation.
    pub(crate) fn has_documentation(&self) -> bool {
        matches!(self.tests, Tests::Units(_))
    }

    /// Whether there is something of it in these targets.
    pub(crate) fn exists(&self, targets: &[Target]) -> bool {
        self.is_sanity() || targets.iter().any(|it| self.has(&it.kind, &it.name))
    }

    /// Which targets `cargo test` shall build for it.
    pub(crate) fn selection(&self, targets: &[Target]) -> Vec<String> {
        let mut words = Vec::new();
        if matches!(self.tests, Tests::Units(_)) {
            words.extend(["--lib".to_owned(), "--bins".to_owned()]);
        }
        for target in targets.iter().filter(|it| it.kind == "test" && self.has("test", &it.name)) {
            words.extend(["--test".to_owned(), target.name.clone()]);
        }
        words
    }
}

impl fmt::Display for Ring {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name)
    }
}

fn in_tests(names: &[&str], kind: &str, name: &str) -> bool {
    kind == "test" && names.contains(&name)
}

/// The names of integration tests that no ring would run.
pub(crate) fn strays(targets: &[Target]) -> Vec<&str> {
    let tests = targets.iter().filter(|it| it.kind == "test");
    tests
        .filter(|it| !RINGS.iter().any(|ring| ring.has(&it.kind, &it.name)))
        .map(|it| it.name.as_str())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(kind: &str, name: &str) -> Target {
        Target { name: name.to_owned(), kind: kind.to_owned() }
    }

    #[test]
    fn every_test_is_in_one_ring() {
        let targets = cinderblock_lab::cargo::targets().unwrap();
        assert_eq!(strays(&targets), Vec::<&str>::new());
        for target in targets.iter().filter(|it| it.kind != "custom-build") {
            let rings: Vec<_> =
                RINGS.iter().filter(|ring| ring.has(&target.kind, &target.name)).collect();
            assert_eq!(rings.len(), 1, "{target:?}: {rings:?}");
        }
        assert_eq!(strays(&[target("test", "new"), target("bin", "new")]), ["new"]);
    }

    #[test]
    fn only_what_exists_is_built() {
        let targets = [target("lib", "a"), target("test", "wire"), target("test", "lvm")];
        let words = |name: &str| Ring::named(name).unwrap().selection(&targets).join(" ");
        assert_eq!(words("unit"), "--lib --bins --test wire");
        assert_eq!(words("lvm"), "--test lvm");
        assert_eq!(words("kubernetes"), "");
        assert_eq!(words("sanity"), "");
        assert!(Ring::named("sanity").unwrap().exists(&[]));
        assert!(!Ring::named("kubernetes").unwrap().exists(&targets));
        assert_eq!(Ring::named("other"), None);
    }
}
