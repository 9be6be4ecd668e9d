//! `nepa predict`.
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use candle_core::{Device, Tensor};
use nepa_pipeline::random::Stream;
use nepa_pipeline::{Augment, CpuRenderer, IoConfig, IoRuntime};
use rand_core::SeedableRng;
use serde_json::{Value, json};

use super::args::{TransformArgs, check_classifier};
use super::help::with_exit_codes;
use super::values::{at_least, device as device_of};
use crate::console::messages::quoted_path;
use crate::console::print;
use crate::device::{self, DeviceChoice};
use crate::eval::{Classifier, probabilities};
use crate::weights::{self, Which};

/// Say what a classifier sees in images.
///
/// The likeliest classes of each image with their probabilities. Images are files of any format
/// that shards may hold: JPEG, PNG, WebP, BMP, GIF, TIFF.
#[derive(Debug, clap::Args)]
#[command(
    after_help = EXAMPLES,
    after_long_help = with_exit_codes(
        EXAMPLES,
        "  0          every image is classified\n  \
         1          the weights or an image cannot be read; the\n             \
         other images are classified"
    )
)]
pub(crate) struct Args {
    /// A fine-tuning run's output, a checkpoint, or a published folder.
    ///
    /// Of a run the newest checkpoint; a path or URL.
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: String,
    /// Image files.
    #[arg(value_name = "IMAGE", required = true)]
    images: Vec<PathBuf>,
    /// Classes that are printed of each image.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = at_least::<usize>(1))]
    top: usize,
    /// Print a JSON object a line for each image.
    #[arg(long)]
    json: bool,
    /// Raw weights or their moving average [default: the average where there is one].
    #[arg(long, value_name = "WHICH", value_enum)]
    weights: Option<Which>,
    #[command(flatten)]
    transform: TransformArgs,
    /// Where the model is: cpu, cuda or cuda:N.
    ///
    /// CUDA needs a program built by `make cuda`.
    #[arg(
        long, value_name = "DEVICE", default_value_t = DeviceChoice::Cpu,
        value_parser = device_of
    )]
    device: DeviceChoice,
}

const EXAMPLES: &str = "Examples:
  nepa predict runs/finetuned photo.jpg
  nepa predict s3://bucket/nepa-b14-classifier \\
      photos/*.jpg --top 1 --json";

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let device = device::open(args.device)?;
    let runtime = IoRuntime::new(2).context("cannot start the I/O threads")?;
    let folder = weights::open(&args.checkpoint, &IoConfig::default(), &runtime)?;
    let config = folder.config();
    check_classifier(&folder)?;
    ensure!(
        config.num_channels == 3,
        "the model takes {} channels, images have 3",
        config.num_channels
    );
    let (transform, normalize, _) = args.transform.pixels(&folder)?;
    let which = args.weights.or_else(|| folder.kinds().pop());
    let weights = folder.weights(which.unwrap_or(Which::Raw))?;
    let exif = folder
        .recipe()
        .is_none_or(|recipe| recipe.data.exif_orientation);
    let mut eye = Eye {
        renderer: CpuRenderer::new(normalize, exif),
        augment: transform.augment().build()?,
        size: transform.size as usize,
        classifier: Classifier::new(config, &weights, &device)?,
    };
    let (names, mut all_read) = (config.class_names(), true);
    for (number, path) in args.images.iter().enumerate() {
        match eye.probabilities(path) {
            Ok(found) => {
                let top = likeliest(&found, args.top);
                if args.json {
                    println!("{}", line(path, &top, names.as_deref()));
                } else {
                    let gap = if number > 0 { "\n" } else { "" };
                    println!("{gap}{}", path.display());
                    for (class, share) in top {
                        let name = name_of(class, names.as_deref());
                        println!("  {:>6.2} %  {name}", 100.0 * share);
                    }
                }
            }
            Err(error) => {
                all_read = false;
                let why = crate::console::messages::with_causes(&error);
                print::message("error: ", &why);
                if args.json {
                    println!(
                        "{}",
                        json!({"image": path.display().to_string(), "error": why})
                    );
                }
            }
        }
    }
    Ok(if all_read {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// What looks at images, one after the other.
struct Eye<'a> {
    renderer: CpuRenderer,
    augment: std::sync::Arc<dyn Augment>,
    size: usize,
    classifier: Classifier<'a>,
}

impl Eye<'_> {
    /// The probability of each class.
    fn probabilities(&mut self, path: &Path) -> anyhow::Result<Vec<f64>> {
        let bytes =
            std::fs::read(path).with_context(|| format!("cannot read {}", quoted_path(path)))?;
        let mut pixels = vec![0.0; 3 * self.size * self.size];
        let rendered = self.renderer.read_header(&bytes).and_then(|header| {
            // These transforms draw nothing.
            let mut stream = Stream::seed_from_u64(0);
            let views = self.augment.draw(header.width, header.height, &mut stream);
            let outputs = [&mut pixels[..]];
            self.renderer.render(&bytes, header, &views, outputs)
        });
        rendered.with_context(|| format!("cannot decode {}", quoted_path(path)))?;
        let shape = (1, 3, self.size, self.size);
        let pixels = Tensor::from_vec(pixels, shape, &Device::Cpu)?;
        let logits = self.classifier.logits(&pixels)?;
        ensure!(
            logits[0].iter().all(|logit| logit.is_finite()),
            "the model's output is not finite: its weights are damaged, or of another architecture"
        );
        Ok(probabilities(&logits[0]))
    }
}

/// The classes of greatest probability, the greatest first.
fn likeliest(probabilities: &[f64], count: usize) -> Vec<(usize, f64)> {
    let mut all: Vec<_> = probabilities.iter().copied().enumerate().collect();
    all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    all.truncate(count);
    all
}

fn name_of(class: usize, names: Option<&[String]>) -> String {
    match names {
        Some(names) => names[class].clone(),
        None => format!("class {class}"),
    }
}

fn line(path: &Path, top: &[(usize, f64)], names: Option<&[String]>) -> Value {
    let classes = top.iter().map(|(class, probability)| {
        let name = names.map(|names| &names[*class]);
        json!({"class": class, "name": name, "probability": probability})
    });
    json!({"image": path.display().to_string(), "classes": classes.collect::<Vec<_>>()})
}
