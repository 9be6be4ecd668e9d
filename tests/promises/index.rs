//! An index opens a data set as its listing and its footers do, with neither; it is refused where
//! the data has changed since. Several ranks list and read footers once.
use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use nepa_pipeline::{
    Dataset, DatasetConfig, DatasetError, IndexProblem, IoConfig, IoRuntime, PartId,
};
use nepa_schemas::SchemaOptions;
use nepa_tests::data::{self, at, read_all};
use nepa_tests::photos::photo;
use nepa_tests::program::{ServedRun, assert_says, joined, nepa, succeed, text};
use nepa_tests::ranks::launched;
use nepa_tests::s3::{LoggedRequest, S3Server};
use nepa_tests::shards::{LabelledRow, hugging_face_shard, labelled_shard_in_pages};

/// Requests that opening a data set of small objects makes: listings, and reads to an object's end.
fn of_opening(server: &S3Server, log: &[LoggedRequest]) -> (usize, usize) {
    let data = || log.iter().filter(|request| request.bucket == "data");
    let listings = data().filter(|request| request.key.is_empty()).count();
    let size = |key: &str| server.get("data", key).map(|bytes| bytes.len() as u64);
    let to_the_end = |request: &&LoggedRequest| {
        let end = request.range.as_ref().map(|range| range.end);
        end.is_some() && end == size(&request.key)
    };
    (listings, data().filter(to_the_end).count())
}

/// `data.index` and its value.
fn index_at(path: &std::path::Path) -> String {
    format!("data.index=\"{}\"", path.display())
}

/// What a run says that must fail.
#[track_caller]
fn refused(run: &ServedRun, data: &str, out: &str, settings: &[&str]) -> String {
    let output = run.pretrain(data, out, settings).output().unwrap();
    assert!(!output.status.success());
    joined(&text(&output))
}

#[test]
fn a_run_by_an_index_lists_nothing_and_reads_no_footer() {
    let run = ServedRun::new();
    let index = run.path("scenes.index");
    let mut inspect = nepa();
    inspect.args(["inspect", "s3://data", "--samples", "0", "--index"]);
    let said = text(&succeed(inspect.arg(&index).envs(run.server.env())));
    assert_says(&said, &["index        ", "scenes.index ("]);

    let settings = ["train.steps=4"];
    run.server.take_log();
    succeed(&mut run.pretrain("s3://data", "plain", &settings));
    let (listings, footers) = of_opening(&run.server, &run.server.take_log());
    assert_eq!(footers, 3);
    assert!(listings > 0);
    let by_index = index_at(&index);
    let by_index = [settings[0], by_index.as_str()];
    succeed(&mut run.pretrain("s3://data", "indexed", &by_index));
    let log = run.server.take_log();
    assert_eq!(of_opening(&run.server, &log), (0, 0), "{log:#?}");
    assert!(log.iter().all(|request| request.if_match.is_some()));
    assert_eq!(run.metrics("plain"), run.metrics("indexed"));

    // A shard that was replaced is named, with what to do.
    run.server
        .put("data", "train-1.parquet", hugging_face_shard(7, 2, 10));
    assert_says(
        &refused(&run, "s3://data", "stale", &by_index),
        &["train-1.parquet", "was replaced", "write the index again"],
    );
    run.server.remove("data", "train-1.parquet");
    assert_says(
        &refused(&run, "s3://data", "gone", &by_index),
        &["train-1.parquet", "does not exist", "write the index again"],
    );
}

#[test]
fn an_index_of_other_data_or_none_is_refused_by_name() {
    let run = ServedRun::new();
    let index = run.path("scenes.index");
    let mut inspect = nepa();
    inspect.args(["inspect", "s3://data", "--samples", "0", "--index"]);
    succeed(inspect.arg(&index).envs(run.server.env()));
    let whole = std::fs::read(&index).unwrap();
    let fails = |data: &str| refused(&run, data, "out", &[index_at(&index).as_str()]);
    assert_says(
        &fails("s3://data/train-*.parquet"),
        &["scenes.index", "it is of s3://data", "train-*.parquet"],
    );
    std::fs::write(&index, &whole[..whole.len() / 2]).unwrap();
    assert_says(&fails("s3://data"), &["scenes.index", "cut off"]);
    std::fs::remove_file(&index).unwrap();
    assert_says(&fails("s3://data"), &["scenes.index", "does not exist"]);

    let mut inspect = nepa();
    inspect.args(["inspect", "s3://data", "--index", "a.parquet"]);
    let output = inspect.envs(run.server.env()).output().unwrap();
    assert_says(&joined(&text(&output)), &["would be read as a shard"]);
}

/// What one process lists and reads, four do; which they are is told by the ends of what is read.
#[test]
fn ranks_list_and_read_footers_once() {
    let run = ServedRun::new();
    let settings = ["train.micro_batch=2", "train.steps=4", "data.lanes=4"];
    let mut asked = Vec::new();
    for count in [1, 4] {
        let out = count.to_string();
        let mut command = launched(run.pretrain("s3://data", &out, &settings), count);
        run.server.take_log();
        succeed(command.envs(run.server.env()));
        asked.push(of_opening(&run.server, &run.server.take_log()));
    }
    assert_eq!(asked[0].1, 3);
    assert_eq!(asked[0], asked[1]);
}

