//! The log of a Delta table: which files hold its current rows. Which objects of `_delta_log/` are
//! needed, and what they say; whoever calls reads the bytes.
//!
//! After the protocol's specification (delta-io/delta, PROTOCOL.md): JSON commits, classic
//! checkpoints of one or several parts, and V2 checkpoints with sidecars. What decides rows in ways
//! that are not read here (deletion vectors, column mapping, unknown features) is refused by name.
use std::collections::{BTreeMap, BTreeSet};

use arrow::array::{Array, AsArray, RecordBatch, StructArray};
use arrow::datatypes::Int32Type;
use bytes::Bytes;
use object_store::path::Path;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderOptions, ParquetRecordBatchReaderBuilder};
use serde::Deserialize;

/// Why the log of a Delta table cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum DeltaProblem {
    /// The log holds neither commits nor checkpoints.
    #[error("its log is empty")]
    EmptyLog,
    /// A commit is missing between others.
    #[error("version {0} is missing in its log")]
    MissingVersion(u64),
    /// An object of the log holds something else than it should.
    #[error("{object} in its log is damaged ({reason})")]
    Damaged {
        /// Its name.
        object: String,
        /// In what way.
        reason: String,
    },
    /// No file holds rows.
    #[error("it holds no rows at version {0}")]
    NoRows(u64),
    /// Rows are marked as deleted, not removed.
    #[error(
        "{files} of its {of} files have deletion vectors, which are not read: rows in them are deleted and still there"
    )]
    DeletionVectors {
        /// Files that have one.
        files: usize,
        /// Current files.
        of: usize,
    },
    /// The columns have other names in the files.
    #[error("its columns are mapped (delta.columnMapping.mode = {0}), which is not read")]
    ColumnMapping(String),
    /// A feature that may change what its files mean.
    #[error("it needs the reader feature {0}, which is not known here")]
    Feature(String),
    /// A protocol of the future.
    #[error("it needs version {0} of the reader's protocol; known are 1 to 3")]
    Protocol(i32),
    /// A file outside the table's folder, as shallow clones have.
    #[error("its log names {0}, which lies outside its folder")]
    Outside(String),
    /// A current file is not there.
    #[error("its log names {0}, which is not there")]
    MissingFile(String),
}

impl DeltaProblem {
    /// What to do where writing the rows as Parquet would not help.
    pub(super) fn advice(&self) -> Option<&'static str> {
        match self {
            Self::EmptyLog
            | Self::MissingVersion(_)
            | Self::Damaged { .. }
            | Self::MissingFile(_) => Some("copy the whole table again"),
            Self::NoRows(_) => Some("check that it is the table you mean"),
            _ => None,
        }
    }
}

/// The objects of a log that tell the newest version.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct LogPlan {
    /// The newest whole checkpoint.
    pub checkpoint: Vec<Path>,
    /// The commits after it, in order.
    pub commits: Vec<Path>,
    /// The version that they lead to.
    pub version: u64,
}

impl LogPlan {
    /// Chooses among all objects below `log`.
    pub(super) fn new<'a>(
        log: &Path,
        objects: impl IntoIterator<Item = &'a Path>,
    ) -> Result<Self, DeltaProblem> {
        let mut commits = BTreeMap::new();
        // By version, and the number of parts: those that are there.
        let mut checkpoints = BTreeMap::<(u64, u64), Vec<&Path>>::new();
        for path in objects {
            let Some(name) = path.filename() else {
                continue;
            };
            if path.parent().as_ref() != Some(log) {
                continue;
            }
            match parse_name(name) {
                Some(LogName::Commit(version)) => {
                    commits.insert(version, path);
                }
                Some(LogName::Checkpoint { version, of }) => {
                    checkpoints.entry((version, of)).or_default().push(path);
                }
                None => {}
            }
        }
        let checkpoint = checkpoints
            .into_iter()
            .rev()
            .find_map(|((version, of), mut paths)| {
                paths.sort();
                // Of several V2 checkpoints of one version any one will do.
                paths.truncate(if of == 0 { 1 } else { paths.len() });
                (paths.len() as u64 == of.max(1)).then_some((version, paths))
            });
        let (first, checkpoint) = match checkpoint {
            Some((version, paths)) => (version + 1, paths),
            None => (0, Vec::new()),
        };
        let Some(version) = commits
            .keys()
            .copied()
            .chain(first.checked_sub(1).filter(|_| !checkpoint.is_empty()))
            .max()
        else {
            return Err(DeltaProblem::EmptyLog);
        };
        let commits = (first..=version).map(|number| {
            let path = commits.get(&number).copied().cloned();
            path.ok_or(DeltaProblem::MissingVersion(number))
        });
        Ok(Self {
            commits: commits.collect::<Result<_, _>>()?,
            checkpoint: checkpoint.into_iter().cloned().collect(),
            version,
        })
    }
}

