//! The gradient over several micro-batches, bit for bit: the tree over their own gradients, whole or
//! in parts that are added in pairs.
use super::*;

/// What each micro-batch alone sums to, or several as one step.
fn sum(case: &Case, options: &StepOptions, images: &[&[f32]], share: f64) -> Vec<f32> {
    let mut step = Step::new(&case.config, options, CpuDevice::<f32>::default()).expect("a step");
    step.load_weights(&case.flat()).expect("weights");
    let count = images.len() / options.images;
    step.begin_gradient(count).expect("a gradient");
    for micro_batch in images.chunks(options.images) {
        let staged = step.stage(micro_batch).expect("images");
        let pass = Pass::of(&case.rope);
        step.add_gradient(staged, options.images, &pass, share, &mut NextEmbedding)
            .expect("a step");
    }
    let mut sum = Vec::new();
    step.read_sum(&mut sum).expect("a sum");
    sum
}

fn naive(values: &[Vec<f32>]) -> Vec<f32> {
    let add = |mut left: Vec<f32>, right: &Vec<f32>| {
        for (left, right) in left.iter_mut().zip(right) {
            *left += right;
        }
        left
    };
    if values.len().is_multiple_of(2) {
        let (left, right) = values.split_at(values.len() / 2);
        return add(naive(left), &naive(right));
    }
    let (first, rest) = values.split_first().expect("a micro-batch");
    rest.iter().fold(first.clone(), add)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn the_sum_over_micro_batches_is_a_tree_whole_or_in_parts() {
    let config = NepaConfig {
        layerscale_value: Some(0.3),
        ..NepaConfig::tiny()
    };
    for micro_batches in [1, 2, 3, 4, 6, 8, 12] {
        let case = Case::new(&config, 2 * micro_batches, micro_batches as u64);
        let images = case.images::<f32>();
        let images = images.iter().map(Vec::as_slice).collect::<Vec<_>>();
        let options = StepOptions {
            partial_sums: SumTree::new(micro_batches).partial_sums(),
            ..StepOptions::pretraining(&config, 2)
        };
        let share = 1.0 / micro_batches as f64;
        let alone = images.chunks(2).map(|one| sum(&case, &options, one, share));
        let alone = alone.collect::<Vec<_>>();
        let whole = sum(&case, &options, &images, share);
        assert!(whole.iter().any(|value| *value != 0.0));
        assert!(bits(&whole) == bits(&naive(&alone)), "{micro_batches}");
        let mut parts = 2;
        while micro_batches.is_multiple_of(parts) {
            let each = images.chunks(images.len() / parts);
            let each = each.map(|part| sum(&case, &options, part, share));
            let each = each.collect::<Vec<_>>();
            assert!(
                bits(&naive(&each)) == bits(&whole),
                "{micro_batches} in {parts} parts"
            );
            parts *= 2;
        }
    }
}

#[test]
fn a_sum_that_is_put_back_goes_on_as_the_gradient() {
    let config = NepaConfig::tiny();
    let case = Case::new(&config, 2, 3);
    let images = case.images::<f32>();
    let images = images.iter().map(Vec::as_slice).collect::<Vec<_>>();
    let options = StepOptions::pretraining(&config, 2);
    let whole = |twice: bool| {
        let mut step = Step::new(&config, &options, CpuDevice::<f32>::default()).expect("a step");
        step.load_weights(&case.flat()).expect("weights");
        step.begin_gradient(1).expect("a gradient");
        let staged = step.stage(&images).expect("images");
        step.add_gradient(staged, 2, &Pass::of(&case.rope), 1.0, &mut NextEmbedding)
            .expect("a step");
        if twice {
            let mut sum = Vec::new();
            step.read_sum(&mut sum).expect("a sum");
            for value in &mut sum {
                *value *= 2.0;
            }
            step.write_sum(&sum).expect("room");
        }
        step.finish(None).expect("an end")
    };
    assert!((whole(true) - 2.0 * whole(false)).abs() < 1e-9 * whole(true));
}

#[test]
fn a_step_gets_the_micro_batches_that_it_was_told_of() {
    let config = NepaConfig::tiny();
    let case = Case::new(&config, 1, 3);
    let images = case.images::<f32>();
    let images = images.iter().map(Vec::as_slice).collect::<Vec<_>>();
    let options = StepOptions {
        partial_sums: 1,
        ..StepOptions::pretraining(&config, 1)
    };
    let mut step = Step::new(&config, &options, CpuDevice::<f32>::default()).expect("a step");
    step.load_weights(&case.flat()).expect("weights");
    let refused = |result: Result<(), ModelError>, part: &str| {
        let error = result.expect_err(part).to_string();
        assert!(error.contains(part), "{part} in {error}");
    };
    refused(step.begin_gradient(0), "no micro-batch");
    refused(step.begin_gradient(4), "fewer micro-batches");
    step.begin_gradient(2).expect("room for two");
    let add = |step: &mut Step<CpuDevice<f32>>| {
        let staged = step.stage(&images).expect("images");
        let pass = Pass::of(&case.rope);
        let found = step.add_gradient(staged, 1, &pass, 0.5, &mut NextEmbedding);
        found.map(|_| ())
    };
    add(&mut step).expect("the first");
    refused(
        step.finish(None).map(|_| ()),
        "before their gradient is whole",
    );
    add(&mut step).expect("the second");
    refused(add(&mut step), "more micro-batches than");
    step.finish(None).expect("an end");
}
