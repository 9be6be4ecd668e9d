//! What a run says first and last: what is trained on what, how and where; then what was done,
//! where it lies and what to do next. The whole recipe lies in the output.
use nepa_pipeline::Dataset;

use super::options::{Kind, Options};
use super::phase::Phase;
use super::steps::Summary;
use super::waiting::Verdict;
use crate::console::messages::quoted;
use crate::console::print::labelled;
use crate::console::words;
use crate::launch::is_launched;
use crate::recipe::{EngineChoice, ResolvedRecipe};

/// URLs that are shown; of more the number.
const SHOWN_URLS: usize = 2;

/// Says what will be trained. `parameters` are the model's weights, `memory_bytes` those that the
/// engine takes, where it knows; `run` says what becomes of the output.
#[expect(clippy::too_many_arguments, reason = "all that is told first, once")]
pub(crate) fn show(
    recipe: &ResolvedRecipe,
    phase: &dyn Phase,
    dataset: &Dataset,
    parameters: usize,
    memory_bytes: Option<u64>,
    ranks: usize,
    place: &str,
    run: &str,
) {
    let (model, train) = (&recipe.model, &recipe.train);
    labelled(
        "model",
        &format!(
            "{} parameters: {} blocks of width {}, {} heads; {} px, patches of {} px",
            words::large(parameters as f64),
            model.num_hidden_layers,
            model.hidden_size,
            model.num_attention_heads,
            model.image_size,
            model.patch_size,
        ),
    );
    let bytes = dataset.shards().iter().map(|shard| shard.size).sum();
    labelled(
        "data",
        &format!(
            "{}: {}, {}, {}",
            urls(recipe),
            words::counted(dataset.shards().len() as u64, "shard"),
            words::counted(recipe.num_samples, "image"),
            words::bytes(bytes),
        ),
    );
    let epochs = words::digits(train.steps as f64 / train.steps_per_epoch.max(1) as f64);
    let epochs = match epochs.trim_end_matches(".00") {
        "1" => "1 epoch".to_owned(),
        epochs => format!("{epochs} epochs"),
    };
    labelled(
        "train",
        &format!(
            "{} steps of {} images, {epochs}; learning rate {}",
            words::count(train.steps),
            words::count(train.batch as u64),
            phase.rate(recipe),
        ),
    );
    for (label, text) in phase.recap(recipe) {
        labelled(label, &text);
    }
    let engine = match train.engine {
        EngineChoice::Cpu => "the model's own step",
        EngineChoice::Cuda => "CUDA kernels",
        EngineChoice::Autograd => "candle's autograd",
    };
    let memory = memory_bytes.map_or_else(String::new, |bytes| {
        format!(", {} of memory for the step", words::bytes(bytes))
    });
    labelled(
        "engine",
        &format!(
            "{engine} on {} in {}{memory}; {}",
            recipe.device,
            train.precision,
            words::counted(recipe.decode_threads as u64, "decode thread"),
        ),
    );
    if ranks > 1 {
        let by = if recipe.sums_by_nccl() {
            "; NCCL sums from GPU to GPU"
        } else {
            ""
        };
        labelled(
            "ranks",
            &format!(
                "{ranks}, each with {} of the {} micro-batches of a step{by}",
                train.accumulation / ranks,
                train.accumulation
            ),
        );
    }
    labelled("output", &format!("{}: {run}", quoted(place)));
}

/// Says what was done, what was waited for, and how to go on from there.
pub(crate) fn show_end(
    options: &Options,
    recipe: &ResolvedRecipe,
    phase: &dyn Phase,
    (summary, waited): (&Summary, Option<&Verdict>),
    place: &str,
) {
    let out = quoted(place);
    labelled(
        "done",
        &format!(
            "{} in {}: {}, {} images/s",
            words::counted(summary.steps, "step"),
            words::duration(summary.time),
            words::counted(summary.images, "image"),
            words::digits(summary.images as f64 / summary.time.as_secs_f64().max(1e-9)),
        ),
    );
    if let Some(waited) = waited {
        labelled("waited", &waited.text);
        if waited.is_much {
            let profile = profile_command(options);
            labelled("", &format!("what would help: {profile}"));
        }
    }
    if let Some((first, last, of)) = summary.losses {
        labelled(
            "loss",
            &format!("{first:.4} to {last:.4} (means of the first and the last {of} steps)"),
        );
    }
    for (label, text) in phase.end(recipe, summary, &out) {
        labelled(label, &text);
    }
}

/// The command that goes on, as far as it is known here.
pub(crate) fn resume_command(options: &Options, ranks: usize) -> String {
    let Options {
        kind,
        recipe,
        data,
        sets,
        out,
        metrics_addr,
        ..
    } = options;
    let recipe = quoted(&recipe.to_string_lossy());
    let mut command = format!("{} {recipe}", kind.command());
    if ranks > 1 && is_launched() {
        command = command.replacen("nepa ", &format!("nepa launch -n {ranks} -- "), 1);
    }
    let url = |flag: &str, url: &str| format!(" {flag} {}", quoted(&nepa_pipeline::redact(url)));
    if let Kind::Finetune(from) = kind {
        command += &from.flags().concat();
        for eval in &from.eval_data {
            command += &url("--test", eval);
        }
    }
    for data in data {
        command += &url("--data", data);
    }
    command += &set_flags(sets);
    if let Some(address) = metrics_addr {
        command += &format!(" --metrics-addr {address}");
    }
    command + &format!(" --out {} --resume", quoted(out))
}

fn set_flags(sets: &[String]) -> String {
    let flags = sets.iter().map(|set| format!(" --set {}", quoted(set)));
    flags.collect()
}

/// The command that finds out why the loader is as fast as it is, as far as it is known here.
fn profile_command(options: &Options) -> String {
    let mut command = format!(
        "nepa profile --recipe {}",
        quoted(&options.recipe.to_string_lossy())
    );
    command += &set_flags(&options.sets);
    for data in &options.data {
        command += &format!(" {}", quoted(&nepa_pipeline::redact(data)));
    }
    command
}

fn urls(recipe: &ResolvedRecipe) -> String {
    let of_mixture = recipe.data.mixture.iter().flat_map(|source| &source.urls);
    let urls = recipe
        .data
        .urls
        .iter()
        .chain(of_mixture)
        .collect::<Vec<_>>();
    let shown = urls.iter().take(SHOWN_URLS).map(|url| quoted(url));
    let mut text = shown.collect::<Vec<_>>().join(" ");
    if urls.len() > SHOWN_URLS {
        text += &format!(" and {} more", urls.len() - SHOWN_URLS);
    }
    text
}
