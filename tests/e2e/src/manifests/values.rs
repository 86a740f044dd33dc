//! Values that the chart must refuse, with a word that says where, and some that it must render as they were meant.

use anyhow::{Result, ensure};

use super::Helm;

/// Values, and what the refusal must say.
const REFUSED: [(&str, &str); 17] = [
    ("backend: []", "backend"),
    ("backends: [{ name: fast }]", "volumeGroup"),
    ("backends: [{ name: Fast, volumeGroup: vg }]", "/backends/0/name"),
    ("backends: [{ name: fast, volumeGroup: -vg }]", "/backends/0/volumeGroup"),
    ("backends: [{ name: fast, volumeGroup: vg, sise: 1 }]", "sise"),
    ("backends: [{ name: fast, volumeGroup: vg, create: true }]", "devices"),
    ("backends: [{ name: fast, volumeGroup: vg, create: true, devices: [] }]", "/backends/0"),
    ("backends: [{ name: fast, volumeGroup: vg, devices: [/dev/disk/by-id/a] }]", "/backends/0"),
    (
        "backends: [{ name: fast, volumeGroup: vg, nodeDevices: { n: [/dev/disk/by-id/a] } }]",
        "/backends/0",
    ),
    (
        "backends: [{ name: fast, volumeGroup: vg, create: true, devices: [/dev/sdb] }]",
        "/backends/0/devices/0",
    ),
    (
        "backends: [{ name: fast, volumeGroup: a }, { name: fast, volumeGroup: b }]",
        "backends: name fast stands there twice",
    ),
    (
        "backends: [{ name: a, volumeGroup: vg }, { name: b, volumeGroup: vg }]",
        "backends: volumeGroup vg stands there twice",
    ),
    ("storageClasses: [{ name: a, fsType: zfs }]", "/storageClasses/0/fsType"),
    ("orphans: { grace: 0h }", "/orphans/grace"),
    ("orphans: { interval: 0s }", "/orphans/interval"),
    ("controller: { replicas: 0 }", "/controller/replicas"),
    ("node: { maxUnavailable: 0 }", "/node/maxUnavailable"),
];

/// Values, and a line that must be rendered, without what is before it.
const RENDERED: [(&str, &str); 4] = [
    // YAML's numbers are floating ones to Helm: no 1.6777216e+07.
    ("storageClasses: [{ name: a, parameters: { x: 16777216 } }]", "x: \"16777216\""),
    ("storageClasses: [{ name: a, parameters: { x: true } }]", "x: \"true\""),
    ("backends: [{ name: fast, volumeGroup: vg, reserve: 5% }]", "reserve: 5%"),
    (
        "backends: [{ name: fast, volumeGroup: vg, create: true, nodeDevices: { n: [/dev/disk/by-id/a] } }]",
        "- /dev/disk/by-id/a",
    ),
];

/// Tries them all on a chart, and returns how many there are.
pub(super) fn check(helm: &Helm, chart: &str) -> Result<usize> {
    let template = |values: &str| helm.run_with(&["template", "x", chart, "--values", "-"], values);
    for (values, word) in REFUSED {
        match template(values) {
            Ok(_) => anyhow::bail!("the chart takes {values}, which it should refuse"),
            Err(error) => {
                let said = format!("{error:#}");
                ensure!(
                    said.contains(word),
                    "the chart refuses {values} without saying {word}: {said}"
                );
            }
        }
    }
    for (values, line) in RENDERED {
        let text = template(values)?;
        ensure!(
            text.lines().any(|it| it.contains(line)),
            "the chart makes no {line:?} of {values}: {text}"
        );
    }
    Ok(REFUSED.len() + RENDERED.len())
}
