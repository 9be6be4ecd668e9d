//! How the files of a data set are read: which of their columns, and as what. What follows from a
//! file's schema alone is found once and shared, however many files have it.
use std::sync::{Arc, Mutex, PoisonError};

use arrow::datatypes::{DataType, FieldRef, Fields, Schema, SchemaRef};
use nepa_schemas::{
    ColumnMapping, ColumnPath, FolderKey, ImageForm, METADATA_KEY, SchemaError, SchemaOptions,
};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use parquet::errors::ParquetError;
use parquet::file::metadata::{FileMetaData, KeyValue, ParquetMetaData};
use percent_encoding::percent_decode_str;

use super::reduced::{Columns, Selection, features};

/// Schemas and readings that are remembered: the shards of a data set are alike as a rule.
const REMEMBERED: usize = 16;

/// What a file says of its columns.
#[derive(Debug)]
pub(super) struct FileSchema {
    /// Its footer without row groups, and without metadata that is not read, as that may differ
    /// from file to file (pandas writes numbers of rows).
    pub(super) footer: ParquetMetaData,
    /// The types of the columns.
    pub(super) columns: Columns,
    /// All metadata of the first file, so that the same need not be read again.
    pairs: Option<Vec<KeyValue>>,
}

impl FileSchema {
    /// That of a file.
    pub(super) fn of(file: &ParquetMetaData) -> Self {
        let about = file.file_metadata();
        let columns = Columns::of(file);
        let read = columns.schema.metadata().get(METADATA_KEY);
        let read = read.map(|text| vec![KeyValue::new(METADATA_KEY.to_owned(), text.clone())]);
        let pairs = about.key_value_metadata().cloned();
        let about = FileMetaData::new(
            about.version(),
            0,
            about.created_by().map(str::to_owned),
            read,
            about.schema_descr_ptr(),
            None,
        );
        Self {
            footer: ParquetMetaData::new(about, Vec::new()),
            columns,
            pairs,
        }
    }

    fn is_of(&self, file: &ParquetMetaData) -> bool {
        let (own, other) = (self.footer.file_metadata(), file.file_metadata());
        let says_the_same = || {
            self.pairs.as_ref() == other.key_value_metadata()
                || self.columns.schema.metadata().get(METADATA_KEY) == features(file).as_ref()
        };
        own.schema_descr() == other.schema_descr() && says_the_same()
    }
}

/// How the files of one schema are read, in the same folders.
#[derive(Debug)]
pub(super) struct Reading {
    /// All columns of the files.
    pub(super) file: Arc<FileSchema>,
    /// Those that the footers at hand have.
    stored: Arc<FileSchema>,
    folders: Vec<FolderKey>,
    /// Which column holds what.
    pub(super) mapping: Arc<ColumnMapping>,
    selection: Selection,
    /// The types that they are read as.
    types: SchemaRef,
    /// The Parquet columns that are read.
    pub(super) projection: ProjectionMask,
    /// Those of the images' bytes, but for columns that hold none.
    pub(super) images: Vec<usize>,
}

/// Why files of a schema cannot be read.
#[derive(Debug)]
pub(super) enum Unreadable {
    /// They hold no images, or not as asked.
    Schema(SchemaError),
    /// Parquet does not allow it.
    Parquet(ParquetError),
    /// The footers at hand do not have this column.
    Missing(ColumnPath),
}

impl Reading {
    fn new(
        file: &Arc<FileSchema>,
        stored: &Arc<FileSchema>,
        folders: Vec<FolderKey>,
        options: &SchemaOptions,
    ) -> Result<Self, Unreadable> {
        let schema = &file.columns.schema;
        let mapping = ColumnMapping::resolve_in_folders(schema, options, &folders);
        let mapping = mapping.map_err(Unreadable::Schema)?;
        let paths = mapping.leaf_paths();
        if !Arc::ptr_eq(file, stored) {
            let missing = |path: &&ColumnPath| stored.columns.leaf(path).is_none();
            if let Some(path) = paths.iter().find(missing) {
                return Err(Unreadable::Missing(path.clone()));
            }
        }
        let parquet = stored.footer.file_metadata().schema_descr();
        let text = mapping.text_columns();
        let selection = Selection::new(parquet, &stored.columns, &paths, &text);
        let selection = selection.map_err(Unreadable::Parquet)?;
        let reduced = selection.of(&stored.footer).map_err(Unreadable::Parquet)?;
        let leaves = selection.leaves.iter().copied();
        let projection = ProjectionMask::leaves(reduced.file_metadata().schema_descr(), leaves);
        let read = with_views(Arc::new(reduced), &mapping.extra).map_err(Unreadable::Parquet)?;
        Ok(Self {
            file: Arc::clone(file),
            stored: Arc::clone(stored),
            folders,
            images: image_leaves(&mapping, &selection.leaves),
            mapping: Arc::new(mapping),
            types: Arc::clone(read.schema()),
            selection,
            projection,
        })
    }

    /// The columns of the mapping's leaf paths, in their order.
    pub(super) fn leaves(&self) -> &[usize] {
        &self.selection.leaves
    }