#[derive(Debug, PartialEq, Eq)]
enum LogName {
    Commit(u64),
    /// `of` is the number of parts of a classic checkpoint, 0 for a V2 one.
    Checkpoint {
        version: u64,
        of: u64,
    },
}

/// `VERSION.json`, `VERSION.checkpoint.parquet`, `VERSION.checkpoint.PART.OF.parquet`,
/// `VERSION.checkpoint.UUID.parquet` or `.json`.
fn parse_name(name: &str) -> Option<LogName> {
    let parts = name.split('.').collect::<Vec<_>>();
    let version = Some(parts[0])
        .filter(|digits| digits.len() == 20)?
        .parse::<u64>()
        .ok()?;
    let of = match parts[1..] {
        ["json"] => return Some(LogName::Commit(version)),
        ["checkpoint", "parquet"] => 1,
        ["checkpoint", _, of, "parquet"] => of.parse().ok()?,
        ["checkpoint", _, "parquet" | "json"] => 0,
        _ => return None,
    };
    Some(LogName::Checkpoint { version, of })
}

/// One entry of a log, as far as it is read.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Action {
    add: Option<DataFile>,
    remove: Option<DataFile>,
    protocol: Option<Protocol>,
    meta_data: Option<MetaData>,
    sidecar: Option<Sidecar>,
}

/// A file and its deletion vector: together they are a file of the protocol.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "camelCase")]
struct DataFile {
    path: String,
    deletion_vector: Option<DeletionVector>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "camelCase")]
