//! What of a file's footer is needed: the types of all columns, to choose from, then the columns
//! that are read and nothing of the others.
//!
//! Types are those of the Parquet schema itself. The Arrow schema that many writers put beside it
//! is a hint, which other programs cannot always read; nothing that is read here needs it. Called
//! by `reading`, once for all files of one schema.
use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Fields, Schema};
use nepa_schemas::{ColumnPath, METADATA_KEY, UNSUPPORTED};
use parquet::arrow::{ProjectionMask, parquet_to_arrow_schema_by_columns};
use parquet::basic::{ConvertedType, Repetition, Type as PhysicalType};
use parquet::errors::{ParquetError, Result};
use parquet::file::metadata::{
    ColumnChunkMetaData, FileMetaData, ParquetMetaData, RowGroupMetaData,
};
use parquet::schema::types::{SchemaDescriptor, Type, TypePtr};

/// The columns of a file.
#[derive(Debug)]
pub(super) struct Columns {
    /// Their types, with what is read of the file's key-value metadata. A column of a type that
    /// cannot be read says so in its metadata.
    pub schema: Schema,
    /// The Parquet columns behind each field of the schema, in the order of the values in that
    /// field.
    leaves: Vec<Vec<usize>>,
}

impl Columns {
    /// Reads the types.
    pub(super) fn of(file: &ParquetMetaData) -> Self {
        let parquet = file.file_metadata().schema_descr();
        let roots = parquet.root_schema().get_fields();
        let (mut fields, mut leaves) = (Vec::<FieldRef>::new(), vec![Vec::new(); roots.len()]);
        for leaf in 0..parquet.num_columns() {
            leaves[parquet.get_column_root_idx(leaf)].push(leaf);
        }
        let all = types(parquet, ProjectionMask::all());
        if let Some(all) = all.ok().filter(|all| all.len() == roots.len()) {
            fields.extend(all.iter().cloned());
        } else {
            for (root, leaves) in roots.iter().zip(&mut leaves) {
                fields.push(field(root, leaves));
            }
        }
        let metadata = features(file).map(|text| (METADATA_KEY.to_owned(), text));
        let metadata = metadata.into_iter().collect::<HashMap<_, _>>();
        Self {
            schema: Schema::new_with_metadata(fields, metadata),
            leaves,
        }
    }

    /// The Parquet column of a path, which was found in the schema.
    pub(super) fn leaf(&self, path: &ColumnPath) -> Option<usize> {
        let (root, names) = path.parts().split_first()?;
        let root = self.schema.index_of(root).ok()?;
        let mut paths = Vec::new();
        leaf_paths(self.schema.field(root).data_type(), &[], &mut paths);
        let place = paths.iter().position(|path| {
            let names = names.iter().map(String::as_str);
            path.iter().copied().eq(names)
        })?;
        self.leaves[root].get(place).copied()
    }
}

/// The columns that are read of files with one schema.
#[derive(Debug)]
pub(super) struct Selection {
    /// The schema without all others.
    schema: Arc<SchemaDescriptor>,
    /// Their places in the file, in its order.
    kept: Vec<usize>,
    /// For each path that was asked for, its place among them.
    pub(super) leaves: Vec<usize>,
}

impl Selection {
    /// The columns of `paths`. Those of `as_binary` lose their annotation as text.
    pub(super) fn new(
        parquet: &SchemaDescriptor,
        columns: &Columns,
        paths: &[ColumnPath],
        as_binary: &[ColumnPath],
    ) -> Result<Self> {
        let lost =
            || ParquetError::General("a column of the schema has no place in the file".into());
        let find = |path: &ColumnPath| columns.leaf(path).ok_or_else(lost);
        let wanted = paths.iter().map(find).collect::<Result<Vec<_>>>()?;
        let mut pruning = Pruning {
            wanted: &wanted,
            as_binary: as_binary.iter().map(find).collect::<Result<Vec<_>>>()?,
            next_leaf: 0,
            kept: Vec::new(),
        };
        let root = parquet.root_schema();
        let fields = root.get_fields().iter();
        let fields = fields.filter_map(|field| pruning.prune(field).transpose());
        let root = Type::group_type_builder(root.name())
            .with_fields(fields.collect::<Result<_>>()?)
            .build()?;
        let kept = pruning.kept;
        let place = |leaf: &usize| kept.binary_search(leaf).map_err(|_| lost());
        let leaves = wanted.iter().map(place).collect::<Result<Vec<_>>>()?;
        Ok(Self {
            schema: Arc::new(SchemaDescriptor::new(Arc::new(root))),
            kept,
            leaves,
        })
    }

    /// What of a footer they are read by.
    ///
    /// A place of a dictionary that cannot be one (some writers leave a zero) is taken out, so that
    /// the ranges of bytes are right wherever they are computed.
    pub(super) fn of(&self, file: &ParquetMetaData) -> Result<ParquetMetaData> {
        let row_groups = file.row_groups().iter().map(|row_group| {
            let chunks = self.kept.iter();
            let chunks = chunks.map(|&leaf| without_false_dictionary(row_group.column(leaf)));
            RowGroupMetaData::builder(Arc::clone(&self.schema))
                .set_num_rows(row_group.num_rows())
                .set_total_byte_size(row_group.total_byte_size())
                .set_column_metadata(chunks.collect::<Result<_>>()?)
                .build()
        });
        let row_groups = row_groups.collect::<Result<Vec<_>>>()?;
        let about = file.file_metadata();
        let about = FileMetaData::new(
            about.version(),
            about.num_rows(),
            about.created_by().map(str::to_owned),
            None,
            Arc::clone(&self.schema),
            None,
        );
        Ok(ParquetMetaData::new(about, row_groups))
    }
}

