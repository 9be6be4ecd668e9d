//! What is carried to the machine with the GPU: programs, photos, odd JPEGs, nvJPEG, and which
//! commit it is of. `scripts/gpu-check build` makes it, after the programs.
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use super::{FOLDER, python};
use crate::child::{command, text_of};
use crate::inputs::{cache, mebibytes, parquet_files, test_data};
use crate::machine::source;

/// Most that can be carried.
pub(crate) const MOST_MIB: u64 = 64;

/// Gathers all of it anew.
pub(crate) fn build(programs: &Path) -> anyhow::Result<()> {
    let folder = Path::new(FOLDER);
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder)?;
    // Together: the programs share most of their code, and a window that spans them all finds that.
    bash(
        "tar -C \"$0\" -cf - nepa gpu gpu_step report | zstd -q -19 --long=27 -o \"$1\"",
        &[programs, &folder.join("programs.tar.zst")],
    )?;
    gather_data(&programs.join("nepa"), folder)?;
    gather_nvjpeg(&folder.join("lib"))?;
    let capability = std::env::var("CUDA_COMPUTE_CAP").unwrap_or_else(|_| "90".to_owned());
    let facts = format!("{}, CUDA 13.0, compute capability {capability}\n", source());
    fs::write(folder.join("facts"), facts)?;
    let carried = mebibytes(&files_below(folder)?)?;
    ensure!(
        carried < MOST_MIB,
        "{FOLDER} has {carried} MiB; at most {MOST_MIB} MiB can be carried"
    );
    println!(
        "{FOLDER}: {carried} MiB. Carry the source tree with it to a machine with a GPU and run: \
         scripts/gpu-check light"
    );
    Ok(())
}

/// Of which commit the programs are, and how they were made.
pub(crate) fn facts(folder: &Path) -> anyhow::Result<String> {
    let path = folder.join("facts");
    let facts = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(facts.trim().to_owned())
}

/// Photos, and a part of each kind of the JPEG zoo, packed as they are, bad ones too.
pub(crate) fn gather_data(nepa: &Path, folder: &Path) -> anyhow::Result<()> {
    let data = test_data().context(
        "set NEPA_TEST_DATA to a folder with imagenet-shaped/*.parquet; photos of real sizes are \
         what is measured",
    )?;
    let photos = folder.join("data");
    fs::create_dir_all(&photos)?;
    for shard in parquet_files(&data.join("imagenet-shaped"))? {
        fs::copy(&shard, photos.join(shard.file_name().unwrap_or_default()))?;
    }
    let zoo = data.join("jpeg-zoo/zoo.tar.zst");
    if !zoo.is_file() {
        return Ok(());
    }
    let scratch = tempfile::tempdir()?;
    let whole = scratch.path().join("whole");
    fs::create_dir(&whole)?;
    bash("zstd -dc \"$0\" | tar -x -C \"$1\"", &[&zoo, &whole])?;
    let part = scratch.path().join("part");
    for kind in ["valid", "corrupt", "fuzz_decodes"] {
        let is_of_kind = |file: &PathBuf| {
            let mut folders = file.ancestors().skip(1);
            folders.any(|folder| folder.ends_with(kind))
        };
        let of_kind = files_below(&whole)?.into_iter().filter(is_of_kind);
        // Small files only.
        let small = of_kind
            .filter(|file| fs::metadata(file).is_ok_and(|found| found.len() <= 39 << 10))
            .take(150);
        let place = part.join(kind);
        fs::create_dir_all(&place)?;
        for file in small {
            fs::copy(&file, place.join(file.file_name().unwrap_or_default()))?;
        }
    }
    let mut pack = command(nepa, "pack");
    text_of(pack.arg(&part).arg(folder.join("zoo"))).map(drop)
}

/// nvJPEG, which PyTorch does not bring along, of the version that scripts/cuda-toolkit.sh names.
fn gather_nvjpeg(folder: &Path) -> anyhow::Result<()> {
    const NAME: &str = "libnvjpeg.so.13";
    fs::create_dir_all(folder)?;
    let own = cache()?.join("nepa-cuda-13.0/lib").join(NAME);
    if own.is_file() {
        fs::copy(own, folder.join(NAME))?;
        return Ok(());
    }
    let script = fs::read_to_string("scripts/cuda-toolkit.sh")?;
    let words = script.split(|character: char| character.is_whitespace() || character == '"');
    let wheel = words
        .into_iter()
        .find(|word| word.starts_with("nvidia-nvjpeg=="));
    let wheel = wheel.context("scripts/cuda-toolkit.sh names no nvidia-nvjpeg")?;
    let scratch = tempfile::tempdir()?;
    let pip = "-m pip install --quiet --disable-pip-version-check --no-deps --no-compile --target";
    let mut pip = command(python(), pip);
    pip.arg(scratch.path());
    text_of(pip.arg(wheel))?;
    fs::copy(
        scratch.path().join("nvidia/cu13/lib").join(NAME),
        folder.join(NAME),
    )?;
    Ok(())
}

/// A script with a pipe, which fails if any of its programs does.
pub(crate) fn bash(script: &str, arguments: &[&Path]) -> anyhow::Result<()> {
    let mut bash = command("bash", "-euo pipefail -c");
    text_of(bash.arg(script).args(arguments)).map(drop)
}

/// All files in a folder and in those below, in order.
pub(crate) fn files_below(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            files.extend(files_below(&entry.path())?);
        } else {
            files.push(entry.path());
        }
    }
    files.sort();
    Ok(files)
}