struct DeletionVector {
    storage_type: String,
    path_or_inline_dv: String,
    offset: Option<i32>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Protocol {
    min_reader_version: i32,
    #[serde(default)]
    reader_features: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
struct MetaData {
    #[serde(default)]
    configuration: BTreeMap<String, Option<String>>,
}

#[derive(Debug, Deserialize)]
struct Sidecar {
    path: String,
}

/// Features of the reader's protocol that leave the columns that we read as they are, or that are
/// looked for where they are in use.
const FEATURES: [&str; 10] = [
    "columnMapping",
    "deletionVectors",
    "timestampNtz",
    "typeWidening",
    "typeWidening-preview",
    "v2Checkpoint",
    "vacuumProtocolCheck",
    "variantType",
    "variantType-preview",
    "variantShredding-preview",
];

/// What a log says, entry after entry: the checkpoint first, then the commits in order.
#[derive(Debug, Default)]
pub(super) struct Replay {
    files: BTreeSet<DataFile>,
    protocol: Option<Protocol>,
    mapping: Option<String>,
}

impl Replay {
    /// Takes a commit, or a checkpoint in JSON; gives the sidecars that it names.
    pub(super) fn json(
        &mut self,
        object: &Path,
        bytes: &[u8],
    ) -> Result<Vec<String>, DeltaProblem> {
        let actions = serde_json::Deserializer::from_slice(bytes)
            .into_iter::<Action>()
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| damaged(object, &error))?;
        Ok(self.take(actions))
    }

    /// Takes a checkpoint or sidecar in Parquet; gives the sidecars that it names.
    pub(super) fn parquet(
        &mut self,
        object: &Path,
        bytes: Bytes,
    ) -> Result<Vec<String>, DeltaProblem> {
        let actions = actions_of(bytes).map_err(|error| damaged(object, &error))?;
        Ok(self.take(actions))
    }

    fn take(&mut self, actions: Vec<Action>) -> Vec<String> {
        let mut sidecars = Vec::new();
        // Entries of one object come in any order: a file's new deletion vector may stand before
        // the old one.
        for action in &actions {
            if let Some(file) = &action.remove {
                self.files.remove(file);
            }
        }
        for action in actions {
            self.files.extend(action.add);
            sidecars.extend(action.sidecar.map(|sidecar| sidecar.path));
            self.protocol = action.protocol.or(self.protocol.take());
            if let Some(mut meta) = action.meta_data {
                self.mapping = meta
                    .configuration
                    .remove("delta.columnMapping.mode")
                    .flatten();
            }
        }
        sidecars
    }

    /// The current files, as paths of the store.
    pub(super) fn files(self, table: &Path, version: u64) -> Result<BTreeSet<Path>, DeltaProblem> {
        if let Some(protocol) = self.protocol {
            if !(1..=3).contains(&protocol.min_reader_version) {
                return Err(DeltaProblem::Protocol(protocol.min_reader_version));
            }
            let features = protocol.reader_features.unwrap_or_default();
            if let Some(unknown) = features
                .into_iter()
                .find(|feature| !FEATURES.contains(&feature.as_str()))
            {
                return Err(DeltaProblem::Feature(unknown));
            }
        }
        if let Some(mode) = self.mapping.filter(|mode| mode != "none") {
            return Err(DeltaProblem::ColumnMapping(mode));
        }
        if self.files.is_empty() {
            return Err(DeltaProblem::NoRows(version));
        }
        let with_vector = |file: &&DataFile| file.deletion_vector.is_some();
        let files = self.files.iter().filter(with_vector).count();
        if files > 0 {
            let of = self.files.len();
            return Err(DeltaProblem::DeletionVectors { files, of });
        }
        let inside = |file: DataFile| {
            // An absolute path is one with a scheme or a first slash; the names of columns and
            // values are percent-encoded.
            let outside = file.path.contains("://") || file.path.starts_with('/');
            let decoded = Path::from_url_path(&file.path).ok().filter(|_| !outside);
            decoded
                .and_then(|path| Path::parse(format!("{table}/{path}")).ok())
                .ok_or(DeltaProblem::Outside(file.path))
        };
        self.files.into_iter().map(inside).collect()
    }
}

fn damaged(object: &Path, error: &dyn std::error::Error) -> DeltaProblem {
    DeltaProblem::Damaged {
        object: object.filename().unwrap_or_default().to_owned(),
        reason: error.to_string(),
    }
}

/// The entries of a checkpoint or sidecar. Its removed files are of the past.
fn actions_of(bytes: Bytes) -> Result<Vec<Action>, parquet::errors::ParquetError> {
    // The types are those of Parquet itself, whatever the writer noted beside.
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let builder = ParquetRecordBatchReaderBuilder::try_new_with_options(bytes, options)?;
    let columns = [
        "add.path",
        "add.deletionVector",
        "protocol.minReaderVersion",
        "protocol.readerFeatures",
        "metaData.configuration",
        "sidecar.path",
    ];
    let mask = ProjectionMask::columns(builder.parquet_schema(), columns);
    let mut actions = Vec::new();
    for batch in builder.with_projection(mask).build()? {
        let batch = batch?;
        let entries = Entries::of(&batch);
        actions.extend((0..batch.num_rows()).map(|row| entries.action(row)));
    }
    Ok(actions)
}

/// The columns of a checkpoint; a column that is absent or of another type holds nothing.
struct Entries<'a> {
    add: Option<&'a StructArray>,
    protocol: Option<&'a StructArray>,
    meta_data: Option<&'a StructArray>,
    sidecar: Option<&'a StructArray>,
}

