//! What happened in a run, in words and numbers that a person reads.
use super::history::{Ends, Step};
use super::sentence::Sentence;
use super::subject::Run;
use super::top1;
use crate::console::words;

/// With a true minus and as many decimals as a loss deserves.
pub(super) fn loss(value: f64) -> String {
    format!("{value:.3}").replace('-', "−")
}

/// Steps of a mean, as in `of the last 60 steps`.
fn of_steps(which: &str, window: usize) -> String {
    match window {
        1 => format!("of the {which} step"),
        many => format!("of the {which} {many} steps"),
    }
}

/// What the run did, in a few sentences.
pub(super) fn sentences(run: &Run) -> Vec<Sentence> {
    let mut said = Vec::new();
    let planned = words::count(run.recipe.train.steps);
    let Some(last) = run.history.last() else {
        let text = format!("No step of {planned} is written down yet.");
        return vec![Sentence::caution(text)];
    };
    let (time, waiting) = run.history.time();
    said.push(Sentence::plain(format!(
        "{} of {planned} steps are done: {} ({} epochs of {}) in {}, {} of it waiting for data.",
        words::count(last.step),
        words::counted(last.samples, "image"),
        words::digits(epochs(run, last)),
        words::count(run.recipe.num_samples),
        words::duration(time),
        words::percent(waiting)
    )));
    said.extend(loss_sentence(run));
    let odd = run.history.not_finite();
    if odd > 0 {
        let steps = words::counted(odd as u64, "step");
        said.push(Sentence::caution(format!(
            "{steps} had a loss or gradient that is not finite; curves and means leave it out. A \
             lower learning rate usually helps."
        )));
    }
    said.extend(copy_sentence(run));
    said.extend(run.evaluations.sentence());
    said
}

fn loss_sentence(run: &Run) -> Option<Sentence> {
    let Ends {
        first,
        last,
        noise,
        window,
    } = run.history.ends(|step| step.loss)?;
    if run.history.0.len() == 1 {
        let perfect = if run.is_classifier() {
            ""
        } else {
            "; −1 is perfect"
        };
        let text = format!("The loss of its one step was {}{perfect}.", loss(first));
        return Some(Sentence::plain(text));
    }
    let means = match window {
        1 => "first and last step".to_owned(),
        many => format!("means of the first and last {many} steps"),
    };
    let (from, to) = (loss(first), loss(last));
    let fall = first - last;
    Some(if fall > noise.max(5e-4) {
        let of_the_way = if run.is_classifier() {
            // How far it can fall depends on the mixing and smoothing of labels.
            String::new()
        } else {
            let share = words::percent(fall / (1.0 + first));
            format!(", {share} of the way to −1, which is perfect")
        };
        Sentence::plain(format!(
            "The loss fell from {from} to {to} ({means}): by {fall:.3}{of_the_way}."
        ))
    } else {
        Sentence::caution(format!(
            "The loss did not fall: from {from} to {to} ({means}), which is within its noise or \
             worse."
        ))
    })
}

/// The mean share of positions at the end that are nearer to the current embedding.
pub(super) fn copy_share(run: &Run) -> Option<f64> {
    if run.is_classifier() {
        return None;
    }
    run.history.ends(|step| step.copy_win).map(|ends| ends.last)
}

fn copy_sentence(run: &Run) -> Option<Sentence> {
    let share = copy_share(run)?;
    let is = format!(
        "Its predictions are nearer to the patch that it sees than to the next one at {} of \
         positions at the end",
        words::percent(share)
    );
    Some(if share > 0.5 {
        Sentence::caution(format!("{is}: it mostly repeats its input."))
    } else {
        Sentence::plain(format!("{is}: it does not just repeat its input."))
    })
}

fn epochs(run: &Run, last: &Step) -> f64 {
    last.samples as f64 / run.recipe.num_samples.max(1) as f64
}