/// The schema reduced to what is read.
struct Pruning<'a> {
    wanted: &'a [usize],
    as_binary: Vec<usize>,
    next_leaf: usize,
    /// In the order of the file.
    kept: Vec<usize>,
}

impl Pruning<'_> {
    /// The node without what is not read. Lists and maps stay whole: their shape says what they
    /// are.
    fn prune(&mut self, node: &TypePtr) -> Result<Option<TypePtr>> {
        let first = self.next_leaf;
        if node.is_primitive() {
            self.next_leaf += 1;
            if !self.wanted.contains(&first) {
                return Ok(None);
            }
            self.kept.push(first);
            if self.as_binary.contains(&first) {
                return binary(node).map(Some);
            }
            return Ok(Some(Arc::clone(node)));
        }
        let about = node.get_basic_info();
        let before = self.kept.len();
        let mut fields = Vec::new();
        for field in node.get_fields() {
            fields.extend(self.prune(field)?);
        }
        if fields.is_empty() {
            return Ok(None);
        }
        let repeated = about.has_repetition() && about.repetition() == Repetition::REPEATED;
        if repeated || about.converted_type() != ConvertedType::NONE {
            self.kept.truncate(before);
            self.kept.extend(first..self.next_leaf);
            return Ok(Some(Arc::clone(node)));
        }
        let mut group = Type::group_type_builder(node.name()).with_fields(fields);
        if about.has_repetition() {
            group = group.with_repetition(about.repetition());
        }
        Ok(Some(Arc::new(group.build()?)))
    }
}

/// The same column without an annotation.
fn binary(node: &TypePtr) -> Result<TypePtr> {
    let column = Type::primitive_type_builder(node.name(), PhysicalType::BYTE_ARRAY)
        .with_repetition(node.get_basic_info().repetition());
    Ok(Arc::new(column.build()?))
}

fn without_false_dictionary(chunk: &ColumnChunkMetaData) -> Result<ColumnChunkMetaData> {
    let possible = 1..chunk.data_page_offset();
    match chunk.dictionary_page_offset() {
        Some(offset) if !possible.contains(&offset) => chunk
            .clone()
            .into_builder()
            .set_dictionary_page_offset(None)
            .build(),
        _ => Ok(chunk.clone()),
    }
}

/// The types of some columns.
fn types(parquet: &SchemaDescriptor, mask: ProjectionMask) -> Result<Fields> {
    Ok(parquet_to_arrow_schema_by_columns(parquet, mask, None)?.fields)
}

/// The type of one top-level column, without those of its `leaves` that cannot be read, which are
/// taken out.
fn field(root: &TypePtr, leaves: &mut Vec<usize>) -> FieldRef {
    let name = root.name();
    let first = leaves.first().copied().unwrap_or(0);
    // Without all others, as types are read together, and another one may be at fault.
    let of = |leaves: &[usize]| {
        let nothing = || ParquetError::General("it has no fields".into());
        let mut pruning = Pruning {
            wanted: leaves,
            as_binary: Vec::new(),
            next_leaf: first,
            kept: Vec::new(),
        };
        let root = pruning.prune(root)?.ok_or_else(nothing)?;
        let alone = Type::group_type_builder("schema").with_fields(vec![root]);
        let alone = SchemaDescriptor::new(Arc::new(alone.build()?));
        let fields = types(&alone, ProjectionMask::all())?;
        fields.first().cloned().ok_or_else(nothing)
    };
    let why = match of(leaves) {
        Ok(field) => return field,
        Err(why) => why,
    };
    leaves.retain(|&leaf| of(&[leaf]).is_ok());
    of(leaves).unwrap_or_else(|_| {
        let text = why.to_string();
        let text = text.rsplit(": ").next().unwrap_or_default().to_owned();
        let metadata = HashMap::from([(UNSUPPORTED.to_owned(), text)]);
        Arc::new(Field::new(name, DataType::Null, true).with_metadata(metadata))
    })
}

/// The paths of the values in a type, lists adding no name, in the order of the Parquet columns.
fn leaf_paths<'a>(data_type: &'a DataType, above: &[&'a str], paths: &mut Vec<Vec<&'a str>>) {
    match data_type {
        DataType::Struct(fields) => {
            for field in fields {
                let below: Vec<_> = above
                    .iter()
                    .copied()
                    .chain([field.name().as_str()])
                    .collect();
                leaf_paths(field.data_type(), &below, paths);
            }
        }
        DataType::List(element) | DataType::Map(element, _) => {
            leaf_paths(element.data_type(), above, paths);
        }
        _ => paths.push(above.to_vec()),
    }
}

/// What Hugging Face's entry of the file's metadata says, or that of the Arrow schema beside it, as
/// far as that can be read. Of the other entries nothing is read.
pub(super) fn features(file: &ParquetMetaData) -> Option<String> {
    let about = file.file_metadata();
    let (parquet, pairs) = (about.schema_descr(), about.key_value_metadata());
    let nothing = ProjectionMask::none(parquet.num_columns());
    if let Ok(schema) = parquet_to_arrow_schema_by_columns(parquet, nothing, pairs) {
        return schema.metadata.get(METADATA_KEY).cloned();
    }
    let mut pairs = pairs.into_iter().flatten();
    pairs.find(|pair| pair.key == METADATA_KEY)?.value.clone()
}
