//! Arguments that several commands take, and what they make of them.
use anyhow::ensure;
use clap::ValueEnum;
use nepa_pipeline::{DatasetConfig, IoConfig, IoRuntime, Normalize};
use nepa_schemas::SchemaOptions;

use super::values::{at_least, device as device_of, whole};
use crate::console::messages::{nearest, quoted};
use crate::device::DeviceChoice;
use crate::eval::{ImageSet, Layer, NO_CLASSIFIER, Pool, ReadOptions};
use crate::transform::{NamedTransform, Transform};
use crate::weights::WeightsFolder;

/// Which of the shards are read.
#[derive(Debug, Default, clap::Args)]
#[command(next_help_heading = "Data")]
pub(crate) struct ShardArgs {
    /// Read the shards of one split alone.
    ///
    /// As their names or folders say it: train, validation, test, or any word of theirs.
    #[arg(long, value_name = "NAME")]
    pub split: Option<String>,
    /// End where something about the shards is doubtful.
    ///
    /// Several splits, copies, missing shards; without it they are warned of.
    #[arg(long)]
    pub strict: bool,
}

/// How images are read and reach a model.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Data")]
pub(super) struct ImageArgs {
    /// Column with the images: its name, or `struct.field`.
    #[arg(long, value_name = "NAME", hide_short_help = true)]
    image_column: Option<String>,
    /// Column with the labels [default: label, labels or class].
    ///
    /// Its name, `struct.field`, or KEY where folders are called KEY=class. Where none of the
    /// default names is there, what else is called like one.
    #[arg(long, value_name = "NAME")]
    label_column: Option<String>,
    /// End where something about the shards is doubtful.
    ///
    /// Several splits, copies, missing shards; without it they are warned of.
    #[arg(long)]
    strict: bool,
    /// Most images taken of each set, from its beginning.
    #[arg(long, value_name = "N", value_parser = at_least::<usize>(1))]
    limit: Option<usize>,
    /// Where the model is: cpu, cuda or cuda:N.
    ///
    /// CUDA needs a program built by `make cuda`.
    #[arg(
        long, value_name = "DEVICE", default_value_t = DeviceChoice::Cpu,
        value_parser = device_of, help_heading = "Speed"
    )]
    pub(super) device: DeviceChoice,
    /// Images in one forward pass.
    #[arg(
        long, value_name = "N", default_value_t = 32,
        value_parser = whole::<u16>(1..=u16::MAX.into()), help_heading = "Speed",
        hide_short_help = true
    )]
    batch: u16,
    /// Decode threads [default: one a core].
    #[arg(
        long = "decode-threads", alias = "threads", value_name = "N",
        value_parser = whole::<u16>(1..=u16::MAX.into()), help_heading = "Speed"
    )]
    threads: Option<u16>,
}

/// How images are read for features of two sets.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Data")]
pub(super) struct FeatureImageArgs {
    /// Read the training shards of one split alone.
    ///
    /// As their names or folders say it.
    #[arg(long, value_name = "NAME", hide_short_help = true)]
    pub(super) train_split: Option<String>,
    /// Read the test shards of one split alone.
    ///
    /// As their names or folders say it.
    #[arg(long, value_name = "NAME", hide_short_help = true)]
    pub(super) test_split: Option<String>,
    /// Shorter side of an image before the centre is cut out.
    ///
    /// The model takes a square from the centre of the image. Where it is left out, 8/7 of the
    /// model's size (256 for 224); for models of less than 64 pixels the model's own.
    #[arg(
        long, value_name = "PIXELS", value_parser = whole::<u32>(1..=16_384),
        hide_short_help = true
    )]
    resize: Option<u32>,
    #[command(flatten)]
    pub(super) images: ImageArgs,
}

impl FeatureImageArgs {
    /// Opens the training shards and the test shards.
    pub(super) fn open_sets(
        &self,
        train: &[String],
        test: &[String],
        runtime: &IoRuntime,
    ) -> anyhow::Result<(ImageSet, ImageSet)> {
        Ok((
            self.images
                .open(train, self.train_split.as_ref(), runtime)?,
            self.images.open(test, self.test_split.as_ref(), runtime)?,
        ))
    }

    /// How images are prepared for a model's features; pixels are normalised as in its training.
    pub(super) fn read_options(&self, folder: &WeightsFolder) -> anyhow::Result<ReadOptions> {
        let size = folder.config().image_size as u32;
        let usual = Transform::usual(size);
        let transform = self
            .resize
            .map_or(usual, |resize| usual.from_shorter_side(resize));
        ensure!(
            self.resize.is_none_or(|resize| resize >= size),
            "--resize {}: the model takes {size} pixels, which cannot be cut from less",
            self.resize.unwrap_or_default()
        );
        Ok(self.images.read_options(folder, transform))
    }
}

impl ImageArgs {
    /// Opens labelled shards, of one split if it is named.
    pub(super) fn open(
        &self,
        urls: &[String],
        split: Option<&String>,
        runtime: &IoRuntime,
    ) -> anyhow::Result<ImageSet> {
        self.open_with(urls, split, self.label_column.clone(), runtime)
    }

    /// Opens shards whose labels are not read.
    pub(super) fn open_unlabelled(
        &self,
        urls: &[String],
        runtime: &IoRuntime,
    ) -> anyhow::Result<ImageSet> {
        self.open_with(urls, None, Some(String::new()), runtime)
    }

