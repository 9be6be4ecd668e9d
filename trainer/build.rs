//! Gives the program the commit and the features that it is built from, for `nepa --version`: the
//! commit of the git repository whose root is this workspace, else NEPA_COMMIT, else none. It runs
//! again only when the commit has changed.
use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=NEPA_COMMIT");
    let given = std::env::var("NEPA_COMMIT").ok();
    let commit = of_repository().or(given.filter(|commit| !commit.is_empty()));
    let commit = commit.map_or_else(String::new, |commit| format!("commit {commit}, "));
    let has = |name: &&str| {
        let variable = format!("CARGO_FEATURE_{}", name.to_uppercase());
        std::env::var_os(variable).is_some()
    };
    let features = ["cuda", "mpi"].into_iter().filter(has).collect::<Vec<_>>();
    let features = match &features[..] {
        [] => "none".to_owned(),
        some => some.join(", "),
    };
    println!("cargo:rustc-env=NEPA_BUILT_FROM=({commit}features: {features})");
}

fn of_repository() -> Option<String> {
    let workspace = Path::new("..").canonicalize().ok()?;
    let root = git(&["rev-parse", "--show-toplevel"])?;
    // Another repository may hold the sources, such as that of somebody's home folder.
    if Path::new(&root).canonicalize().ok()? != workspace {
        return None;
    }
    // The first changes with every commit and checkout where it is kept.
    for name in ["logs/HEAD", "HEAD"] {
        let path = git(&["rev-parse", "--git-path", name])?;
        if Path::new(&path).exists() {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    git(&["rev-parse", "--short=7", "HEAD"])
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let text = text.trim();
    (output.status.success() && !text.is_empty()).then(|| text.to_owned())
}
