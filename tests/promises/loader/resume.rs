//! A loader goes on from every state, and refuses the state of another run.
use std::sync::Arc;

use nepa_pipeline::{Dataset, Loader, LoaderConfig, LoaderError, LoaderState};
use nepa_tests::loading::rest_of;

use super::{Kept, all_good, config, open, some_bad};

#[test]
fn every_state_resumes_the_very_same_stream() {
    let folder = some_bad();
    let dataset = open(&folder);
    let output = tempfile::tempdir().unwrap();
    let list = output.path().join("bad_samples.jsonl");
    for (drop_last, lanes) in [(true, 1), (false, 1), (false, 4)] {
        let _ = std::fs::remove_file(&list);
        let config = LoaderConfig {
            drop_last,
            lanes,
            bad_samples_path: Some(list.clone()),
            ..config()
        };
        let mut loader = Loader::new(Arc::clone(&dataset), config.clone(), None).unwrap();
        let mut states = vec![loader.state()];
        let mut batches = Vec::new();
        while let Some(batch) = loader.next_batch().unwrap() {
            batches.push(Kept::of(&batch));
            states.push(loader.state());
        }
        drop(loader);
        let listed = std::fs::read_to_string(&list).unwrap();
        for (i, state) in states.iter().enumerate() {
            let json = serde_json::to_string(state).unwrap();
            assert!(json.len() < 4096, "{json}");
            let state: LoaderState = serde_json::from_str(&json).unwrap();
            // The killed run had gone some batches further than its last state.
            let mut killed =
                Loader::new(Arc::clone(&dataset), config.clone(), Some(&state)).unwrap();
            for _ in 0..2 {
                drop(killed.next_batch().unwrap());
            }
            drop(killed);
            let mut resumed = Loader::new(open(&folder), config.clone(), Some(&state)).unwrap();
            assert_eq!(resumed.state(), state);
            assert!(
                rest_of(&mut resumed) == batches[i..],
                "resumed after {i} batches"
            );
            assert_eq!(&resumed.state(), states.last().unwrap());
            assert_eq!(std::fs::read_to_string(&list).unwrap(), listed);
        }
    }
}

#[test]
fn a_state_of_another_run_is_refused() {
    let folder = all_good();
    let dataset = open(&folder);
    let state = Loader::new(Arc::clone(&dataset), config(), None)
        .unwrap()
        .state();
    let refused = |dataset: &Arc<Dataset>, config: LoaderConfig, state: &LoaderState| {
        let error = Loader::new(Arc::clone(dataset), config, Some(state)).unwrap_err();
        assert!(
            matches!(error, LoaderError::StateMismatch { .. }),
            "{error}"
        );
        error.to_string()
    };
    let text = refused(
        &dataset,
        LoaderConfig {
            seed: 12_345,
            ..config()
        },
        &state,
    );
    assert!(
        text.contains("seed was 7") && text.contains("is 12345 now"),
        "{text}"
    );
    let text = refused(
        &dataset,
        LoaderConfig {
            global_batch: 16,
            ..config()
        },
        &state,
    );
    assert!(
        text.contains("batch size was 8") && text.contains("is 16 now"),
        "{text}"
    );
    let folder = some_bad();
    let other = open(&folder);
    let text = refused(&other, config(), &state);
    assert!(
        text.contains("data set") && text.contains(&state.dataset),
        "{text}"
    );
    assert!(text.contains(&other.fingerprint()), "{text}");
    let text = refused(
        &dataset,
        config(),
        &LoaderState {
            version: 9,
            ..state.clone()
        },
    );
    assert!(
        text.contains("version was 9") && text.contains("is 4 now"),
        "{text}"
    );
    // Each of these is another order.
    let window = LoaderConfig {
        shuffle_window_bytes: config().shuffle_window_bytes + 1,
        ..config()
    };
    let unshuffled = LoaderConfig {
        shuffle: !config().shuffle,
        ..config()
    };
    let whole = LoaderConfig {
        drop_last: !config().drop_last,
        ..config()
    };
    let in_lanes = LoaderConfig {
        lanes: 2,
        ..config()
    };
    for (other, setting) in [
        (window, "shuffle_window_bytes"),
        (in_lanes, "lanes"),
        (unshuffled, "shuffle"),
        (whole, "drop_last"),
    ] {
        let text = refused(&dataset, other, &state);
        assert!(
            text.contains(&format!("cannot resume: {setting} was")),
            "{text}"
        );
    }
}

#[test]
fn a_state_from_before_there_were_lanes_goes_on_in_one() {
    let folder = all_good();
    let dataset = open(&folder);
    let mut loader = Loader::new(Arc::clone(&dataset), config(), None).unwrap();
    for _ in 0..3 {
        drop(loader.next_batch().unwrap());
    }
    let text = serde_json::to_string(&loader.state()).unwrap();
    let old = text.replace("\"version\":4", "\"version\":3");
    let old = old.replace("\"lanes\":1,", "");
    assert_eq!(old.len() + "\"lanes\":1,".len(), text.len());
    let state: LoaderState = serde_json::from_str(&old).unwrap();
    assert_eq!((state.version, state.lanes), (3, 1));
    let mut resumed = Loader::new(Arc::clone(&dataset), config(), Some(&state)).unwrap();
    assert_eq!(
        resumed.state(),
        loader.state(),
        "saved anew, it is of this version"
    );
    assert!(rest_of(&mut resumed) == rest_of(&mut loader));
    let in_lanes = LoaderConfig {
        lanes: 8,
        ..config()
    };
    let error = Loader::new(dataset, in_lanes, Some(&state)).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("cannot resume: lanes was 1") && text.contains("is 8 now"),
        "{text}"
    );
}