    fn open_with(
        &self,
        urls: &[String],
        split: Option<&String>,
        label_column: Option<String>,
        runtime: &IoRuntime,
    ) -> anyhow::Result<ImageSet> {
        let schema = SchemaOptions {
            image_column: self.image_column.clone(),
            label_column,
            ..SchemaOptions::default()
        };
        let config = DatasetConfig {
            urls: urls.to_vec(),
            schema,
            split: split.cloned(),
            strict: self.strict,
            ..DatasetConfig::default()
        };
        ImageSet::open(&config, &IoConfig::default(), runtime)
    }

    /// How images are prepared for a model; pixels are normalised as in its training.
    pub(super) fn read_options(&self, folder: &WeightsFolder, transform: Transform) -> ReadOptions {
        let data = folder.recipe().map(|recipe| &recipe.data);
        ReadOptions {
            transform,
            normalize: data.map_or_else(Normalize::default, |data| data.normalize),
            exif_orientation: data.is_none_or(|data| data.exif_orientation),
            batch: usize::from(self.batch),
            threads: self.threads.map_or_else(crate::device::cores, usize::from),
            limit: self.limit.unwrap_or(usize::MAX),
        }
    }
}

/// Fails where the weights are no classifier's, and says what to do with them.
pub(super) fn check_classifier(folder: &WeightsFolder) -> anyhow::Result<()> {
    ensure!(
        folder.config().is_classifier(),
        "{}: {NO_CLASSIFIER}",
        quoted(folder.place())
    );
    Ok(())
}

/// The pixels that a classifier sees.
#[derive(Debug, clap::Args)]
pub(super) struct TransformArgs {
    /// How an image becomes the square that the model sees.
    ///
    /// Sizes are those of a model of 224 pixels, and in proportion of others. Where it is left
    /// out: as the folder's preprocessor_config.json says; of a run, as its recipe does; else the
    /// shorter side to 8/7 of the model's size and the centre.
    #[arg(long, value_name = "NAME", value_enum)]
    transform: Option<NamedTransform>,
}

impl TransformArgs {
    /// The transform, the normalisation that goes with it, and where they come from, for people.
    pub(super) fn pixels(
        &self,
        folder: &WeightsFolder,
    ) -> anyhow::Result<(Transform, Normalize, &'static str)> {
        let size = folder.config().image_size as u32;
        let data = folder.recipe().map(|recipe| &recipe.data);
        let normalize = data.map_or_else(Normalize::default, |data| data.normalize);
        Ok(match (self.transform, folder.preprocessor()) {
            // The normalisation of a folder whose pixels are otherwise not understood counts, too.
            (Some(named), Some(own)) => (named.of(size), own.normalize()?, "as asked"),
            (Some(named), None) => (named.of(size), normalize, "as asked"),
            (None, Some(own)) => {
                let (transform, normalize) = own.pixels(size)?;
                (transform, normalize, "as its preprocessor_config.json says")
            }
            (None, None) => match folder.evaluated_by() {
                Some(transform) => (transform, normalize, "as its recipe says"),
                None => (Transform::usual(size), normalize, "as usual here"),
            },
        })
    }
}

/// Where in a model features are taken.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Features")]
pub(super) struct LayerArgs {
    /// Layers, by commas: numbers of blocks, 'last', or 'all'.
    ///
    /// 0 is what goes into the first block, 'last' the final norm's output. Middle blocks usually
    /// score higher than the last.
    #[arg(
        long,
        value_name = "LAYERS",
        value_delimiter = ',',
        default_value = "last"
    )]
    layers: Vec<String>,
    /// How the tokens of a layer become one feature.
    #[arg(long, value_name = "HOW", value_enum, default_value_t = Pool::PatchMean)]
    pub(super) pool: Pool,
    /// What a token sees.
    #[arg(long, value_name = "WHAT", value_enum, default_value_t = Attention::Bidirectional)]
    attention: Attention,
}

impl LayerArgs {
    /// The layers of a model with so many blocks.
    pub(super) fn of_blocks(&self, num_blocks: usize) -> anyhow::Result<Vec<Layer>> {
        let mut layers = Vec::new();
        for text in &self.layers {
            if text == "all" {
                layers.extend(Layer::all(num_blocks));
                continue;
            }
            let layer = text.parse::<Layer>();
            let layer = layer.map_err(|error| {
                let meant = nearest(text, ["last", "all"]);
                let tip = meant.map(|meant| format!("\ntip: did you mean {meant}?"));
                anyhow::anyhow!("--layers: {error} nor 'all'{}", tip.unwrap_or_default())
            })?;
            ensure!(
                layer <= Layer::Block(num_blocks) || layer == Layer::Last,
                "--layers {layer}: the model has {num_blocks} blocks"
            );
            layers.push(layer);
        }
        layers.sort_unstable();
        layers.dedup();
        Ok(layers)
    }

    pub(super) fn causal(&self) -> bool {
        self.attention == Attention::Causal
    }

    /// For people.
    pub(super) fn describe(&self) -> String {
        let pool = match self.pool {
            Pool::PatchMean => "mean over patches",
            Pool::ClassToken => "class token",
        };
        let attention = match self.attention {
            Attention::Bidirectional => "bidirectional",
            Attention::Causal => "causal",
        };
        format!("{pool}, {attention} attention")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Attention {
    /// Every token sees all.
    Bidirectional,
    /// A token sees itself and those before, as in pretraining.
    Causal,
}
