//! The rehearsal of `scripts/gpu-check` where there is no GPU: its parts over stand-ins of NVIDIA's
//! libraries, with the same time limits, and what else can be checked. It is no measurement.
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail, ensure};

use super::carried::{MOST_MIB, bash, facts, files_below, gather_data};
use super::{FOLDER, REHEARSAL, python};
use crate::child::{command, installed, stopped, text_of};
use crate::inputs::mebibytes;
use crate::machine::{date, source};
use crate::table;

/// Whatever makes a report of stand-ins look like one of a device.
const FAKE_NVIDIA_SMI: &str = r##"#!/usr/bin/env bash
# Stands in for nvidia-smi; prints nothing that was measured.
case "$1" in
dmon)
    echo "# stand-in, nothing is measured"
    echo "# gpu     sm    mem    enc    dec    jpg    ofa"
    while :; do
        echo "    0      0      0      0      0      0      0"
        sleep 1
    done
    ;;
*) echo "stand-in for a GPU, stand-in driver, stand-in MiB" ;;
esac
"##;

const UNPROVEN: &str = "
Unproven until a GPU has run it: that NVIDIA's libraries and driver do what their documentation and
the stand-ins say; every kernel as it was compiled for a device; all rates; memory plans against
real allocations; behaviour when a device fails.";

/// Rehearses with the programs of this folder and says whether all passed.
pub(crate) fn rehearse(programs: &Path) -> anyhow::Result<bool> {
    let given = std::env::var_os("NEPA_GPU_CHECK_PROGRAMS").is_some_and(|name| !name.is_empty());
    let work = tempfile::tempdir()?;
    let mut rehearsal = Rehearsal {
        programs: programs.to_owned(),
        are_carried: !given,
        standins: standins(programs)?,
        clean: work.path().join("clean"),
        work: work.path().to_owned(),
        failures: 0,
    };
    rehearsal.lay_out()?;
    println!(
        "# Rehearsal of scripts/gpu-check without a GPU, {}\n",
        date()
    );
    let folder = rehearsal.clean.join(FOLDER);
    let carried = mebibytes(&files_below(&folder)?)?;
    println!("Program: {}. Carried: {carried} MiB.\n", facts(&folder)?);
    rehearsal.check("every script and Python file parses", |this| {
        syntax(&this.clean)
    });
    if rehearsal.are_carried {
        rehearsal.check("the folder is below 64 MiB", |_| {
            ensure!(carried < MOST_MIB, "it has {carried} MiB");
            Ok(())
        });
        rehearsal.check_archive();
    } else {
        println!("- not done: what concerns the folder of 'build' (other programs are named)");
    }
    rehearsal.check_refusals();
    rehearsal.check_reports()?;
    Ok(rehearsal.failures == 0)
}

/// Where the stand-ins of NVIDIA's libraries lie, by the program that knows.
fn standins(programs: &Path) -> anyhow::Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into());
    let built = Path::new(&target).join("debug");
    [programs, &built]
        .into_iter()
        .filter_map(|place| text_of(&mut Command::new(place.join("nepa-test-standins"))).ok())
        .map(PathBuf::from)
        .find(|folder| folder.join("libcuda.so.1").is_file())
        .context("there are no stand-ins of NVIDIA's libraries: scripts/gpu-test.sh builds them")
}

struct Rehearsal {
    programs: PathBuf,
    /// They come from the archive that `build` made, and are not named by the caller.
    are_carried: bool,
    standins: PathBuf,
    /// What is carried: the tracked files as they are now, and the folder.
    clean: PathBuf,
    work: PathBuf,
    failures: usize,
}

impl Rehearsal {
    fn lay_out(&self) -> anyhow::Result<()> {
        let folder = self.clean.join(FOLDER);
        fs::create_dir_all(&folder)?;
        let tree = text_of(&mut command("git", "stash create"))?;
        let tree = if tree.is_empty() { "HEAD" } else { &tree };
        let script = "git archive \"$1\" | tar -x -C \"$0\"";
        bash(script, &[&self.clean, Path::new(tree)])?;
        if self.are_carried {
            return bash("cp -r \"$0/.\" \"$1/\"", &[Path::new(FOLDER), &folder]);
        }
        gather_data(&self.programs.join("nepa"), &folder)?;
        let here = std::env::current_dir()?;
        let name = self.programs.strip_prefix(here).unwrap_or(&self.programs);
        let facts = format!("{}, programs of {}\n", source(), name.display());
        Ok(fs::write(folder.join("facts"), facts)?)
    }

