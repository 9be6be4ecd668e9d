//! What can be checked of a recipe without looking at the data or the device.
use nepa_model::ModelError;

use super::dotted::dotted;
use super::{EngineChoice, Precision, Recipe, RecipeError, WireChoice};
use crate::device::DeviceChoice;
use crate::optimizer::OptimizerError;

/// Least width and height of `loader.jpeg_largest`.
const LEAST_LARGEST: u32 = 64;
/// JPEG has no larger image.
const MOST_LARGEST: u32 = 65_535;

impl Recipe {
    /// Checks all that can be checked without looking at the data or the device.
    pub fn check(&self, world_size: usize) -> Result<(), RecipeError> {
        self.check_model()?;
        self.check_augment()?;
        self.check_data()?;
        self.check_train(world_size)?;
        self.check_lanes(world_size)?;
        self.check_engine()?;
        self.check_wire()?;
        self.check_optimizer()?;
        self.check_finetune()?;
        self.check_ablation()?;
        self.check_saving()?;
        self.check_loader()?;
        self.check_data_given()
    }

    /// Whether there is anything to train on.
    pub(crate) fn check_data_given(&self) -> Result<(), RecipeError> {
        if self.data.urls.is_empty() && self.data.mixture.is_empty() {
            Err(RecipeError::NoData)
        } else {
            Ok(())
        }
    }

