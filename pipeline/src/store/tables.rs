//! Tables among the folders: Delta, Iceberg, Hudi. What such a table holds is what its log says,
//! not what lies in its folder: overwritten and deleted rows lie there as well.
use std::collections::BTreeMap;
use std::fmt;

use object_store::path::Path;

use super::delta::DeltaProblem;
use super::listing::Listing;

/// The folder of a Delta table's log.
pub(super) const DELTA_LOG: &str = "_delta_log";
/// The folder of an Iceberg table's metadata.
pub(super) const ICEBERG_METADATA: &str = "metadata";

/// Whose table it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableFormat {
    /// Delta Lake.
    Delta,
    /// Apache Iceberg.
    Iceberg,
    /// Apache Hudi.
    Hudi,
}

impl fmt::Display for TableFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Delta => "a Delta table",
            Self::Iceberg => "an Iceberg table",
            Self::Hudi => "a Hudi table",
        })
    }
}

impl TableFormat {
    /// How its current rows become plain Parquet.
    fn export(self) -> &'static str {
        match self {
            Self::Delta => "in DuckDB: COPY (FROM delta_scan('TABLE')) TO 'rows.parquet'",
            Self::Iceberg => "in DuckDB: COPY (FROM iceberg_scan('TABLE')) TO 'rows.parquet'",
            Self::Hudi => {
                "in Spark: spark.read.format(\"hudi\").load(\"TABLE\").write.parquet(\"rows\")"
            }
        }
    }
}

/// Why a table is not read.
#[derive(Debug, thiserror::Error)]
pub enum TableProblem {
    /// Tables of this format are not read.
    #[error(
        "which is not read: its folder also holds rows that were overwritten or deleted; write its current rows to \
         Parquet and read those ({})",
        .0.export()
    )]
    Unread(TableFormat),
    /// A glob goes past the table's log.
    #[error(
        "and a glob in its folder would also read rows that were overwritten or deleted: name the folder, \
         of which the current files are read"
    )]
    Glob,
    /// The log cannot be followed.
    #[error("which cannot be read: {0}; {advice}", advice = advice(.0))]
    Delta(DeltaProblem),
}

fn advice(problem: &DeltaProblem) -> String {
    let export = || {
        let how = TableFormat::Delta.export();
        format!("write its current rows to Parquet and read those ({how})")
    };
    problem.advice().map_or_else(export, str::to_owned)
}

/// The tables that a listing shows, by the folder that each lies in.
pub(super) fn tables(prefix: &Path, listing: &Listing) -> BTreeMap<Path, TableFormat> {
    let mut found = BTreeMap::new();
    let paths = listing.entries.iter().map(|entry| &entry.path);
    for path in paths.chain(&listing.folders) {
        if !path.prefix_matches(prefix) {
            continue;
        }
        let mut end = prefix.as_ref().len();
        let mut parts = path.as_ref()[end..]
            .trim_start_matches('/')
            .split('/')
            .peekable();
        while let Some(part) = parts.next() {
            let format = if part == DELTA_LOG {
                Some(TableFormat::Delta)
            } else if part.starts_with(".hoodie") {
                Some(TableFormat::Hudi)
            } else if part == ICEBERG_METADATA
                && parts.peek().is_some_and(|name| is_iceberg_metadata(name))
            {
                Some(TableFormat::Iceberg)
            } else {
                None
            };
            if let Some(format) = format {
                let root = Path::parse(&path.as_ref()[..end]).expect("the beginning of a path");
                found.insert(root, format);
                break;
            }
            end += part.len() + usize::from(end > 0);
        }
    }
    // Each partition of a Hudi table has a marker, too.
    let hudi = |(path, format): (&Path, &TableFormat)| {
        (*format == TableFormat::Hudi).then(|| path.clone())
    };
    let hudi = found.iter().filter_map(hudi).collect::<Vec<_>>();
    found.retain(|path, format| {
        let inside = |outer: &Path| outer != path && path.prefix_matches(outer);
        *format != TableFormat::Hudi || !hudi.iter().any(inside)
    });
    found
}

/// The table that a path lies in: the innermost, if it lies in several.
pub(super) fn table_of<'a, T>(
    tables: &'a BTreeMap<Path, T>,
    path: &Path,
) -> Option<(&'a Path, &'a T)> {
    let inside = tables.iter().filter(|(root, _)| path.prefix_matches(root));
    inside.max_by_key(|(root, _)| root.as_ref().len())
}

/// Whether a file of this name in `metadata/` is a version of an Iceberg table: `v3.metadata.json`,
/// `00003-<uuid>.metadata.json`, also compressed, and the hint at the newest.
pub(super) fn is_iceberg_metadata(name: &str) -> bool {
    let stem = name
        .strip_suffix(".metadata.json")
        .or_else(|| name.strip_suffix(".metadata.json.gz"))
        .map(|stem| stem.strip_suffix(".gz").unwrap_or(stem));
    name == "version-hint.text"
        || stem.is_some_and(|stem| {
            let number = stem.strip_prefix('v').unwrap_or(stem);
            number.starts_with(|c: char| c.is_ascii_digit())
        })
}

#[cfg(test)]
mod tests {
    use super::super::listing::Entry;
    use super::*;

    #[test]
    fn tables_are_known_by_their_metadata() {
        let entry = |path: &str| Entry {
            path: Path::parse(path).unwrap(),
            size: 1,
        };
        let listing = Listing {
            entries: [
                "p/a/_delta_log/00000000000000000000.json",
                "p/a/x.parquet",
                "p/b/metadata/v1.metadata.json",
                "p/c/metadata/notes.metadata.json",
                "p/d/.hoodie/hoodie.properties",
                "p/e/day=1/.hoodie_partition_metadata",
                "p/d/day=1/.hoodie_partition_metadata",
                "p/f/metadata/00001-aa.gz.metadata.json",
            ]
            .map(entry)
            .to_vec(),
            folders: vec![Path::parse("p/g/_delta_log").unwrap()],
            ..Listing::default()
        };
        let found = tables(&Path::parse("p").unwrap(), &listing);
        let shown = found.iter().map(|(path, format)| (path.as_ref(), *format));
        assert_eq!(
            shown.collect::<Vec<_>>(),
            [
                ("p/a", TableFormat::Delta),
                ("p/b", TableFormat::Iceberg),
                ("p/d", TableFormat::Hudi),
                ("p/e/day=1", TableFormat::Hudi),
                ("p/f", TableFormat::Iceberg),
                ("p/g", TableFormat::Delta),
            ]
        );
        let inner = table_of(&found, &Path::parse("p/a/x.parquet").unwrap());
        assert_eq!(inner.unwrap().0.as_ref(), "p/a");
        assert!(table_of(&found, &Path::parse("p/aa/x.parquet").unwrap()).is_none());
    }
}
