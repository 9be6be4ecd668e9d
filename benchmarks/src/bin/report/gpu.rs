//! The report of a GPU, in parts that fit into a short lease. `scripts/gpu-check` says what each
//! part is, unpacks the programs and calls this.
mod carried;
mod parts;
mod rehearsal;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::ensure;

use crate::child::{command, installed, text_of};
use crate::inputs::{mebibytes, parquet_files};
use crate::machine::{Head, num_cores};
use crate::sheet::Report;
use parts::Section;

/// What is carried to the machine with the GPU.
pub(crate) const FOLDER: &str = "target/gpu-check";
/// Set by `rehearse`: everything is small, and PyTorch computes on the processor.
pub(crate) const REHEARSAL: &str = "NEPA_GPU_CHECK_REHEARSAL";

const MARK: &str = "\
**REHEARSAL ON STAND-INS. NO GPU WAS THERE, AND NO NUMBER BELOW IS A MEASUREMENT.** Libraries by
NVIDIA's names did the work on the processor, on tiny models and crops; this shows that every row is
filled within its time limit, and nothing else.

";

/// A part of what is done for a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    /// Gathers what is carried; the programs lie beside this one
    Build,
    Light,
    Loader,
    Step,
    /// Light, loader and step in turn
    Run,
    Torch,
    Rehearse,
}

/// What came of a part.
pub(crate) enum Done {
    Written(Report),
    Passed(bool),
}

/// What the measurements need to know.
pub(crate) struct Setup {
    programs: PathBuf,
    /// The photos, and ten copies of them under names of their own: 400 photos are one epoch in 40
    /// ms.
    photos: PathBuf,
    rate_photos: PathBuf,
    zoo: Option<PathBuf>,
    cores: usize,
    python: OsString,
    /// Where the caller finds libraries, and where our programs find NVIDIA's.
    given_libraries: OsString,
    libraries: OsString,
    is_rehearsal: bool,
}

/// Does one part, with the programs of this folder.
pub(crate) fn run(part: Part, programs: &Path, report: Option<PathBuf>) -> anyhow::Result<Done> {
    let name = match part {
        Part::Build => return carried::build(programs).map(|()| Done::Passed(true)),
        Part::Rehearse => return rehearsal::rehearse(programs).map(Done::Passed),
        Part::Light => "light",
        Part::Loader => "loader",
        Part::Step => "step",
        Part::Run => "run",
        Part::Torch => "torch",
    };
    ensure!(
        installed("nvidia-smi").is_some() || Path::new("/dev/nvidiactl").exists(),
        "there is no nvidia-smi and no /dev/nvidiactl, so no NVIDIA driver; this is for a machine \
         with a GPU"
    );
    let work = tempfile::tempdir()?;
    let setup = Setup::new(programs, work.path())?;
    let path = report.unwrap_or_else(|| {
        let folder = std::env::var_os("OUT").filter(|folder| !folder.is_empty());
        folder
            .map_or_else(|| PathBuf::from(FOLDER), PathBuf::from)
            .join("report.md")
    });
    let mut report = Report::create(&path, &setup.head(name)?)?;
    match part {
        Part::Torch => {
            let sections = setup.torch(|packages| setup.has(packages));
            measure(&mut report, name, sections, 240)?;
        }
        Part::Light => measure(&mut report, name, setup.light(), 150)?,
        Part::Loader => measure(&mut report, name, setup.loader()?, 150)?,
        Part::Step => measure(&mut report, name, setup.step(), 150)?,
        _ => {
            measure(&mut report, "light", setup.light(), 150)?;
            measure(&mut report, "loader", setup.loader()?, 150)?;
            measure(&mut report, "step", setup.step(), 150)?;
        }
    }
    Ok(Done::Written(report))
}