impl<'a> Entries<'a> {
    fn of(batch: &'a RecordBatch) -> Self {
        let column = |name| batch.column_by_name(name)?.as_struct_opt();
        Self {
            add: column("add"),
            protocol: column("protocol"),
            meta_data: column("metaData"),
            sidecar: column("sidecar"),
        }
    }

    fn action(&self, row: usize) -> Action {
        let there = |column: Option<&'a StructArray>| column.filter(|column| column.is_valid(row));
        Action {
            add: there(self.add).and_then(|add| {
                Some(DataFile {
                    path: text(add, "path", row)?,
                    deletion_vector: child(add, "deletionVector")
                        .filter(|vector| vector.is_valid(row))
                        .and_then(|vector| {
                            Some(DeletionVector {
                                storage_type: text(vector, "storageType", row)?,
                                path_or_inline_dv: text(vector, "pathOrInlineDv", row)?,
                                offset: number(vector, "offset", row),
                            })
                        }),
                })
            }),
            remove: None,
            protocol: there(self.protocol).and_then(|protocol| {
                Some(Protocol {
                    min_reader_version: number(protocol, "minReaderVersion", row)?,
                    reader_features: protocol
                        .column_by_name("readerFeatures")
                        .and_then(|column| column.as_list_opt::<i32>())
                        .filter(|lists| lists.is_valid(row))
                        .map(|lists| {
                            let names = lists.value(row);
                            let names = names.as_string_opt::<i32>();
                            let names = names.into_iter().flatten().flatten();
                            names.map(str::to_owned).collect()
                        }),
                })
            }),
            meta_data: there(self.meta_data).map(|meta| MetaData {
                configuration: meta
                    .column_by_name("configuration")
                    .and_then(|column| column.as_map_opt())
                    .filter(|maps| maps.is_valid(row))
                    .map(|maps| {
                        let pairs = maps.value(row);
                        let texts = |column: usize| {
                            let column = pairs.column(column).as_string_opt::<i32>();
                            let column = column.into_iter().flatten();
                            column.map(|text| text.map(str::to_owned))
                        };
                        texts(0)
                            .zip(texts(1))
                            .filter_map(|(key, value)| Some((key?, value)))
                            .collect()
                    })
                    .unwrap_or_default(),
            }),
            sidecar: there(self.sidecar).and_then(|sidecar| {
                Some(Sidecar {
                    path: text(sidecar, "path", row)?,
                })
            }),
        }
    }
}

fn child<'a>(parent: &'a StructArray, name: &str) -> Option<&'a StructArray> {
    parent.column_by_name(name)?.as_struct_opt()
}

fn text(parent: &StructArray, name: &str, row: usize) -> Option<String> {
    let column = parent.column_by_name(name)?.as_string_opt::<i32>()?;
    column.is_valid(row).then(|| column.value(row).to_owned())
}