    /// One line of the rehearsal's log: what was done, and whether it went as it must.
    fn check(&mut self, what: &str, passed: impl FnOnce(&Self) -> anyhow::Result<()>) {
        match passed(self) {
            Ok(()) => println!("- ok: {what}"),
            Err(error) => {
                println!("- FAILED: {what}");
                let text = format!("{error:#}");
                let lines: Vec<_> = text.lines().collect();
                for line in &lines[lines.len().saturating_sub(20)..] {
                    println!("      {line}");
                }
                self.failures += 1;
            }
        }
    }

    /// `scripts/gpu-check` in the clean tree.
    fn gpu_check(&self, part: &str) -> Command {
        let mut script = command(installed("bash").unwrap_or_default(), "scripts/gpu-check");
        script.arg(part).current_dir(&self.clean);
        let programs = (!self.are_carried).then_some(self.programs.as_os_str());
        script.env("NEPA_GPU_CHECK_PROGRAMS", programs.unwrap_or_default());
        script
    }

    fn check_archive(&mut self) {
        self.check("nvJPEG is carried", |this| {
            let library = this.clean.join(FOLDER).join("lib/libnvjpeg.so.13");
            ensure!(fs::metadata(library)?.len() > 0, "it is empty");
            Ok(())
        });
        let (plain, by_python) = (self.work.join("plain"), self.work.join("python"));
        self.check("programs unpack with zstd", |this| {
            succeeds(this.gpu_check("unpack").arg(&plain)).map(drop)
        });
        self.check(
            "programs unpack with Python where there is no zstd",
            |this| {
                let tools = this.work.join("bin");
                fs::create_dir(&tools)?;
                let python = python();
                for tool in ["dirname", "mkdir", "tar"]
                    .map(OsString::from)
                    .iter()
                    .chain([&python])
                {
                    let place = if Path::new(tool).is_absolute() {
                        PathBuf::from(tool)
                    } else {
                        let tool = tool.to_string_lossy();
                        installed(&tool).with_context(|| tool.into_owned())?
                    };
                    symlink(&place, tools.join(place.file_name().unwrap_or_default()))?;
                }
                succeeds(this.gpu_check("unpack").arg(&by_python).env("PATH", tools)).map(drop)
            },
        );
        self.check("both are the same", |_| {
            succeeds(command("diff", "-r").arg(&plain).arg(&by_python)).map(drop)
        });
    }

    fn check_refusals(&mut self) {
        let folder = self.clean.join(FOLDER);
        let (data, zoo) = (folder.join("data"), folder.join("zoo"));
        let program = |this: &Self, name, arguments| {
            let mut command = command(this.programs.join::<&str>(name), arguments);
            command.current_dir(&this.clean);
            command
        };
        let tiny = |this: &Self| {
            let recipe = "pretrain trainer/recipes/tiny.toml --data";
            let mut command = program(this, "nepa", recipe);
            command.arg(&data).arg("--out").arg(this.work.join("out"));
            command
        };
        self.check("nepa starts without a driver", |this| {
            let said = succeeds(&mut program(this, "nepa", "--version"))?;
            has_words(&said, &["features: cuda"])
        });
        self.check(
            "nepa pretrain --set device=cuda names what is missing",
            |this| refuses(tiny(this).args(["--set", "device=cuda"]), &["libcuda"]),
        );
        self.check("the loader's measurements name what is missing", |this| {
            let mut rate = program(this, "gpu", "rate --engines cpu");
            refuses(rate.arg(&data), &["libcuda"])
        });
        self.check("the step's measurements name what is missing", |this| {
            let rate = "rate --model b14 --steps 1";
            refuses(&mut program(this, "gpu_step", rate), &["libcuda"])
        });
        self.check("run refuses a machine without a driver", |this| {
            refuses(&mut this.gpu_check("run"), &["nvidia-smi"])
        });
        self.check("the photos train a tiny model on the processor", |this| {
            succeeds(&mut tiny(this)).map(drop)
        });
        if zoo.is_dir() {
            self.check(
                "the zoo's bad files are listed, each with its place",
                |this| {
                    let mut profile = program(this, "nepa", "profile --seconds 2");
                    refuses(profile.arg(&zoo), &["row group 0, row", "max_bad_fraction"])
                },
            );
        }
    }

