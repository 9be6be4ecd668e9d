//! What measurements work on: shards of photos or of scenes, a server with S3's protocol, Python
//! environments. No network but PyPI.
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, ensure};

use crate::child::{command, text_of};

/// A folder of shards, and what a report calls it.
pub(crate) struct Shards {
    pub(crate) folder: PathBuf,
    pub(crate) title: String,
}

/// The folder of test data that NEPA_TEST_DATA names.
pub(crate) fn test_data() -> Option<PathBuf> {
    let folder = std::env::var_os("NEPA_TEST_DATA").filter(|name| !name.is_empty())?;
    Some(folder.into())
}

impl Shards {
    /// The photos of the test data, or scenes that `nepa sample-data` makes in `work`.
    pub(crate) fn photos(programs: &Path, work: &Path) -> anyhow::Result<Self> {
        if let Some(data) = test_data() {
            let folder = data.join("imagenet-shaped");
            let title = format!(
                "imagenet-shaped ({} MiB of photos in the sizes of ImageNet)",
                mebibytes(&parquet_files(&folder)?)?
            );
            return Ok(Self { folder, title });
        }
        let folder = work.join("scenes");
        let mut make = command(
            programs.join("nepa"),
            "sample-data --images 400 --val-images 0",
        );
        text_of(make.arg(&folder))?;
        Ok(Self {
            folder,
            title: "400 scenes of `nepa sample-data`".to_owned(),
        })
    }
}

/// The shards of a folder, by name.
pub(crate) fn parquet_files(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let is_shard = |path: &PathBuf| path.extension().is_some_and(|end| end == "parquet");
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let paths: std::io::Result<Vec<_>> = entries.map(|entry| Ok(entry?.path())).collect();
    let mut shards: Vec<_> = paths?.into_iter().filter(is_shard).collect();
    shards.sort();
    ensure!(
        !shards.is_empty(),
        "{} holds no *.parquet",
        folder.display()
    );
    Ok(shards)
}

/// What these files hold together, rounded up.
pub(crate) fn mebibytes(files: &[PathBuf]) -> anyhow::Result<u64> {
    let sizes = files.iter().map(|file| Ok(fs::metadata(file)?.len()));
    let sizes: std::io::Result<Vec<_>> = sizes.collect();
    Ok(sizes?.iter().sum::<u64>().div_ceil(1 << 20))
}

/// Links to shards in a new folder, ten times under names of their own.
pub(crate) fn ten_times(shards: &[PathBuf], folder: &Path) -> anyhow::Result<()> {
    fs::create_dir(folder)?;
    for shard in shards {
        let whole = shard.canonicalize()?;
        let name = shard.file_name().unwrap_or_default().display();
        for copy in 0..10 {
            symlink(&whole, folder.join(format!("{copy}-{name}")))?;
        }
    }
    Ok(())
}

/// `nepa-test-s3`: a process of its own, so that its work and memory are not counted as a loader's.
pub(crate) struct Server {
    child: Child,
    environment: Vec<(String, String)>,
}

impl Server {
    /// Serves a folder as the bucket `bench`.
    pub(crate) fn start(programs: &Path, folder: &Path, options: &str) -> anyhow::Result<Self> {
        let path = programs.join("nepa-test-s3");
        let mut child = command(&path, options)
            .args(["--bucket", "bench"])
            .arg(folder)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", path.display()))?;
        let output = child.stdout.take().context("no pipe from the server")?;
        let mut output = BufReader::new(output);
        let mut server = Self {
            child,
            environment: Vec::new(),
        };
        loop {
            let mut line = String::new();
            output.read_line(&mut line)?;
            match line.trim().split_once('=') {
                Some((name, value)) => server.environment.push((name.to_owned(), value.to_owned())),
                None if line.trim() == "ready" => return Ok(server),
                None => ensure!(!line.is_empty(), "{} ended at once", path.display()),
            }
        }
    }

    /// The command, told where the server is.
    pub(crate) fn leads(&self, mut command: Command) -> Command {
        command.envs(self.environment.iter().cloned());
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The Python of a virtual environment outside of the tree, made if it is not there, and whether it
/// was.
pub(crate) fn environment(name: &str) -> anyhow::Result<(PathBuf, bool)> {
    let folder = cache()?.join(name);
    let python = folder.join("bin/python");
    if python.exists() {
        return Ok((python, true));
    }
    text_of(command("python3", "-m venv").arg(&folder))?;
    Ok((python, false))
}

/// Where things are kept that are dear to fetch.
pub(crate) fn cache() -> anyhow::Result<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"));
    cache
        .or_else(home)
        .context("neither HOME nor XDG_CACHE_HOME is set")
}

/// Installs packages from PyPI.
pub(crate) fn install(python: &Path, packages: &str) -> anyhow::Result<()> {
    let pip = "-m pip install --quiet --disable-pip-version-check";
    text_of(command(python, pip).args(packages.split_whitespace())).map(drop)
}
