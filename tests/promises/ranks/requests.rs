//! What all ranks of a run together ask a store for.
use nepa_tests::data;
use nepa_tests::program::{RunFolder, succeed, write_photo_shards};
use nepa_tests::ranks::{assert_same_run, launched};
use nepa_tests::s3::{LoggedRequest, S3Server};

const SHARDS: u32 = 4;
/// Of two images each.
const ROW_GROUPS: u32 = 40;
const EPOCHS: u64 = 3;

/// Requests, and the bytes that they asked for.
#[derive(Debug, Default, Clone, Copy)]
struct Asked {
    requests: u64,
    bytes: u64,
}

impl Asked {
    fn add(&mut self, request: &LoggedRequest) {
        let range = request.range.as_ref();
        self.requests += 1;
        self.bytes += range.map_or(0, |range| range.end - range.start);
    }
}

/// In lanes, all ranks together fetch the data about once an epoch, however many they are.
#[test]
fn all_ranks_of_a_run_together_fetch_little_more_than_the_data() {
    let (place, server) = (RunFolder::new(), S3Server::start());
    write_photo_shards(&place.path("shards"), SHARDS, ROW_GROUPS, 2);
    let loaded = server.load_folder("data", "", &place.path("shards"));
    assert_eq!(loaded.expect("the shards") as u32, SHARDS);
    let dataset = data::open("s3://data/", &data::io(&server)).unwrap();
    let parts = dataset.shards().iter().flat_map(|shard| &shard.parts);
    let data: u64 = parts.map(|part| part.fetch_bytes).sum();
    let steps = EPOCHS * dataset.num_samples() / 16;
    let settings = [
        "train.batch=16".to_owned(),
        "train.micro_batch=1".to_owned(),
        "data.lanes=8".to_owned(),
        "io.coalesce_gap_bytes=0".to_owned(),
        format!("train.steps={steps}"),
        format!("data.shuffle_window_bytes={}", data / 8),
    ];
    let settings = settings.each_ref().map(String::as_str);
    println!("ranks  data: requests  bytes / (epochs x data)  footers and lists: requests");
    for count in [1, 2, 4, 8] {
        server.take_log();
        let out = count.to_string();
        let mut run = place.pretrain("s3://data/", &out, &settings);
        run.envs(server.env());
        succeed(&mut launched(run, count));
        let (mut of_data, mut others) = (Asked::default(), Asked::default());
        for request in server.take_log() {
            // A footer ends where its shard ends, and no data does.
            let size = server.get("data", &request.key).map(|bytes| bytes.len());
            let end = request.range.as_ref().map(|range| range.end as usize);
            match end {
                Some(end) if size != Some(end) => of_data.add(&request),
                _ => others.add(&request),
            }
        }
        let share = of_data.bytes as f64 / (EPOCHS * data) as f64;
        let (of_data, others) = (of_data.requests, others.requests);
        println!("{count:5} {of_data:15} {share:24.3} {others:28}");
        // Without the labels, which are in `data`; of so little data, all of the next epoch may have
        // been read ahead of the last step.
        let most = 1.1 * (EPOCHS + 1) as f64 / EPOCHS as f64;
        assert!((0.9..most).contains(&share), "{count} ranks: {share:.3}");
        if count > 1 {
            assert_same_run(&place.path("1"), &place.path(&out));
        }
    }
}
