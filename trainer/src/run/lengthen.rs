//! A run that goes on for more steps than it was begun with (`--resume` with a larger
//! `train.steps` or `train.epochs`).
//!
//! The learning rate is a function of step and length. From the step at which a run is lengthened
//! it is that of the longer length, with the warm-up of the shorter one: half a cosine down to 0 at
//! the new end. After a finished run it jumps up. A run is never shortened, as steps that were
//! trained already would then have had another rate. Called where a run goes on.
use crate::error::RunError;
use crate::recipe::{Lengthened, ResolvedTrain};

/// Makes of `current`, what recipe and command line say, what goes on from `saved` after `step`.
/// Gives lines that say so where the run is lengthened by that.
pub(crate) fn lengthen(
    place: &str,
    saved: &ResolvedTrain,
    current: &mut ResolvedTrain,
    step: u64,
) -> Result<Option<String>, RunError> {
    let begun = saved.lengthened.first();
    let begun = begun.map_or(saved.steps, |first| first.from_steps);
    if current.steps < saved.steps {
        return Err(RunError::Shorter {
            place: place.to_owned(),
            begun,
            saved: saved.steps,
            current: current.steps,
        });
    }
    if is_same_share(
        (saved.warmup_steps, begun),
        (current.warmup_steps, current.steps),
    ) {
        current.warmup_steps = saved.warmup_steps;
    }
    current.lengthened.clone_from(&saved.lengthened);
    if current.steps == saved.steps {
        return Ok(None);
    }
    current.lengthened.push(Lengthened {
        at_step: step,
        from_steps: saved.steps,
    });
    let (before, after) = (saved.schedule().at(step), current.schedule().at(step));
    Ok(Some(format!(
        "lengthened at step {step}: {} steps instead of {}\n\
         learning rate there: {} instead of {}, then by the longer schedule to 0 at step {}",
        current.steps,
        saved.steps,
        rate(after),
        rate(before),
        current.steps
    )))
}

/// A learning rate in three digits.
fn rate(value: f64) -> String {
    if value == 0.0 {
        "0".to_owned()
    } else {
        format!("{value:.2e}")
    }
}

/// Whether two warm-ups can be the same share of their runs, rounded up to whole steps. A warm-up
/// that is given as a share would grow with the run, though its steps have been trained.
fn is_same_share((warmup, steps): (u64, u64), (other, other_steps): (u64, u64)) -> bool {
    let wide = |one: u64, two: u64| u128::from(one) * u128::from(two);
    let least = |warmup: u64, of: u64| wide(warmup.saturating_sub(1), of);
    (warmup == 0) == (other == 0)
        && least(warmup, other_steps) < wide(other, steps).max(1)
        && least(other, steps) < wide(warmup, other_steps).max(1)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::recipe::Recipe;

    fn train(sets: &[&str]) -> ResolvedTrain {
        let sets = sets.iter().map(ToString::to_string).collect::<Vec<_>>();
        let recipe = Recipe::read(Path::new("quickstart"), &sets).unwrap();
        recipe.resolve(2000, String::new()).unwrap().train
    }

    #[test]
    fn a_longer_run_keeps_its_warm_up_and_takes_the_longer_cosine() {
        let saved = train(&[]);
        let mut current = train(&["train.epochs=100"]);
        assert_eq!((saved.warmup_steps, current.warmup_steps), (300, 620));
        let said = lengthen("out", &saved, &mut current, 3000)
            .unwrap()
            .unwrap();
        assert_eq!((current.steps, current.warmup_steps), (6200, 300));
        assert_eq!(
            current.lengthened,
            [Lengthened {
                at_step: 3000,
                from_steps: 3000
            }]
        );
        let schedule = current.schedule();
        assert!(schedule.at(3000) > 1e-3 && schedule.at(6200) < 1e-12);
        assert!(said.contains("instead of 0,"), "{said}");
        // The same command again changes nothing more; a third length does.
        let mut again = train(&["train.epochs=100"]);
        assert_eq!(lengthen("out", &current, &mut again, 4000).unwrap(), None);
        assert_eq!(again, current);
        let mut longer = train(&["train.steps=9000"]);
        lengthen("out", &current, &mut longer, 5000)
            .unwrap()
            .unwrap();
        assert_eq!((longer.warmup_steps, longer.lengthened.len()), (300, 2));
    }

    #[test]
    fn a_run_is_not_shortened() {
        let (saved, mut current) = (train(&[]), train(&["train.steps=2000"]));
        let error = lengthen("my runs/a", &saved, &mut current, 1000)
            .unwrap_err()
            .to_string();
        for part in [
            "'my runs/a'",
            "= 3000,",
            "say 2000",
            "--set train.steps=3000",
            "--max-steps",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    #[test]
    fn another_warm_up_stays_another() {
        let saved = train(&[]);
        let mut current = train(&["train.steps=6000", "train.warmup_steps=500"]);
        lengthen("out", &saved, &mut current, 3000).unwrap();
        assert_eq!(current.warmup_steps, 500);
        assert!(is_same_share((3, 12), (6, 24)) && !is_same_share((3, 12), (8, 24)));
        assert!(is_same_share((1, 12), (1, 24)) && is_same_share((0, 12), (0, 24)));
        assert!(!is_same_share((0, 12), (1, 24)));
    }
}