fn number(parent: &StructArray, name: &str, row: usize) -> Option<i32> {
    let column = parent
        .column_by_name(name)?
        .as_primitive_opt::<Int32Type>()?;
    column.is_valid(row).then(|| column.value(row))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> Path {
        Path::parse(text).unwrap()
    }

    fn plan(names: &[&str]) -> Result<LogPlan, DeltaProblem> {
        let objects = names
            .iter()
            .map(|name| path(&format!("t/_delta_log/{name}")));
        LogPlan::new(&path("t/_delta_log"), &objects.collect::<Vec<_>>())
    }

    fn names(paths: &[Path]) -> Vec<&str> {
        paths.iter().filter_map(Path::filename).collect()
    }

    #[test]
    fn the_newest_whole_checkpoint_and_the_commits_after_it_are_read() {
        let commit = |version: u64| format!("{version:020}.json");
        let found = plan(&[
            &commit(0),
            &commit(1),
            &commit(2),
            &commit(3),
            "00000000000000000001.checkpoint.parquet",
            "00000000000000000002.checkpoint.0000000001.0000000002.parquet",
            "00000000000000000000.00000000000000000003.compacted.json",
            "00000000000000000001.crc",
            "_last_checkpoint",
            "_sidecars/00000000000000000009.json",
        ])
        .unwrap();
        assert_eq!(
            names(&found.checkpoint),
            ["00000000000000000001.checkpoint.parquet"]
        );
        assert_eq!(names(&found.commits), [commit(2), commit(3)]);
        assert_eq!(found.version, 3);
        let found = plan(&[
            "00000000000000000002.checkpoint.0000000002.0000000002.parquet",
            "00000000000000000002.checkpoint.0000000001.0000000002.parquet",
        ])
        .unwrap();
        assert_eq!((found.checkpoint.len(), found.version), (2, 2));
        let v2 = "00000000000000000005.checkpoint.80a083e8-7026-4e79-81be-64bd76c43a11.json";
        assert_eq!(names(&plan(&[v2]).unwrap().checkpoint), [v2]);
        assert!(matches!(
            plan(&[&commit(0), &commit(2)]),
            Err(DeltaProblem::MissingVersion(1))
        ));
        assert!(matches!(
            plan(&[&commit(4)]),
            Err(DeltaProblem::MissingVersion(0))
        ));
        assert!(matches!(plan(&["x"]), Err(DeltaProblem::EmptyLog)));
    }

    /// The files of a table with such commits.
    fn replay(commits: &[&str]) -> Result<Vec<String>, DeltaProblem> {
        let mut replay = Replay::default();
        for commit in commits {
            replay.json(&path("c.json"), commit.as_bytes())?;
        }
        let files = replay.files(&path("a/t"), 7)?;
        Ok(files.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn removed_files_are_gone_and_names_are_decoded() {
        let files = replay(&[
            "{\"protocol\":{\"minReaderVersion\":1}}\n{\"add\":{\"path\":\"a.parquet\",\"stats\":\"{}\"}}",
            "{\"add\":{\"path\":\"label=a%20b/c%2525.parquet\"}}\n{\"remove\":{\"path\":\"a.parquet\"}}\n{\"txn\":{}}",
        ]);
        assert_eq!(files.unwrap(), ["a/t/label=a b/c%25.parquet"]);
    }

    #[test]
    fn what_would_change_rows_is_refused_by_name() {
        let add = "{\"add\":{\"path\":\"a.parquet\"}}";
        let vector = "{\"add\":{\"path\":\"a.parquet\",\"deletionVector\":\
                      {\"storageType\":\"u\",\"pathOrInlineDv\":\"x\",\"offset\":1}}}\n\
                      {\"remove\":{\"path\":\"a.parquet\"}}";
        let said = |commits: &[&str]| replay(commits).unwrap_err().to_string();
        assert!(said(&[add, vector]).contains("1 of its 1 files have deletion vectors"));
        for (commit, part) in [
            (
                "{\"metaData\":{\"configuration\":{\"delta.columnMapping.mode\":\"name\"}}}",
                "columnMapping.mode = name",
            ),
            (
                "{\"protocol\":{\"minReaderVersion\":3,\"readerFeatures\":[\"v2Checkpoint\",\"catalogManaged\"]}}",
                "reader feature catalogManaged",
            ),
            ("{\"protocol\":{\"minReaderVersion\":4}}", "version 4"),
            ("{\"add\":{\"path\":\"s3://b/x.parquet\"}}", "outside"),
            ("{\"add\":{\"path\":\"../x.parquet\"}}", "outside"),
            (
                "{\"remove\":{\"path\":\"a.parquet\"}}",
                "no rows at version 7",
            ),
            ("{\"add\":", "c.json in its log is damaged"),
        ] {
            let said = said(&[add, commit]);
            assert!(said.contains(part), "{commit}: {said}");
        }
    }
}
