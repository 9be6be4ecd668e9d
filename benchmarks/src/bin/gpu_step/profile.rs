//! One step, launch by launch.
use std::rc::Rc;

use nepa_benchmarks::device_report::print_row;
use nepa_model::cuda::{CudaLauncher, KernelDevice};
use nepa_model::{RopeDraw, init_weights};
use nepa_tests::stepping::{self, ADAMW, add};

use crate::models::{Model, pixels, stream};
use crate::timed::{Spent, Timed};

pub(crate) fn print(tiny: bool, batch: usize) -> anyhow::Result<bool> {
    let (_, config) = Model::B14.config(tiny);
    let device = Timed::new(CudaLauncher::new(stream()?)?);
    let spent = Rc::clone(&device.spent);
    let weights = init_weights(&config, 1).flat;
    let mut step = stepping::pretraining(&config, &weights, batch, KernelDevice::new(device))?;
    // The same few images again and again: what they hold changes no time.
    let some = pixels(&config, batch.min(8));
    let images = (0..batch).map(|i| some[i % some.len()].as_slice());
    let images: Vec<&[f32]> = images.collect();
    // The first round chooses the matmuls' algorithms.
    for _ in 0..2 {
        spent.borrow_mut().clear();
        step.clear_gradient()?;
        add(&mut step, &images, &RopeDraw::default(), 1.0)?;
        step.finish(Some(1.0))?;
        step.update(&ADAMW, &[1e-5])?;
    }
    let mut spent = spent.borrow().clone().into_iter().collect::<Vec<_>>();
    spent.sort_by(|a, b| b.1.ms.total_cmp(&a.1.ms));
    let total: f64 = spent.iter().map(|(_, spent)| spent.ms).sum();
    for (name, Spent { calls, ms, work }) in spent {
        let rate = |amount: u64| {
            if amount == 0 {
                String::new()
            } else {
                format!("{:.2}", amount as f64 / ms.max(1e-3) / 1e9)
            }
        };
        print_row(&[
            &name,
            &calls.to_string(),
            &format!("{ms:.3}"),
            &rate(work.bytes),
            &rate(work.flops),
        ]);
    }
    print_row(&["all", "", &format!("{total:.1}"), "", ""]);
    Ok(true)
}
