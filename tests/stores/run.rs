//! One pretraining run as the tests watch it: started on a store, stopped in many ways, and compared with the same run
//! from and to the local disk that nothing disturbed.
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nepa_tests::program::{
    joined, nepa, newest_checkpoint, succeed, timeless_metrics, tiny_recipe, write_photo_shards,
};
use nepa_tests::proxy::Proxy;
use tempfile::TempDir;

use crate::servers::Server;

/// Steps between two checkpoints.
pub(crate) const EVERY: usize = 40;
/// Buckets of data and of outputs.
pub(crate) const DATA: &str = "photos";
pub(crate) const OUT: &str = "runs";

/// What all runs have in common: windows and requests so small that data is asked for throughout.
const SETTINGS: [&str; 6] = [
    "train.steps=240",
    "checkpoint.every_steps=40",
    "data.shuffle_window_bytes=65536",
    "io.coalesce_gap_bytes=0",
    "loader.decode_threads=1",
    "log.every_steps=40",
];

/// Whether the long forms of tests are wanted.
pub(crate) fn is_long() -> bool {
    std::env::var_os("NEPA_LONG").is_some()
}

/// Our server behind a line that can be disturbed.
pub(crate) struct Place {
    pub(crate) server: Server,
    pub(crate) proxy: Proxy,
}

impl Place {
    /// On its line data comes so slowly that a run takes some ten seconds.
    pub(crate) fn new() -> Self {
        let server = Server::ours();
        let proxy = Proxy::before(server.endpoint(), &[DATA, OUT]);
        proxy.throttle(DATA, None, Some(400e3));
        Self { server, proxy }
    }

    pub(crate) fn run(&self) -> Run {
        Run::new(&self.server, &self.proxy.endpoint(), "a")
    }
}

/// The data, and the undisturbed run on it.
pub(crate) struct Reference {
    folder: TempDir,
}

impl Reference {
    /// That of the common settings.
    pub(crate) fn get() -> &'static Self {
        static REFERENCE: OnceLock<Reference> = OnceLock::new();
        REFERENCE.get_or_init(|| Self::with(&[]))
    }

    /// That of other settings, which come on top.
    pub(crate) fn with(settings: &[&str]) -> Self {
        let reference = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        write_photo_shards(&reference.data(), 4, 4, 12);
        write_photo_shards(&reference.path("val"), 1, 1, 40);
        let (data, out) = (reference.data(), reference.out());
        let mut command = pretrain(data.to_str().unwrap(), out.to_str().unwrap());
        command.args(settings.iter().flat_map(|setting| ["--set", setting]));
        succeed(command.arg("--trace-samples").arg(reference.path("trace")));
        reference
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.path("data")
    }

    pub(crate) fn out(&self) -> PathBuf {
        self.path("out")
    }

    /// Every number and every weight of the run in `folder` is this run's, and the samples came in the same order.
    #[track_caller]
    pub(crate) fn assert_same(&self, out: &Path, trace: &Path) {
        let metrics = |out: &Path| timeless_metrics(&out.join("metrics.jsonl"));
        let (expected, found) = (metrics(&self.out()), metrics(out));
        assert_eq!(expected.len(), found.len(), "steps in the metrics");
        for (expected, found) in expected.iter().zip(&found) {
            assert_eq!(expected, found);
        }
        let read = |path: &Path| {
            std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        let same_order = read(&self.path("trace")) == read(trace);
        assert!(same_order, "the order of samples differs");
        let (expected, found) = (newest_checkpoint(&self.out()), newest_checkpoint(out));
        assert_eq!(expected.file_name(), found.file_name());
        for name in ["model", "ema", "optimizer"].map(|name| format!("{name}.safetensors")) {
            let is_same = read(&expected.join(&name)) == read(&found.join(&name));
            assert!(is_same, "{name} differs");
        }
    }
}

/// `nepa pretrain` with the common settings.
fn pretrain(data: &str, out: &str) -> Command {
    let mut command = nepa();
    command.arg("pretrain").arg(tiny_recipe());
    command.args(["--data", data, "--out", out]);
    command.args(SETTINGS.iter().flat_map(|setting| ["--set", setting]));
    command
}

/// A run whose data and output lie on a server.
pub(crate) struct Run {
    name: String,
    env: Vec<(&'static str, String)>,
    data: String,
    out: String,
    settings: Vec<String>,
    folder: TempDir,
}

impl Run {
    /// A run on `server` by way of `endpoint`; its output is `name` in [`OUT`]. The data is put there.
    pub(crate) fn new(server: &Server, endpoint: &str, name: &str) -> Self {
        server.create_bucket(DATA);
        server.create_bucket(OUT);
        server.upload(&Reference::get().data(), DATA, "set");
        Self {
            name: name.to_owned(),
            env: server.env_through(endpoint),
            data: server.url(DATA, "set"),
            out: server.url(OUT, name),
            settings: Vec::new(),
            folder: tempfile::tempdir().unwrap(),
        }
    }

    /// More settings of the recipe.
    pub(crate) fn with(mut self, settings: &[&str]) -> Self {
        let settings = settings.iter().map(|setting| (*setting).to_owned());
        self.settings.extend(settings);
        self
    }