    /// What is to be said of a precision that the device is slow in.
    pub fn slow_precision(&self) -> Option<&'static str> {
        let slow = self.device == DeviceChoice::Cpu && self.train.precision == Precision::Bf16;
        slow.then_some(
            "train.precision = \"bf16\" is for GPUs: the processor computes it 4 to 18 times \
             slower than f32\ntip: --set train.precision=f32",
        )
    }

    /// The error for a value outside its range.
    pub(super) fn wrong(&self, key: &str, value: String, rule: String) -> RecipeError {
        RecipeError::Value {
            place: self.origin.of(key),
            key: key.to_owned(),
            value,
            rule,
            tip: None,
        }
    }

    /// An error unless the value of a key is right; `rule` says what it must be.
    pub(super) fn require(
        &self,
        ok: bool,
        key: &str,
        value: &dyn std::fmt::Display,
        rule: &str,
    ) -> Result<(), RecipeError> {
        if ok {
            Ok(())
        } else {
            Err(self.wrong(key, value.to_string(), format!("it must be {rule}")))
        }
    }

    fn check_model(&self) -> Result<(), RecipeError> {
        let model = &self.model;
        self.require(
            model.patch_size > 0,
            "model.patch_size",
            &model.patch_size,
            "at least 1",
        )?;
        self.require(
            model.image_size > 0,
            "model.image_size",
            &model.image_size,
            "at least 1",
        )?;
        if !model.image_size.is_multiple_of(model.patch_size) {
            let (image_size, patch_size) = (model.image_size, model.patch_size);
            return Err(RecipeError::PatchDoesNotDivide {
                image_size,
                patch_size,
            });
        }
        model.validate_for_training().map_err(|error| match error {
            ModelError::Config { key, value, rule } => {
                self.wrong(&dotted("model", key), value, rule)
            }
            other => other.into(),
        })
    }

    fn check_augment(&self) -> Result<(), RecipeError> {
        let augment = self.data.augment.build();
        let augment = augment.map_err(|source| RecipeError::Augment {
            source,
            place: self.origin.of("data.augment"),
        })?;
        let [augment_size] = augment.view_sides()[..] else {
            return Err(RecipeError::SeveralViews);
        };
        if augment_size as usize != self.model.image_size {
            return Err(RecipeError::ImageSizesDiffer {
                augment_size,
                image_size: self.model.image_size,
            });
        }
        Ok(())
    }

    fn check_data(&self) -> Result<(), RecipeError> {
        let bad = self.data.max_bad_fraction;
        self.require(
            (0.0..=1.0).contains(&bad),
            "data.max_bad_fraction",
            &bad,
            "between 0 and 1",
        )?;
        self.require(
            self.data.shuffle_window_bytes > 0,
            "data.shuffle_window_bytes",
            &0,
            "at least 1",
        )
    }

    fn check_lanes(&self, world_size: usize) -> Result<(), RecipeError> {
        let (lanes, batch) = (self.data.lanes, self.train.batch);
        self.require(lanes > 0, "data.lanes", &lanes, "at least 1")?;
        self.require(
            batch.is_multiple_of(lanes),
            "data.lanes",
            &lanes,
            &format!("a divisor of train.batch = {batch}, as each lane gives as many images to it"),
        )?;
        self.require(
            lanes == 1 || lanes.is_multiple_of(world_size),
            "data.lanes",
            &lanes,
            &format!(
                "a multiple of the number of ranks, {world_size}, each of which reads whole \
                 lanes; or 1, with which each reads all of the data"
            ),
        )
    }

    fn check_train(&self, world_size: usize) -> Result<(), RecipeError> {
        let train = &self.train;
        self.require(train.batch > 0, "train.batch", &train.batch, "at least 1")?;
        self.require(
            train.micro_batch > 0,
            "train.micro_batch",
            &train.micro_batch,
            "at least 1",
        )?;
        if !train.batch.is_multiple_of(train.micro_batch * world_size) {
            let (batch, micro_batch) = (train.batch, train.micro_batch);
            return Err(RecipeError::BatchDoesNotDivide {
                batch,
                micro_batch,
                world_size,
            });
        }
        one_of(
            "train.epochs",
            train.epochs.is_some(),
            "train.steps",
            train.steps.is_some(),
        )?;
        one_of(
            "train.base_lr",
            train.base_lr.is_some(),
            "train.lr",
            train.lr.is_some(),
        )?;
        one_of(
            "train.warmup_fraction",
            train.warmup_fraction.is_some(),
            "train.warmup_steps",
            train.warmup_steps.is_some(),
        )?;
        for (key, length) in [("train.epochs", train.epochs), ("train.steps", train.steps)] {
            self.require(length != Some(0), key, &0, "at least 1")?;
        }
        let rates = [("train.base_lr", train.base_lr), ("train.lr", train.lr)];
        for (key, rate) in rates
            .into_iter()
            .filter_map(|(key, rate)| Some((key, rate?)))
        {
            self.require(
                rate.is_finite() && rate >= 0.0,
                key,
                &rate,
                "a finite number, 0 or more",
            )?;
        }
        if let Some(fraction) = train.warmup_fraction {
            self.require(
                (0.0..1.0).contains(&fraction),
                "train.warmup_fraction",
                &fraction,
                "from 0 to less than 1",
            )?;
        }
        Ok(())
    }

    fn check_optimizer(&self) -> Result<(), RecipeError> {
        self.optimizer.validate().map_err(|error| match error {
            OptimizerError::Setting { key, value, rule } => self.wrong(
                &dotted("optimizer", key),
                value.to_string(),
                rule.to_owned(),
            ),
            other @ OptimizerError::StateLength { .. } => other.into(),
        })
    }

    /// `[checkpoint]` and `[log]`.
    fn check_saving(&self) -> Result<(), RecipeError> {
        let checkpoint = &self.checkpoint;
        self.require(
            checkpoint.every_steps != Some(0),
            "checkpoint.every_steps",
            &0,
            "at least 1",
        )?;
        self.require(
            checkpoint.milestone_steps != Some(0),
            "checkpoint.milestone_steps",
            &0,
            "at least 1",
        )?;
        if let Some(minutes) = checkpoint.every_minutes {
            self.require(
                minutes > 0.0,
                "checkpoint.every_minutes",
                &minutes,
                "greater than 0",
            )?;
        }
        self.require(checkpoint.keep > 0, "checkpoint.keep", &0, "at least 1")?;
        self.require(
            checkpoint.stop_s >= 0.0 && checkpoint.stop_s.is_finite(),
            "checkpoint.stop_s",
            &checkpoint.stop_s,
            "0 or more seconds",
        )?;
        self.require(
            (3.0..=86_400.0).contains(&checkpoint.takeover_s),
            "checkpoint.takeover_s",
            &checkpoint.takeover_s,
            "from 3 to 86400 seconds",
        )?;
        self.require(
            self.log.every_steps != Some(0),
            "log.every_steps",
            &0,
            "at least 1",
        )
    }

    fn check_loader(&self) -> Result<(), RecipeError> {
        for (key, threads) in [
            ("loader.decode_threads", self.loader.decode_threads),
            ("loader.prefetch_batches", self.loader.prefetch_batches),
            ("loader.io_threads", self.loader.io_threads),
        ] {
            self.require(threads != Some(0), key, &0, "at least 1")?;
        }
        let jpeg = self.loader.jpeg.map(|jpeg| format!("\"{jpeg}\""));
        let largest = self.loader.jpeg_largest;
        for (key, value) in [
            ("loader.jpeg", jpeg),
            (
                "loader.jpeg_largest",
                largest.map(|size| format!("{size:?}")),
            ),
        ] {
            if let (DeviceChoice::Cpu, Some(value)) = (self.device, value) {
                return Err(RecipeError::JpegWithoutGpu { key, value });
            }
        }
        for side in largest.into_iter().flatten() {
            self.require(
                (LEAST_LARGEST..=MOST_LARGEST).contains(&side),
                "loader.jpeg_largest",
                &side,
                "a width and a height from 64 to 65535",
            )?;
        }
        Ok(())
    }

    fn check_engine(&self) -> Result<(), RecipeError> {
        let (device, precision) = (self.device, self.train.precision);
        let on_gpu = device != DeviceChoice::Cpu;
        let (fits, engine, rule) = match self.train.engine {
            Some(EngineChoice::Cpu) => (
                !on_gpu && precision == Precision::F32,
                "cpu",
                "in f32 on the processor only",
            ),
            Some(EngineChoice::Cuda) => {
                nepa_model::cuda::check(&self.model)?;
                (
                    on_gpu && precision == Precision::Bf16,
                    "cuda",
                    "in bf16 on a GPU only",
                )
            }
            Some(EngineChoice::Autograd) | None => return Ok(()),
        };
        if fits {
            return Ok(());
        }
        Err(RecipeError::Engine {
            engine,
            rule,
            device,
            precision,
        })
    }

    /// NCCL connects GPUs alone.
    fn check_wire(&self) -> Result<(), RecipeError> {
        let engine = self.train.engine.unwrap_or_else(|| self.default_engine());
        self.require(
            engine == EngineChoice::Cuda || self.train.wire != Some(WireChoice::Nccl),
            "train.wire",
            &"\"nccl\"",
            "\"host\", or be left out, unless the engine is \"cuda\"",
        )
    }
}

fn one_of(
    first: &'static str,
    has_first: bool,
    second: &'static str,
    has_second: bool,
) -> Result<(), RecipeError> {
    if has_first == has_second {
        Err(RecipeError::OneOf {
            first,
            second,
            both: has_first,
        })
    } else {
        Ok(())
    }
}
