//! The arrows between the packages are those of ARCHITECTURE.md's figure, and no others; so are those
//! between the layers of the pipeline, whose public face is the list in its `lib.rs`. No files of a
//! package import each other in a circle.
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::process::Command;

mod imports;

use imports::Imports;

/// (package, packages of ours that it may depend on for its own code).
const ALLOWED: &[(&str, &[&str])] = &[
    ("nepa-schemas", &[]),
    ("nepa-pipeline", &["nepa-schemas"]),
    ("nepa-model", &[]),
    (
        "nepa-trainer",
        &["nepa-schemas", "nepa-pipeline", "nepa-model"],
    ),
    ("nepa-python", &["nepa-pipeline", "nepa-trainer"]),
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

/// (layer of the pipeline, the ones whose names it may use): a file or a folder of `pipeline/src`.
const LAYERS: &[(&str, &[&str])] = &[
    ("sample", &[]),
    ("random", &["sample"]),
    ("sync", &[]),
    // Names of what is traced.
    ("spans", &[]),
    // Bytes of objects; no Parquet.
    ("store", &["sample", "spans"]),
    // Rows of shards; no order.
    ("dataset", &["sample", "store", "sync"]),
    // Which part of an image; no pixel, no data set.
    ("augment", &["random"]),
    // How the images of a micro-batch are mixed; floats alone.
    ("mix", &["random"]),
    // Bytes to pixels; no data set.
    ("image", &["augment", "random"]),
    ("stats", &["store"]),
    // Who decodes; no loader, no data set.
    ("backend", &["augment", "image", "stats"]),
    ("batch", &["augment", "backend", "image", "sample", "sync"]),
    (
        "loader",
        &[
            "augment", "backend", "batch", "dataset", "image", "random", "sample", "spans",
            "stats", "store", "sync",
        ],
    ),
];

fn sources(package: &str) -> PathBuf {
    let workspace = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    PathBuf::from(workspace).join(package).join("src")
}

fn pipeline_sources() -> PathBuf {
    sources("pipeline")
}

#[test]
fn layers_of_the_pipeline_use_those_below_alone() {
    let imports = Imports::of(&pipeline_sources());
    let allowed: BTreeMap<_, _> = LAYERS.iter().copied().collect();
    let (mut seen, mut wrong) = (BTreeSet::new(), Vec::new());
    for (file, targets) in &imports.arrows {
        let Some(layer) = file.first() else { continue };
        seen.insert(layer.as_str());
        let may_use = allowed.get(layer.as_str());
        let may_use = may_use.unwrap_or_else(|| panic!("{layer} is in no layer: add it to LAYERS"));
        for target in targets {
            match target.first() {
                Some(below) if below == layer || may_use.contains(&below.as_str()) => {}
                _ => wrong.push(format!("{} uses {}", file.join("/"), target.join("/"))),
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let listed: BTreeSet<_> = allowed.keys().copied().collect();
    assert_eq!(seen, listed, "a layer was removed");
    // What the reading of sources must at least have found.
    let arrow = |from: &[&str], to: &[&str]| {
        let [from, to] = [from, to].map(|path| {
            let names = path.iter().map(|name| (*name).to_owned());
            names.collect::<Vec<_>>()
        });
        imports.arrows[&from].contains(&to)
    };
    assert!(
        arrow(&["dataset", "fetch"], &["store", "config"]),
        "through two re-exports"
    );
    assert!(arrow(&["loader", "decode"], &["backend", "router"]));
    assert!(arrow(&["loader", "walk"], &["sample"]), "through lib.rs");
}

fn assert_no_circles(package: &str) {
    let imports = Imports::of(&sources(package));
    assert!(imports.arrows.len() > 5, "{package} has files");
    let circles = imports.circles();
    let told = circles
        .iter()
        .map(|(a, b)| format!("{} and {}", a.join("/"), b.join("/")));
    assert!(
        circles.is_empty(),
        "{package}:\n{}",
        told.collect::<Vec<_>>().join("\n")
    );
}

#[test]
fn no_files_of_the_pipeline_import_each_other_in_a_circle() {
    assert_no_circles("pipeline");
}

#[test]
fn no_files_of_the_trainer_import_each_other_in_a_circle() {
    assert_no_circles("trainer");
    let imports = Imports::of(&sources("trainer"));
    let arrow = |from: &[&str], to: &[&str]| {
        let [from, to] = [from, to].map(|path| {
            let names = path.iter().map(|name| (*name).to_owned());
            names.collect::<Vec<_>>()
        });
        imports.arrows[&from].contains(&to)
    };
    assert!(arrow(&["run", "set_up"], &["run", "setup"]));
    assert!(
        arrow(&["program"], &["commands", "pack"]),
        "through a module's name"
    );
}

#[test]
fn no_files_of_the_model_import_each_other_in_a_circle() {
    assert_no_circles("model");
}

/// The names are all here, so that a change of them is seen as one. The compiler sees to it that
/// nothing else can be reached (`unreachable_pub`) and that all is documented (`missing_docs`).
#[test]
fn the_public_names_of_the_pipeline_are_those_of_the_list() {
    let text = std::fs::read_to_string(pipeline_sources().join("lib.rs")).expect("the list");
    let modules = text.lines().filter(|line| line.starts_with("pub mod "));
    assert_eq!(modules.collect::<Vec<_>>(), ["pub mod random;"]);
    let mut names = BTreeSet::new();
    for declaration in text.split("pub use ").skip(1) {
        let (tree, _) = declaration.split_once(';').expect("a declaration ends");
        assert!(!tree.contains('*'), "names one by one: {tree}");
        let (_, list) = tree.split_once("::").expect("a path");
        let list = list.rsplit_once('{').map_or(list, |(_, list)| list);
        let list = list.trim_end_matches('}').split(',').map(str::trim);
        let list = list.map(|name| name.rsplit("::").next().unwrap_or(name));
        names.extend(list.filter(|name| !name.is_empty()));
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/pipeline-names.txt");
    let listed = std::fs::read_to_string(path).expect("the list of names");
    let listed: BTreeSet<_> = listed.lines().collect();
    let gone = listed.difference(&names).collect::<Vec<_>>();
    let new = names.difference(&listed).collect::<Vec<_>>();
    assert!(
        gone.is_empty() && new.is_empty(),
        "no more public: {gone:?}; newly public: {new:?}. If that is meant, say so in CHANGELOG.md \
         and change {path}"
    );
}
