//! Batches that are copied by work on streams of the program's own, which runs late, and dropped before it has: as a library does that
//! takes them by DLPack.
#![expect(
    unsafe_code,
    reason = "copies that nothing waits for until the end, as a library enqueues them"
)]
use std::sync::Arc;

use nepa_pipeline::{
    Accelerator, Batch, Loader, LoaderConfig, cuda::CudaBackend, cuda::CudaStreamRef,
    cuda::EngineConfig, cuda::cudarc::driver::result,
};
use nepa_tests::standins;

use crate::loader::{Epoch, LAYOUT, config, engines, loader_of, read};

/// Pieces of work that leave time to write to the memory again.
const MUCH: usize = 60;

/// Two images a batch, so that memory is used many times; who decodes follows from the images.
fn opened(decode_threads: usize) -> Loader<CudaBackend> {
    let config = LoaderConfig {
        global_batch: 2,
        ..config(decode_threads)
    };
    let engines = EngineConfig {
        fixed: true,
        ..engines(false, true)
    };
    loader_of(config, LAYOUT, engines)
}

/// All batches, each copied on one of two streams, after so much other work on it; `lend` goes before all of that, which is waited for at
/// the end.
fn copied(
    loader: &mut Loader<CudaBackend>,
    work_before: usize,
    lend: impl Fn(&Loader<CudaBackend>, &Batch<CudaBackend>, &CudaStreamRef),
) -> Epoch {
    let context = Arc::clone(loader.backend().consumer().0.context());
    let streams = [(); 2].map(|()| CudaStreamRef(context.new_stream().unwrap()));
    let mut copies = Vec::new();
    let mut first_byte = [0u8];
    while let Some(batch) = loader.next_batch().unwrap() {
        let stream = &streams[copies.len() % 2];
        lend(loader, &batch, stream);
        let mut bytes = vec![0u8; batch.len() * LAYOUT.slot_bytes()];
        let start = batch.memory().of_device().start();
        // SAFETY: both ends are as long as each copy; the host's memory stays where it is until the streams have been waited for, and the
        // device's until the loader is dropped.
        unsafe {
            for _ in 0..work_before {
                result::memcpy_dtoh_async(&mut first_byte, start, stream.0.cu_stream()).unwrap();
            }
            result::memcpy_dtoh_async(&mut bytes, start, stream.0.cu_stream()).unwrap();
        }
        copies.push((batch.samples().to_vec(), bytes));
    }
    for stream in &streams {
        stream.0.synchronize().unwrap();
    }
    let mut epoch = Epoch::default();
    for (samples, bytes) in &copies {
        epoch.add(samples, bytes);
    }
    epoch
}

fn lend_to(_: &Loader<CudaBackend>, batch: &Batch<CudaBackend>, stream: &CudaStreamRef) {
    batch.lend_to(stream).unwrap();
}

/// Orders a stream after the pixels, as a program may by itself.
fn wait_by_hand(loader: &Loader<CudaBackend>, stream: &CudaStreamRef) {
    let (accelerator, consumer) = (loader.backend().accelerator(), loader.backend().consumer());
    let event = accelerator.event().unwrap();
    accelerator.record(&event, consumer).unwrap();
    accelerator.wait(stream, &event).unwrap();
}

#[test]
fn a_batch_that_is_lent_is_neither_read_early_nor_overwritten() {
    let standins = standins::load(1);
    let expected = read(&mut opened(1));
    for seed in 0..30 {
        standins.restart(seed);
        if seed % 3 != 0 {
            standins.set("schedule", "late");
        }
        let mut loader = opened(1 + (seed % 3) as usize);
        let work_before = if seed % 4 < 2 { 0 } else { MUCH };
        let found = if seed % 2 == 0 {
            copied(&mut loader, work_before, lend_to)
        } else {
            copied(&mut loader, work_before, |loader, batch, stream| {
                batch.lend();
                wait_by_hand(loader, stream);
            })
        };
        assert!(found == expected, "seed {seed}");
        assert!(standins.count("cuCtxRecordEvent") > 0);
    }
}

/// A driver that cannot mark the end of all work: then the thread that drops a batch waits.
#[test]
fn where_there_is_no_mark_of_all_work_it_is_waited_for() {
    let standins = standins::load(2);
    let expected = read(&mut opened(1));
    for seed in 0..10 {
        standins.restart(seed);
        standins.set("schedule", "late");
        // CUDA_ERROR_NOT_SUPPORTED.
        standins.set("fault", "cuCtxRecordEvent:801:all");
        let found = copied(&mut opened(2), MUCH, lend_to);
        assert!(found == expected, "seed {seed}");
        assert!(standins.count("cuCtxSynchronize") > 0);
    }
}

/// The test above can fail: without an order before the copies, and with that alone.
#[test]
fn what_is_not_lent_goes_wrong_in_some_order() {
    let standins = standins::load(3);
    let expected = read(&mut opened(1));
    let goes_wrong = |by_hand: bool, work_before: usize| {
        (0..100).any(|seed| {
            standins.restart(seed);
            standins.set("schedule", "late");
            let found = copied(&mut opened(2), work_before, |loader, _, stream| {
                if by_hand {
                    wait_by_hand(loader, stream);
                }
            });
            found.samples == expected.samples && found.pixels != expected.pixels
        })
    };
    assert!(goes_wrong(false, 0), "read before they were written");
    assert!(goes_wrong(true, MUCH), "overwritten before they were read");
}