const ROWS: u32 = 200;
const PART_BYTES: u64 = 16 << 10;

/// Two shards of one row group each, in pages.
fn server() -> S3Server {
    let server = S3Server::start();
    for shard in 0..2 {
        let row = |row| (Some(photo(shard * ROWS + row)), None, i64::from(row));
        let rows: Vec<LabelledRow> = (0..ROWS).map(row).collect();
        let bytes = labelled_shard_in_pages([rows], 7, true);
        server.put("data", &format!("{shard}.parquet"), bytes);
    }
    server
}

fn io(server: &S3Server, part_bytes: u64) -> IoConfig {
    IoConfig {
        part_bytes,
        ..data::io(server)
    }
}

fn handed(indexes: &[Bytes], config: &DatasetConfig, io: &IoConfig) -> Arc<Dataset> {
    let runtime = IoRuntime::new(2).unwrap();
    Dataset::open_handed(indexes, config, io, &runtime).unwrap()
}

/// The images and labels of each part.
fn contents(dataset: &Arc<Dataset>) -> BTreeMap<PartId, Vec<(Vec<u8>, String)>> {
    let rows = |batch: nepa_schemas::ShardBatch| {
        let row = |row| {
            let image = batch.image(row).unwrap().to_vec();
            (image, format!("{:?}", batch.label(row)))
        };
        (0..batch.num_rows()).map(row).collect()
    };
    let all = read_all(dataset).unwrap().into_iter();
    all.map(|(id, batch)| (id, rows(batch))).collect()
}

fn assert_same(one: &Arc<Dataset>, other: &Arc<Dataset>) {
    assert_eq!(one.fingerprint(), other.fingerprint());
    assert_eq!(one.columns(), other.columns());
    for (one, other) in one.shards().iter().zip(other.shards()) {
        assert_eq!((&one.url, &one.e_tag), (&other.url, &other.e_tag));
        assert_eq!(one.parts, other.parts);
        assert_eq!(one.mapping, other.mapping);
    }
    assert!(contents(one) == contents(other));
}

#[test]
fn parts_of_large_row_groups_are_those_of_the_footers() {
    let server = server();
    let config = at("s3://data");
    let own = io(&server, PART_BYTES);
    let dataset = data::open_as(&config, &own).unwrap();
    assert!(dataset.shards()[0].parts.len() > 5);
    let indexes = dataset.indexes().unwrap();
    server.take_log();
    let again = handed(&indexes, &config, &own);
    assert!(server.take_log().is_empty());
    assert_same(&dataset, &again);
    // An index of an index is the same.
    assert_eq!(again.indexes().unwrap(), indexes);

    // Written where row groups were read whole, it lacks page indexes: these alone are asked for.
    let whole = data::open_as(&config, &io(&server, u64::MAX)).unwrap();
    assert_eq!(whole.shards()[0].parts.len(), 1);
    let indexes = whole.indexes().unwrap();
    server.take_log();
    let again = handed(&indexes, &config, &own);
    let log = server.take_log();
    assert_eq!(log.len(), 2, "{log:#?}");
    assert!(log.iter().all(|request| request.if_match.is_some()));
    assert_same(&dataset, &again);
}

#[test]
fn fewer_columns_and_mixtures_are_those_of_the_footers() {
    let server = server();
    let own = io(&server, PART_BYTES);
    let indexes = data::open("s3://data", &own).unwrap().indexes().unwrap();
    let unlabelled = DatasetConfig {
        schema: SchemaOptions {
            label_column: Some(String::new()),
            ..SchemaOptions::default()
        },
        ..at("s3://data")
    };
    let dataset = data::open_as(&unlabelled, &own).unwrap();
    assert_same(&dataset, &handed(&indexes, &unlabelled, &own));
    let runtime = IoRuntime::new(1).unwrap();
    let fewer = dataset.indexes().unwrap();
    let error = Dataset::open_handed(&fewer, &at("s3://data"), &own, &runtime).unwrap_err();
    let DatasetError::Index { source, .. } = &error else {
        panic!("{error:?}");
    };
    assert!(matches!(source, IndexProblem::Column { column } if column == "label"));

    let mixture = data::mixture([("s3://data/0.parquet", 1.0), ("s3://data/1.parquet", 3.0)]);
    let dataset = data::open_as(&mixture, &own).unwrap();
    let indexes = dataset.indexes().unwrap();
    server.take_log();
    let again = handed(&indexes, &mixture, &own);
    assert!(server.take_log().is_empty());
    assert_same(&dataset, &again);
    let one = DatasetConfig {
        index: Some("all.index".to_owned()),
        ..mixture
    };
    let error = data::open_as(&one, &own).unwrap_err().to_string();
    assert!(error.contains("an `index` of its own"), "{error}");
}
