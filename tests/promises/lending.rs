//! Batches in device memory that are used on other streams than the consumer's. On the fake device, which finds work in the wrong
//! order.
use std::sync::Arc;

use nepa_pipeline::{Accelerator, Batch, Dataset, DeviceBackend, Loader, PixelLayout, full_text};
use nepa_tests::fake_device::{FakeHandle, FakeStream};

use crate::device::{FakeBackend, LAYOUT, crops, loader, read};
use crate::loader::{Kept, all, all_good, config, open, some_bad};

/// Reads three epochs on a stream that the loader does not know, and on one that waits for that;
/// gives back what the reads found and what was out of order. `lend` goes before them.
fn read_elsewhere(
    dataset: &Arc<Dataset>,
    lend: impl Fn(&FakeHandle, &Loader<FakeBackend>, &Batch<FakeBackend>, FakeStream),
) -> (Vec<Kept>, Vec<String>, usize) {
    let device = FakeHandle::new();
    let mut loader = loader(&device, dataset, config(), None, crops());
    let [first, second] = [(); 2].map(|()| device.stream().unwrap());
    let event = device.event().unwrap();
    let mut batches = Vec::new();
    while let Some(batch) = loader.next_batch().unwrap() {
        lend(&device, &loader, &batch, first);
        let found = read(&device, first, &batch);
        device.record(&event, &first).unwrap();
        device.wait(&second, &event).unwrap();
        assert!(read(&device, second, &batch) == found);
        batches.push(found);
    }
    (batches, device.0.violations(), device.0.marks_of_all())
}

/// What a program does that orders the first stream by itself.
fn wait_by_hand(device: &FakeHandle, loader: &Loader<FakeBackend>, stream: FakeStream) {
    let event = device.event().unwrap();
    device.record(&event, loader.backend().consumer()).unwrap();
    device.wait(&stream, &event).unwrap();
}

#[test]
fn a_batch_that_is_lent_is_in_order_on_every_stream() {
    let folder = some_bad();
    let dataset = open(&folder);
    let expected = all(&dataset, config());
    let (lent_to, violations, marks) = read_elsewhere(&dataset, |_, _, batch, stream| {
        batch.lend_to(&stream).unwrap();
    });
    assert_eq!(violations, Vec::<String>::new());
    assert!(lent_to == expected && marks == expected.len());
    let (lent, violations, _) = read_elsewhere(&dataset, |device, loader, batch, stream| {
        batch.lend();
        wait_by_hand(device, loader, stream);
    });
    assert_eq!(violations, Vec::<String>::new());
    assert!(lent == expected);
}

#[test]
fn a_batch_that_is_not_lent_is_out_of_order_elsewhere() {
    let folder = all_good();
    let dataset = open(&folder);
    let found_in = |violations: &[String], what: &str| {
        let mut starts = violations.iter().map(|line| line.starts_with(what));
        assert!(starts.any(|starts| starts), "{what}: {violations:?}");
    };
    let (_, violations, marks) = read_elsewhere(&dataset, |_, _, _, _| ());
    found_in(&violations, "the consumer's read");
    assert_eq!(marks, 0, "the consumer's own stream needs one event alone");
    // Read in order, and overwritten before that is done.
    let (_, violations, _) = read_elsewhere(&dataset, |device, loader, _, stream| {
        wait_by_hand(device, loader, stream);
    });
    found_in(&violations, "writing a slot");
    let mut reads = violations.iter();
    assert!(!reads.any(|line| line.starts_with("the consumer's read")));
}

/// The kernels cut a slot into whole patches.
#[test]
fn patches_that_do_not_fit_are_refused() {
    let folder = all_good();
    let dataset = open(&folder);
    for patch_size in [3, 0] {
        let device = FakeHandle::new();
        let layout = PixelLayout {
            patch_size: Some(patch_size),
            ..LAYOUT
        };
        let consumer = device.stream().unwrap();
        let backend = DeviceBackend::new(Arc::clone(&device), crops(), layout, consumer);
        let dataset = Arc::clone(&dataset);
        let opened = Loader::with_backend(dataset, config(), None, Arc::new(backend));
        let refusal = full_text(&opened.expect_err("8 pixels are no whole patches"));
        let says = format!("patches of {patch_size} x {patch_size}");
        assert!(refusal.contains(&says), "{refusal}");
    }
}
