//! The loader serves another model: the example program learns to classify rendered scenes.
use std::process::Command;

use nepa_tests::program::nepa;

#[test]
fn the_example_classifier_gets_better_than_chance() {
    let scenes = tempfile::tempdir().unwrap();
    let data = scenes.path().to_str().unwrap();
    let rendered = nepa()
        .args([
            "sample-data",
            data,
            "--images",
            "300",
            "--val-images",
            "100",
        ])
        .output()
        .unwrap();
    assert!(
        rendered.status.success(),
        "{}",
        String::from_utf8_lossy(&rendered.stderr)
    );

    // `cargo test --workspace` builds examples beside the folder of the test programs.
    let tests = std::env::current_exe().unwrap();
    let program = tests
        .ancestors()
        .nth(2)
        .unwrap()
        .join("examples/train_classifier");
    let output = Command::new(program)
        .args([
            format!("{data}/train-*.parquet"),
            format!("{data}/val-*.parquet"),
        ])
        .arg("60")
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let accuracy: f64 = printed
        .split("held-out accuracy ")
        .nth(1)
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("no accuracy in {printed}"));
    // Ten classes: chance is 0.1, and 100 images put it below 0.2 almost surely.
    assert!(accuracy > 0.25, "{printed}");
}