    /// Other variables instead of these.
    pub(crate) fn with_env(mut self, remove: &[&str], set: &[(&'static str, String)]) -> Self {
        self.env.retain(|(name, _)| !remove.contains(name));
        self.env.extend(set.iter().cloned());
        self
    }

    pub(crate) fn out(&self) -> &str {
        &self.out
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `nepa pretrain`, with its live files and whatever else it leaves in a folder of this run's.
    pub(crate) fn start(&self, arguments: &[&str]) -> Started {
        self.start_on("here", &[], arguments)
    }

    /// The same as on a machine `host`, which has disks of its own, behind a command that starts another, such as `unshare`.
    pub(crate) fn start_on(&self, host: &str, behind: &[&str], arguments: &[&str]) -> Started {
        let home = self.path(host);
        let temporary = home.join("tmp");
        std::fs::create_dir_all(&temporary).unwrap();
        let trace = home.join("trace");
        let first_trace = self.path("here").join("trace");
        if !trace.exists() && first_trace.exists() {
            std::fs::copy(first_trace, &trace).unwrap();
        }
        let append = |name: &str| {
            let path = home.join(name);
            let mut options = std::fs::OpenOptions::new();
            (options.create(true).append(true).open(&path).unwrap(), path)
        };
        let ((stdout, said), (stderr, warned)) = (append("stdout"), append("stderr"));
        let program = pretrain(&self.data, &self.out);
        let mut command = match behind {
            [] => program,
            [first, rest @ ..] => {
                let mut command = Command::new(first);
                command.args(rest);
                command.arg(program.get_program()).args(program.get_args());
                command
            }
        };
        let child = command
            .args(self.settings.iter().flat_map(|setting| ["--set", setting]))
            .arg("--trace-samples")
            .arg(&trace)
            .args(arguments)
            .envs(self.env.iter().cloned())
            .env("HOME", &home)
            .env("XDG_STATE_HOME", home.join("state"))
            .env("TMPDIR", temporary)
            .stdin(Stdio::null())
            .stdout(stdout)
            .stderr(stderr)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        Started {
            child,
            is_behind: !behind.is_empty(),
            name: self.name.clone(),
            home,
            stdout: said,
            stderr: warned,
            trace,
        }
    }
}

/// A process of a run; killed with its test.
pub(crate) struct Started {
    child: Child,
    /// Whether the program is the child's child.
    is_behind: bool,
    name: String,
    home: PathBuf,
    stdout: PathBuf,
    stderr: PathBuf,
    trace: PathBuf,
}

impl Started {
    /// Steps done so far, as the trace shows.
    pub(crate) fn steps(&self) -> usize {
        let trace = std::fs::read_to_string(&self.trace).unwrap_or_default();
        trace.matches('\n').count() / 8
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits until that many steps are done.
    ///
    /// # Panics
    ///
    /// If the program ends before.
    #[track_caller]
    pub(crate) fn wait_for_step(&mut self, step: usize) {
        self.wait_until(&format!("step {step}"), |run| run.steps() >= step);
    }

    #[track_caller]
    pub(crate) fn wait_until(&mut self, what: &str, happened: impl Fn(&Self) -> bool) {
        let since = Instant::now();
        while !happened(self) {
            let late = since.elapsed() > Duration::from_mins(3);
            assert!(
                !self.has_ended() && !late,
                "no {what}; after step {}:\n{}",
                self.steps(),
                self.said()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub(crate) fn send(&self, signal: &str) {
        let mut id = self.child.id().to_string();
        if self.is_behind {
            let children = format!("/proc/{id}/task/{id}/children");
            id = std::fs::read_to_string(children).unwrap();
        }
        let id = id.trim();
        let status = Command::new("kill").args([signal, id]).status().unwrap();
        assert!(status.success());
    }

    /// The exit status, waited for.
    ///
    /// # Panics
    ///
    /// If it takes longer than `most`.
    #[track_caller]
    pub(crate) fn ends_within(&mut self, most: Duration) -> ExitStatus {
        let since = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(
                since.elapsed() < most,
                "still running after {most:?}:\n{}",
                self.said()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Ends, and well.
    #[track_caller]
    pub(crate) fn succeeds(&mut self) {
        let status = self.ends_within(Duration::from_mins(5));
        assert!(status.success(), "ended with {status}:\n{}", self.said());
    }

    /// What the run left on the server is what the undisturbed run left.
    #[track_caller]
    pub(crate) fn assert_same(&self, server: &Server) {
        self.assert_same_as(Reference::get(), server);
    }

    #[track_caller]
    pub(crate) fn assert_same_as(&self, reference: &Reference, server: &Server) {
        let folder = self.home.join("downloaded");
        server.download(OUT, &self.name, &folder);
        reference.assert_same(&folder, &self.trace);
    }

    /// All messages so far, without what model, engine and epochs are.
    pub(crate) fn said(&self) -> String {
        let stdout = std::fs::read_to_string(&self.stdout).unwrap_or_default();
        let told = stdout.lines();
        let told = told.map(|line| format!("  {line}\n"));
        let warned = self.warned();
        let warned = warned.lines().map(|line| format!("! {line}\n"));
        let dull = ["model   ", "engine  ", "epoch"];
        told.chain(warned)
            .filter(|line| !dull.iter().any(|dull| line.contains(dull)))
            .collect()
    }

    /// What was said on standard error.
    pub(crate) fn warned(&self) -> String {
        joined(&std::fs::read_to_string(&self.stderr).unwrap_or_default())
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // A stopped process dies of it, too.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