/// Facts about a run, the same ones for each: name and value.
pub(super) fn facts(run: &Run) -> Vec<(&'static str, String)> {
    let (recipe, history) = (&run.recipe, &run.history);
    let none = || "none yet".to_owned();
    let steps = match history.last() {
        Some(last) => format!(
            "{} of {}",
            words::count(last.step),
            words::count(recipe.train.steps)
        ),
        None => format!("0 of {}", words::count(recipe.train.steps)),
    };
    let seen = history.last().map_or_else(none, |last| {
        format!(
            "{}, {} epochs of {}",
            words::count(last.samples),
            words::digits(epochs(run, last)),
            words::count(recipe.num_samples)
        )
    });
    let ends = history.ends(|step| step.loss);
    let loss = ends.map_or_else(none, |ends| {
        format!(
            "{} to {} (mean {})",
            loss(ends.first),
            loss(ends.last),
            of_steps("first and last", ends.window)
        )
    });
    let copies = match copy_share(run) {
        Some(share) => format!("nearer to the current patch at {}", words::percent(share)),
        None if run.is_classifier() => "–".to_owned(),
        None => none(),
    };
    let top1 = match run.evaluations.fact() {
        Some(fact) => fact,
        None if run.is_classifier() => none(),
        None => "–".to_owned(),
    };
    let rate = history.median_rate().map_or_else(none, |rate| {
        format!(
            "{} images/s on {} (median)",
            words::digits(rate),
            recipe.device
        )
    });
    let (time, waiting) = history.time();
    let time = history.last().map_or_else(none, |_| {
        format!(
            "{}, {} of it waiting for data",
            words::duration(time),
            words::percent(waiting)
        )
    });
    let checkpoints = match &run.checkpoints[..] {
        [] => none(),
        steps => {
            let shown = steps.iter().rev().take(5).rev();
            let shown = shown.map(|step| words::count(*step)).collect::<Vec<_>>();
            let before = if steps.len() > 5 { "…, " } else { "" };
            format!("step {before}{}", shown.join("; "))
        }
    };
    let model = &recipe.model;
    let weights = nepa_model::ParamSpec::all(model);
    let weights = weights
        .iter()
        .map(nepa_model::ParamSpec::len)
        .sum::<usize>();
    vec![
        ("Steps", steps),
        ("Images seen", seen),
        ("Loss", loss),
        ("Copying", copies),
        ("Best top-1", top1),
        ("Speed", rate),
        ("Time", time),
        ("Checkpoints", checkpoints),
        (
            "Model",
            format!(
                "{} weights: width {}, {} blocks, {} heads; {} px in patches of {} px",
                words::large(weights as f64),
                model.hidden_size,
                model.num_hidden_layers,
                model.num_attention_heads,
                model.image_size,
                model.patch_size
            ),
        ),
        (
            "Training",
            format!(
                "batch {}, peak learning rate {} after {} of warm-up, weight decay {}, \
                 moving average {}, seed {}",
                words::count(recipe.train.batch as u64),
                words::small(recipe.train.lr),
                words::counted(recipe.train.warmup_steps, "step"),
                words::small(recipe.optimizer.weight_decay),
                recipe
                    .optimizer
                    .ema_decay
                    .map_or_else(|| "none".to_owned(), words::small),
                recipe.seed
            ),
        ),
    ]
}

/// What is to be known when runs are compared.
pub(super) fn comparison(runs: &[Run]) -> Vec<Sentence> {
    let mut said = Vec::new();
    let pretraining = runs.iter().filter(|run| !run.is_classifier());
    let ends = pretraining.clone().filter_map(|run| {
        let ends = run.history.ends(|step| step.loss)?;
        Some((run, ends.last))
    });
    let lowest = ends.clone().min_by(|a, b| a.1.total_cmp(&b.1));
    if let Some((run, lowest)) = lowest {
        let others = ends.filter(|(other, _)| other.name != run.name);
        let others = others.map(|(run, last)| format!("{} {}", run.name, loss(last)));
        let others = others.collect::<Vec<_>>().join(", ");
        let others = if others.is_empty() {
            ", the only one with steps".to_owned()
        } else {
            format!("; {others}")
        };
        said.push(Sentence::plain(format!(
            "The lowest loss at the end is that of {}: {}{others}. Each run predicts embeddings \
             of its own, so a lower loss alone does not mean better features.",
            run.name,
            loss(lowest)
        )));
    }
    said.extend(top1::comparison(runs));
    let pretraining = pretraining.count();
    if (1..runs.len()).contains(&pretraining) {
        said.push(Sentence::caution(
            "Some of the runs pretrain and some fine-tune: their losses are not of one kind, and \
             stand in two pictures.",
        ));
    }
    for run in runs {
        let all = sentences(run);
        let cautions = all.into_iter().filter(|sentence| sentence.caution);
        said.extend(
            cautions.map(|sentence| Sentence::caution(format!("{}: {}", run.name, sentence.text))),
        );
    }
    if runs
        .iter()
        .any(|run| run.recipe.dataset != runs[0].recipe.dataset)
    {
        said.push(Sentence::caution(
            "The runs were not trained on the same data, so that losses and speeds can only be \
             compared roughly.",
        ));
    }
    let steps = |run: &Run| run.history.last().map_or(0, |last| last.step);
    if runs.iter().any(|run| steps(run) != steps(&runs[0])) {
        said.push(Sentence::plain(
            "The runs have different lengths; what is said of an end is of each run's own.",
        ));
    }
    said
}

/// One table of all runs: a row a fact, a column a run. What recipes say is left out of a
/// comparison, which has a table of what differs.
pub(super) fn fact_table(runs: &[Run]) -> Vec<Vec<String>> {
    let all = runs.iter().map(facts).collect::<Vec<_>>();
    let is_shown = |row: &usize| {
        let same = all.iter().all(|facts| facts[*row] == all[0][*row]);
        match all[0][*row].0 {
            "Model" => runs.len() == 1 || !same,
            "Training" => runs.len() == 1,
            "Copying" => !runs.iter().all(Run::is_classifier),
            "Best top-1" => runs.iter().any(Run::is_classifier),
            _ => true,
        }
    };
    let rows = (0..all[0].len()).filter(is_shown).map(|row| {
        let values = all.iter().map(|facts| facts[row].1.clone());
        let name = std::iter::once(all[0][row].0.to_owned());
        name.chain(values).collect()
    });
    rows.collect()
}
