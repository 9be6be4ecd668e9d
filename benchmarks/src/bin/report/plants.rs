//! The report of what `nepa profile` says of bottlenecks that were planted. `make profile-plants`
//! writes it.
use std::path::Path;

use crate::child::command;
use crate::inputs::Shards;
use crate::machine::{Head, program};
use crate::sheet::{Measurement, Report};

const PLANTS: &str = "\
The first table: what `--simulate` computes from a profile, and a real run of the loader. The
second: `--consumer step` with a recipe, and the training run itself.

The third: each plant is profiled, three times, the repeats one after the other; medians. `right`:
limit, cause and note are as planted. After each profile the loader runs without the profiler, as it
is and with the change really made, in turn, twice for three seconds each (twelve over a slow line):
`really` and `changed`. The rate after the change over the rate before it, foretold and measured;
within 15 %, or in the interval that the profile gave. The server is in the planting program, on the
same cores.
";

/// Runs all plants and writes the report.
pub(crate) fn write(programs: &Path, path: &Path) -> anyhow::Result<Report> {
    let work = tempfile::tempdir()?;
    let photos = Shards::photos(programs, work.path())?;
    let head = Head {
        title: "What nepa profile says of planted bottlenecks",
        program: &program(programs),
        command: "report plants",
        data: &photos.title,
        ..Head::default()
    };
    let mut report = Report::create(path, &head.text())?;
    report.section("Plants and scenarios", PLANTS, "")?;
    let mut plants = command(programs.join("plants"), "");
    plants.arg(&photos.folder);
    report.measure(Measurement::new(3600, "plants", plants))?;
    Ok(report)
}
