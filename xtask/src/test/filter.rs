//! Which tests are asked for by something else than a ring's name: a text in their names, or a group of modules.
//! Nothing is run here.

/// Groups by their names: parts of tests' names, any of which will do. Each module of the simulated and of the LVM
/// ring is in a group, or in `OTHERS`.
const GROUPS: [(&str, &[&str]); 2] = [
    (
        "faults",
        &[
            "faults",
            "copies::",
            "every_trouble::",
            "fake_api::",
            "foreign::",
            "fragments::",
            "full::",
            "full_area::",
            "full_metadata::",
            "growth::",
            "growths::",
            "hanging::",
            "hostile::",
            "link::",
            "load::",
            "losses::",
            "missing::",
            "new_volumes::",
            "orphans::",
            "partitions::",
            "peers::",
            "pool_parts::",
            "pools::",
            "power::",
            "raid::",
            "raid_pool::",
            "recorded_tags::",
            "repair::",
            "restarts::",
            "setup::",
            "sockets::",
            "troubles::",
            "upgrade::",
            "use_cases::",
            "versions::",
            "wiping::",
        ],
    ),
    ("scale", &["scale", "churn::", "many::", "processes::"]),
];

/// Modules about what works while nothing fails, or without tests.
#[cfg(test)]
const OTHERS: [&str; 11] = [
    "behaviour",
    "blank",
    "conformance",
    "disks",
    "door",
    "encryption",
    "filesystems",
    "group",
    "main",
    "support",
    "wire",
];

/// The parts of names that are meant: a group's, or the word itself.
pub(super) fn words(word: &str) -> Vec<&str> {
    let group = GROUPS.iter().find(|(name, _)| *name == word);
    group.map_or_else(|| vec![word], |(_, words)| words.to_vec())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_group_stands_for_its_modules() {
        assert_eq!(words("plan::create"), ["plan::create"]);
        assert!(words("faults").contains(&"partitions::"));
        assert_eq!(words("scale")[0], "scale");
    }

    #[test]
    fn every_module_is_in_a_group_or_needs_none() {
        let root = cinderblock_lab::cargo::workspace();
        for folder in ["tests/service", "tests/e2e/tests/lvm"] {
            for entry in fs::read_dir(root.join(folder)).unwrap() {
                let path = entry.unwrap().path();
                let module = path.file_stem().unwrap().to_str().unwrap().to_owned();
                let name = format!("{module}::");
                let in_groups =
                    GROUPS.iter().filter(|(_, words)| words.iter().any(|word| name.contains(word)));
                let places = in_groups.count() + OTHERS.iter().filter(|it| **it == module).count();
                assert_eq!(places, 1, "{}: put it into one group, or into OTHERS", path.display());
            }
        }
    }
}