/// Measures sections whose limits add up to at most so many seconds.
fn measure(
    report: &mut Report,
    name: &str,
    sections: Vec<Section>,
    most_s: u64,
) -> anyhow::Result<()> {
    let started = Instant::now();
    let limits_s = parts::limits_s(&sections);
    for section in sections {
        report.section(section.title, &section.text, section.columns)?;
        if let Some(why) = &section.not_run {
            report.not_run(why)?;
        }
        for measurement in section.measurements {
            report.measure(measurement)?;
        }
    }
    report.end_part(name, started.elapsed(), limits_s, most_s)
}

impl Setup {
    fn new(programs: &Path, work: &Path) -> anyhow::Result<Self> {
        let folder = std::env::current_dir()?.join(FOLDER);
        let photos = folder.join("data");
        let rate_photos = work.join("data");
        fs::create_dir(&rate_photos)?;
        for shard in parquet_files(&photos)? {
            let name = shard.file_name().unwrap_or_default().display();
            for copy in 0..10 {
                let copy = rate_photos.join(format!("{copy}-{name}"));
                if fs::hard_link(&shard, &copy).is_err() {
                    fs::copy(&shard, &copy)?;
                }
            }
        }
        let python = python();
        let given_libraries = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
        let libraries = libraries(&folder, &python, &given_libraries)?;
        let zoo = Some(folder.join("zoo")).filter(|zoo| zoo.is_dir());
        Ok(Self {
            programs: programs.to_owned(),
            photos,
            rate_photos,
            zoo,
            cores: num_cores(),
            python,
            given_libraries,
            libraries,
            is_rehearsal: std::env::var_os(REHEARSAL).is_some_and(|set| !set.is_empty()),
        })
    }

    fn head(&self, part: &str) -> anyhow::Result<String> {
        let asked = "--query-gpu=name,driver_version,memory.total --format=csv,noheader";
        let device = match installed("nvidia-smi") {
            Some(program) => text_of(&mut command(program, asked))
                .unwrap_or_else(|error| format!("nvidia-smi failed: {error:#}")),
            None => "no nvidia-smi".to_owned(),
        };
        let is_marked = self.is_rehearsal || device.contains("stand-in");
        let data = format!(
            "imagenet-shaped, {} MiB of photos in the sizes of ImageNet, from local files; for \
             rates ten times over",
            mebibytes(&parquet_files(&self.photos)?)?
        );
        Ok(Head {
            title: "GPU",
            notice: if is_marked { MARK } else { "" },
            device: Some(&device.replace('\n', "; ")),
            program: &carried::facts(Path::new(FOLDER))?,
            command: &format!("scripts/gpu-check {part}"),
            data: &data,
            ..Head::default()
        }
        .text())
    }

    /// Whether Python has these packages; to import them takes long.
    fn has(&self, packages: &[&str]) -> bool {
        let script = "import importlib.util, sys\n\
                      sys.exit(any(importlib.util.find_spec(p) is None for p in sys.argv[1:]))";
        text_of(
            Command::new(&self.python)
                .args(["-c", script])
                .args(packages),
        )
        .is_ok()
    }
}

/// The Python that is used.
fn python() -> OsString {
    let given = std::env::var_os("PYTHON").filter(|python| !python.is_empty());
    given.unwrap_or_else(|| "python3".into())
}

/// What the caller has, nvJPEG as it is carried, and where Python's PyTorch keeps CUDA's libraries.
fn libraries(
    folder: &Path,
    python: &OsString,
    given: &OsString,
) -> Result<OsString, std::env::JoinPathsError> {
    let script = "import importlib.util, os\n\
                  places = importlib.util.find_spec('torch').submodule_search_locations\n\
                  print(os.path.dirname(places[0]))";
    let mut places: Vec<_> = Some(given)
        .filter(|given| !given.is_empty())
        .map_or_else(Vec::new, |given| std::env::split_paths(given).collect());
    places.push(folder.join("lib"));
    if let Ok(site) = text_of(Command::new(python).args(["-c", script])) {
        let site = Path::new(&site);
        places.extend(["nvidia/cu13/lib", "nvidia/cudnn/lib"].map(|place| site.join(place)));
    }
    std::env::join_paths(places)
}
