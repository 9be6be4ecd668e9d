//! One step, launch by launch.
use std::rc::Rc;

use nepa_benchmarks::device_report::print_row;
use nepa_model::cuda::CudaStepDevice;
use nepa_model::kernel_step::{FlatState, KernelStep, Update};
use nepa_model::{RopeDraw, init_weights};

use crate::models::{Model, pixels, stream};
use crate::timed::{Spent, Timed};

pub(crate) fn print(tiny: bool, batch: usize) -> anyhow::Result<bool> {
    let (_, config) = Model::B14.config(tiny);
    let device = Timed::new(CudaStepDevice::new(stream()?)?);
    let spent = Rc::clone(&device.spent);
    let mut step = KernelStep::new(&config, batch, device)?;
    step.load(&FlatState::new(init_weights(&config, 1).flat))?;
    // The same few images again and again: what they hold changes no time.
    let some = pixels(&config, batch.min(8));
    let slices = (0..batch).map(|i| some[i % some.len()].as_slice());
    let staged = step.stage(&slices.collect::<Vec<_>>())?;
    step.set_groups(|_| (0.0, 1.0))?;
    // The first round chooses the products' algorithms.
    for _ in 0..2 {
        spent.borrow_mut().clear();
        step.clear_gradient()?;
        step.add_gradient(staged, &RopeDraw::default(), 1.0)?;
        step.finish(Some(1.0))?;
        step.update(&Update {
            step: 1,
            lr: 1e-5,
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            average_decay: Some(0.9999),
        })?;
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
