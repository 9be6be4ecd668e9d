//! The arrows between the packages are those of ARCHITECTURE.md's figure, and no others.
use std::collections::BTreeSet;
use std::process::Command;

/// (package, packages of ours that it may depend on for its own code).
const ALLOWED: &[(&str, &[&str])] = &[
    ("nepa-schemas", &[]),
    ("nepa-pipeline", &["nepa-schemas"]),
    ("nepa-model", &[]),
    (
        "nepa-trainer",
        &["nepa-schemas", "nepa-pipeline", "nepa-model"],
    ),
    (
        "nepa-tests",
        &[
            "nepa-schemas",
            "nepa-pipeline",
            "nepa-model",
            "nepa-trainer",
        ],
    ),
    // The pipeline's own code once more, over a model of threads.
    ("nepa-interleavings", &["nepa-schemas"]),
    (
        "nepa-benchmarks",
        &[
            "nepa-schemas",
            "nepa-pipeline",
            "nepa-model",
            "nepa-trainer",
            "nepa-tests",
        ],
    ),
];

#[test]
fn packages_depend_on_each_other_as_drawn() {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .expect("cargo metadata runs");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).expect("cargo prints JSON");
    let packages = metadata["packages"].as_array().expect("packages is a list");
    assert_eq!(
        packages.len(),
        ALLOWED.len(),
        "a package was added or removed: update the figure and this list"
    );
    for package in packages {
        let name = package["name"].as_str().expect("a package has a name");
        let (_, allowed) = ALLOWED
            .iter()
            .find(|(known, _)| *known == name)
            .expect("the package is in the list");
        let ours: BTreeSet<&str> = package["dependencies"]
            .as_array()
            .expect("dependencies is a list")
            .iter()
            .filter(|dependency| dependency["kind"] != "dev")
            .filter_map(|dependency| dependency["name"].as_str())
            .filter(|dependency| dependency.starts_with("nepa-"))
            .collect();
        for dependency in ours {
            assert!(
                allowed.contains(&dependency),
                "{name} must not depend on {dependency}"
            );
        }
    }
}