    /// Runs the parts over the stand-ins, as they are run where there is a GPU.
    fn check_reports(&mut self) -> anyhow::Result<()> {
        let tools = self.work.join("fake");
        fs::create_dir(&tools)?;
        let fake = tools.join("nvidia-smi");
        fs::write(&fake, FAKE_NVIDIA_SMI)?;
        fs::set_permissions(&fake, fs::Permissions::from_mode(0o755))?;
        let mut path = tools.into_os_string();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_default());
        let report = |this: &Self, part| this.work.join(format!("report-{part}.md"));
        let on_standins = |this: &Self, part| {
            let mut command = this.gpu_check(part);
            command.arg(report(this, part)).env("PATH", &path);
            // The limits of device memory are those of a large device, as the engines' images alone
            // take 2 GB.
            command
                .env("NEPA_STANDIN", "memory=16384")
                .env(REHEARSAL, "1");
            succeeds(command.env("LD_LIBRARY_PATH", &this.standins)).map(drop)
        };
        self.check("run over the stand-ins", |this| on_standins(this, "run"));
        self.check("torch beside it, on the processor", |this| {
            on_standins(this, "torch")
        });
        let reports = ["run", "torch"].map(|part| report(self, part));
        let read = |path: &PathBuf| fs::read_to_string(path).unwrap_or_default();
        self.check("every row is filled", |_| {
            let text = reports.each_ref().map(read).join("\n");
            let faults = table::faults(&text, 20);
            ensure!(faults.is_empty(), "{}", faults.join("\n"));
            Ok(())
        });
        for path in &reports {
            let name = path.file_name().unwrap_or_default().display();
            let what = format!("{name} says that it is of stand-ins");
            self.check(&what, |_| {
                let text = read(path);
                let head: Vec<_> = text.lines().take(5).collect();
                has_words(&head.join("\n"), &["REHEARSAL ON STAND-INS"])
            });
        }
        println!();
        for path in &reports {
            print!(
                "{}",
                read(path).replacen("# GPU", "# Report of the rehearsal", 1)
            );
        }
        if self.failures != 0 {
            println!("\n## What the processes said on stderr\n\n<details>\n\n```text");
            for path in &reports {
                print!("{}", read(&path.with_extension("log")));
            }
            println!("```\n\n</details>");
        }
        println!("{UNPROVEN}");
        Ok(())
    }
}

/// Whether a command succeeded, and all that it said.
fn said(command: &mut Command) -> anyhow::Result<(bool, String)> {
    ensure!(!stopped(), "stopped by a signal");
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {command:?}"))?;
    let [stdout, stderr] =
        [&output.stdout, &output.stderr].map(|said| String::from_utf8_lossy(said));
    Ok((output.status.success(), format!("{stdout}{stderr}")))
}

fn succeeds(command: &mut Command) -> anyhow::Result<String> {
    let (passed, said) = said(command)?;
    ensure!(passed, "{said}\n{command:?} failed");
    Ok(said)
}

/// The command fails and says all of these words.
fn refuses(command: &mut Command, words: &[&str]) -> anyhow::Result<()> {
    let (passed, said) = said(command)?;
    ensure!(!passed, "{said}\n{command:?} did not fail");
    has_words(&said, words)
}

fn has_words(said: &str, words: &[&str]) -> anyhow::Result<()> {
    match words.iter().find(|word| !said.contains(**word)) {
        Some(word) => bail!("{said}\nno word of '{word}' in this"),
        None => Ok(()),
    }
}

/// Every script and Python file parses, by its first line.
fn syntax(tree: &Path) -> anyhow::Result<()> {
    for folder in ["scripts", "benchmarks", "benchmarks/versus"] {
        for entry in fs::read_dir(tree.join(folder))? {
            let path = entry?.path();
            let bytes = if path.is_file() {
                fs::read(&path)?
            } else {
                Vec::new()
            };
            let first = bytes
                .split(|byte| *byte == b'\n')
                .next()
                .unwrap_or_default();
            let first = String::from_utf8_lossy(first);
            let mut parse = if first.contains("bash") {
                command("bash", "-n")
            } else if first.contains("python") {
                let script = "import ast, sys; ast.parse(open(sys.argv[1]).read())";
                let mut parse = command(python(), "-c");
                parse.arg(script);
                parse
            } else {
                continue;
            };
            succeeds(parse.arg(&path))?;
        }
    }
    Ok(())
}