    /// What of the footer of such a file is needed.
    pub(super) fn metadata(
        &self,
        file: &ParquetMetaData,
    ) -> Result<ArrowReaderMetadata, ParquetError> {
        let options = ArrowReaderOptions::new().with_schema(Arc::clone(&self.types));
        ArrowReaderMetadata::try_new(Arc::new(self.selection.of(file)?), options)
    }
}

/// The schemas and readings of one data set, as they are met.
#[derive(Debug)]
pub(super) struct Readings {
    options: SchemaOptions,
    known: Mutex<Known>,
}

/// The newest last.
#[derive(Debug, Default)]
struct Known {
    files: Vec<Arc<FileSchema>>,
    readings: Vec<Arc<Reading>>,
}

impl Readings {
    /// For a data set that is read with these choices.
    pub(super) fn new(options: &SchemaOptions) -> Self {
        Self {
            options: options.clone(),
            known: Mutex::default(),
        }
    }

    /// The schema of a file.
    pub(super) fn schema(&self, file: &ParquetMetaData) -> Arc<FileSchema> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let met = known.files.iter().rev().find(|met| met.is_of(file));
        if let Some(met) = met {
            return Arc::clone(met);
        }
        let new = Arc::new(FileSchema::of(file));
        remember(&mut known.files, &new);
        new
    }

    /// How files of a schema are read whose footers at hand have the columns of `stored`, the file
    /// at `path` among them.
    pub(super) fn reading(
        &self,
        file: &Arc<FileSchema>,
        stored: &Arc<FileSchema>,
        path: &object_store::path::Path,
    ) -> Result<Arc<Reading>, Unreadable> {
        let folders = folder_keys(path);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let met = known.readings.iter().rev().find(|met| {
            Arc::ptr_eq(&met.file, file)
                && Arc::ptr_eq(&met.stored, stored)
                && met.folders == folders
        });
        if let Some(met) = met {
            return Ok(Arc::clone(met));
        }
        let new = Arc::new(Reading::new(file, stored, folders, &self.options)?);
        remember(&mut known.readings, &new);
        Ok(new)
    }
}

fn remember<T>(known: &mut Vec<Arc<T>>, new: &Arc<T>) {
    if known.len() >= REMEMBERED {
        known.remove(0);
    }
    known.push(Arc::clone(new));
}

/// The folders `key=value` that an object lies in, as Hive and Spark write them: with odd
/// characters as `%` and two digits.
fn folder_keys(path: &object_store::path::Path) -> Vec<FolderKey> {
    let parts: Vec<_> = path.as_ref().split('/').collect();
    let folders = parts.split_last().map_or(&[][..], |(_, folders)| folders);
    let decoded = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let key = |folder: &&str| {
        let (key, value) = folder.split_once('=')?;
        (!key.is_empty()).then(|| FolderKey {
            key: decoded(key),
            value: decoded(value),
        })
    };
    folders.iter().filter_map(key).collect()
}

/// A footer whose binary and string columns are read as views into their pages: a value that a
/// dictionary repeats takes 16 bytes a row, nothing is copied, and no offset has to address more
/// than one page.
pub(super) fn with_views(
    file: Arc<ParquetMetaData>,
    as_they_are: &[FieldRef],
) -> Result<ArrowReaderMetadata, ParquetError> {
    fn as_views(fields: &Fields) -> Fields {
        let view = |field: &FieldRef| match field.data_type() {
            DataType::Binary | DataType::LargeBinary => with_type(field, DataType::BinaryView),
            DataType::Utf8 | DataType::LargeUtf8 => with_type(field, DataType::Utf8View),
            DataType::Struct(fields) => with_type(field, DataType::Struct(as_views(fields))),
            DataType::List(element) => {
                let element = as_views(&Fields::from(vec![Arc::clone(element)]));
                with_type(field, DataType::List(Arc::clone(&element[0])))
            }
            _ => Arc::clone(field),
        };
        fields.iter().map(view).collect()
    }
    fn with_type(field: &FieldRef, data_type: DataType) -> FieldRef {
        Arc::new(field.as_ref().clone().with_data_type(data_type))
    }
    let read = ArrowReaderMetadata::try_new(Arc::clone(&file), ArrowReaderOptions::new())?;
    let schema = read.schema();
    let is_extra = |name: &str| as_they_are.iter().any(|extra| extra.name() == name);
    let views = as_views(schema.fields());
    let fields = schema.fields().iter().zip(&views);
    let fields = fields.map(|(field, view)| if is_extra(field.name()) { field } else { view });
    let fields = fields.cloned().collect::<Vec<_>>();
    let views = Schema::new_with_metadata(fields, schema.metadata().clone());
    ArrowReaderMetadata::try_new(file, ArrowReaderOptions::new().with_schema(Arc::new(views)))
}

/// The Parquet columns of the images' bytes, but for those that hold none in this shard.
fn image_leaves(mapping: &ColumnMapping, leaves: &[usize]) -> Vec<usize> {
    let mut paths = leaves.iter();
    let mut found = Vec::new();
    for column in &mapping.images {
        let bytes = paths.next();
        if let ImageForm::HuggingFace { has_path: true } = column.form {
            paths.next();
        }
        found.extend(bytes.filter(|_| !column.empty));
    }
    found
}
