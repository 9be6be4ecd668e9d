//! `preprocessor_config.json`, in which Hugging Face's image processors say what becomes of an
//! image: read as a [`Transform`] and a [`Normalize`] that give the very pixels, or refused with
//! the reason; written as the published folders have it.
use std::path::Path;

use nepa_pipeline::{Filter, Normalize};
use serde_json::{Map, Value, json};

use super::error::WeightsError;
use super::names::PREPROCESSOR;
use crate::checkpoint::io;
use crate::transform::{Resize, Transform};

/// Keys that change no pixel here: names, and conversions that are always done.
const WITHOUT_EFFECT: [&str; 10] = [
    "auto_map",
    "data_format",
    "device",
    "do_convert_rgb",
    "feature_extractor_type",
    "image_processor_type",
    "input_data_format",
    "processor_class",
    "return_tensors",
    "size_divisor",
];
const KNOWN: [&str; 10] = [
    "crop_size",
    "do_center_crop",
    "do_normalize",
    "do_rescale",
    "do_resize",
    "image_mean",
    "image_std",
    "resample",
    "rescale_factor",
    "size",
];

/// A `preprocessor_config.json` as it lies in a folder.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Preprocessor {
    file: String,
    keys: Map<String, Value>,
}

impl Preprocessor {
    /// Reads that of a folder, if it has one.
    pub(super) fn read(folder: &Path) -> Result<Option<Self>, WeightsError> {
        let path = folder.join(PREPROCESSOR);
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => read.map_err(io("read", &path))?,
        };
        let file = path.display().to_string();
        match serde_json::from_slice(&text) {
            Ok(keys) => Ok(Some(Self { file, keys })),
            Err(error) => Err(WeightsError::Preprocessor {
                problem: format!("not a JSON object of settings: {error}"),
                file,
            }),
        }
    }

    /// As in the published folders, which squash an image to the model's size: for an export.
    pub(crate) fn squash(image_size: u32, filter: Filter, normalize: Normalize) -> Self {
        let resample = match filter {
            Filter::Bilinear => 2,
            Filter::Bicubic => 3,
        };
        let settings = json!({
            "do_convert_rgb": null, "do_normalize": true, "do_rescale": true, "do_resize": true,
            "image_mean": normalize.mean.map(short), "image_processor_type": "ViTImageProcessor",
            "image_std": normalize.std.map(short), "resample": resample,
            "rescale_factor": 1.0 / 255.0,
            "size": {"height": image_size, "width": image_size},
        });
        let Value::Object(keys) = settings else {
            unreachable!("written as an object");
        };
        Self {
            file: PREPROCESSOR.to_owned(),
            keys,
        }
    }

    /// As text, its keys sorted.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(&self.keys).expect("JSON is plain data");
        text.push(b'\n');
        text
    }

    /// What it makes of an image for a model of so many pixels.
    pub(crate) fn pixels(&self, image_size: u32) -> Result<(Transform, Normalize), WeightsError> {
        let transform = self.transform().and_then(|transform| {
            if transform.size == image_size {
                return Ok(transform);
            }
            let size = transform.size;
            Err(format!(
                "it gives {size} pixels, the model takes {image_size}"
            ))
        });
        let transform = transform.map_err(|problem| WeightsError::Preprocessor {
            file: self.file.clone(),
            problem: format!(
                "these pixels cannot be computed exactly here: {problem}\ntip: --transform takes \
                 one of the published transforms instead"
            ),
        });
        Ok((transform?, self.normalize()?))
    }

    /// Its normalisation alone.
    pub(crate) fn normalize(&self) -> Result<Normalize, WeightsError> {
        let normalize = self.scaling();
        normalize.map_err(|problem| WeightsError::Preprocessor {
            file: self.file.clone(),
            problem: format!("{problem}\ntip: correct it there"),
        })
    }

    fn transform(&self) -> Result<Transform, String> {
        for (key, value) in &self.keys {
            let known = KNOWN.contains(&key.as_str()) || WITHOUT_EFFECT.contains(&key.as_str());
            let off = value.is_null() || value == &json!(false);
            if !known && !off && !key.starts_with('_') {
                return Err(format!("{key} = {value} is not known"));
            }
        }
        if !self.flag("do_resize", true)? {
            return Err("do_resize is false, so that images keep their sizes".to_owned());
        }
        let filter = match self.keys.get("resample") {
            None | Some(Value::Null) => Filter::Bilinear,
            Some(value) if value.as_u64() == Some(2) => Filter::Bilinear,
            Some(value) if value.as_u64() == Some(3) => Filter::Bicubic,
            Some(value) => {
                return Err(format!(
                    "resample = {value}; only 2 (bilinear) and 3 (bicubic) are"
                ));
            }
        };
        let resize = self.resize()?;
        if !self.flag("do_center_crop", false)? {
            return match resize {
                Resize::Squash(size) => Ok(Transform {
                    resize,
                    size,
                    filter,
                }),
                Resize::ShorterSide(_) => {
                    Err("without do_center_crop, images are not square".to_owned())
                }
            };
        }
        let size = square(self.keys.get("crop_size"), "crop_size")?;
        match resize {
            Resize::Squash(resized) if resized < size => Err(format!(
                "crop_size {size} is more than size {resized}, which adds a black frame"
            )),
            // That processor cuts half a pixel to the left, this project to the even side.
            Resize::Squash(resized) if (resized - size) % 4 == 3 => Err(format!(
                "the centre of {size} in {resized} pixels lies one pixel off"
            )),
            Resize::Squash(_) => Ok(Transform {
                resize,
                size,
                filter,
            }),
            Resize::ShorterSide(_) => Err(
                "after size.shortest_edge, the centre of images of some sizes lies one pixel off"
                    .to_owned(),
            ),
        }
    }

    fn resize(&self) -> Result<Resize, String> {
        let size = self.keys.get("size");
        if let Some(Value::Object(sides)) = size
            && let Some(side) = sides.get("shortest_edge")
        {
            if sides.len() > 1 {
                return Err(format!("size = {}", json!(sides)));
            }
            return Ok(Resize::ShorterSide(pixels(side, "size.shortest_edge")?));
        }
        // A bare number is a square to ViT's processor, the shorter side to others.
        if size.is_some_and(Value::is_number) && !self.is_of_vit() {
            return Err("size is a number, which is not the same to all processors".to_owned());
        }
        Ok(Resize::Squash(square(size, "size")?))
    }

    fn is_of_vit(&self) -> bool {
        let kind = ["image_processor_type", "feature_extractor_type"];
        let kind = kind.iter().find_map(|key| self.keys.get(*key)?.as_str());
        kind.is_none_or(|kind| kind.starts_with("ViT"))
    }

    /// `(value * factor - mean) / std` of values from 0 to 255, as [`Normalize`] has it of values
    /// from 0 to 1.
    fn scaling(&self) -> Result<Normalize, String> {
        let factor = match self.keys.get("rescale_factor") {
            _ if !self.flag("do_rescale", true)? => 1.0,
            None | Some(Value::Null) => 1.0 / 255.0,
            Some(value) => value
                .as_f64()
                .ok_or_else(|| format!("rescale_factor = {value} is no number"))?,
        };
        // 1 / 255 itself, however many of its digits are written.
        let scale = 255.0 * factor;
        let scale = if (scale - 1.0).abs() < 1e-6 {
            1.0
        } else {
            scale
        };
        let (mean, std) = if self.flag("do_normalize", true)? {
            (self.channels("image_mean")?, self.channels("image_std")?)
        } else {
            ([0.0; 3], [1.0; 3])
        };
        let normalize = Normalize {
            mean: mean.map(|mean| (mean / scale) as f32),
            std: std.map(|std| (std / scale) as f32),
        };
        let usable = |value: &f32| value.is_finite();
        if !normalize.mean.iter().all(usable)
            || !normalize.std.iter().all(|std| usable(std) && *std != 0.0)
        {
            return Err("image_std or rescale_factor is 0, or too large".to_owned());
        }
        Ok(normalize)
    }

    /// A value for each of red, green and blue; one number is that of all.
    fn channels(&self, key: &str) -> Result<[f64; 3], String> {
        let value = match self.keys.get(key) {
            None | Some(Value::Null) => return Ok([0.5; 3]),
            Some(value) => value,
        };
        let numbers: Option<Vec<f64>> = match value {
            Value::Array(values) => values.iter().map(Value::as_f64).collect(),
            value => value.as_f64().map(|number| vec![number; 3]),
        };
        numbers
            .and_then(|numbers| numbers.try_into().ok())
            .ok_or_else(|| format!("{key} = {value}; three numbers are, for red, green and blue"))
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool, String> {
        match self.keys.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(value) => Err(format!("{key} = {value} is neither true nor false")),
        }
    }
}

/// As few digits as tell it apart from other numbers of its kind.
fn short(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

/// A number, or height and width that are equal.
fn square(value: Option<&Value>, key: &str) -> Result<u32, String> {
    match value {
        None | Some(Value::Null) => Err(format!("{key} is not there")),
        Some(Value::Object(sides)) => {
            let side = |name: &str| match sides.get(name) {
                Some(side) => pixels(side, &format!("{key}.{name}")),
                None => Err(format!("{key} = {}", json!(sides))),
            };
            let (height, width) = (side("height")?, side("width")?);
            if height == width {
                Ok(height)
            } else {
                Err(format!("{key} is {height} x {width}, which is not square"))
            }
        }
        Some(value) => pixels(value, key),
    }
}

fn pixels(value: &Value, key: &str) -> Result<u32, String> {
    let pixels = value
        .as_u64()
        .filter(|pixels| (1..=16_384).contains(pixels));
    pixels
        .map(|pixels| pixels as u32)
        .ok_or_else(|| format!("{key} = {value}; a number of pixels is from 1 to 16384"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(settings: &Value) -> Result<(Transform, Normalize), String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(PREPROCESSOR), settings.to_string()).unwrap();
        let read = Preprocessor::read(folder.path()).unwrap().unwrap();
        read.pixels(224).map_err(|error| error.to_string())
    }

    #[test]
    fn the_published_file_is_read_as_it_is_written() {
        let normalize = Normalize {
            mean: [0.485, 0.456, 0.406],
            std: [0.229, 0.224, 0.225],
        };
        let written = Preprocessor::squash(224, Filter::Bilinear, normalize);
        let text = String::from_utf8(written.to_json()).unwrap();
        assert!(text.contains("0.485") && !text.contains("0.4850"), "{text}");
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["rescale_factor"], json!(0.003_921_568_627_450_98));
        let (transform, read) = read(&value).unwrap();
        assert_eq!(transform.to_string(), "squashed to 224 x 224, bilinear");
        assert_eq!(read, normalize);
    }

    /// Every way of saying the same, and what is said otherwise.
    #[test]
    fn settings_become_the_pixels_that_they_mean() {
        let of = |settings: Value| read(&settings).unwrap();
        let half = Normalize::default();
        let vit = of(json!({"size": 224}));
        assert_eq!(vit.0.to_string(), "squashed to 224 x 224, bilinear");
        assert_eq!(vit.1, half);
        let deit = of(json!({
            "size": {"height": 256, "width": 256}, "resample": 3, "do_center_crop": true,
            "crop_size": {"height": 224, "width": 224}, "image_processor_type": "DeiTImageProcessor",
            "image_mean": 0.5, "image_std": [0.5, 0.5, 0.5],
        }));
        assert_eq!(
            deit.0.to_string(),
            "squashed to 256 x 256, bicubic, centre 224"
        );
        assert_eq!(deit.1, half);
        // Values from 0 to 255, normalised in their own unit.
        let unscaled = of(
            json!({"size": 224, "do_rescale": false, "image_mean": 127.5,
            "image_std": 127.5}),
        );
        assert_eq!(unscaled.1, half);
        let raw = of(json!({"size": 224, "do_normalize": false}));
        assert_eq!((raw.1.mean, raw.1.std), ([0.0; 3], [1.0; 3]));
        let wide = of(
            json!({"size": 224, "rescale_factor": 1.0 / 127.5, "image_mean": 1.0,
            "image_std": 1.0}),
        );
        assert_eq!(wide.1, half);
    }

    #[test]
    fn what_cannot_be_done_exactly_is_refused_with_the_reason() {
        for (settings, reason) in [
            (
                json!({"size": 224, "do_resize": false}),
                "do_resize is false",
            ),
            (json!({"size": 224, "resample": 1}), "resample = 1"),
            (
                json!({"size": 384}),
                "gives 384 pixels, the model takes 224",
            ),
            (json!({}), "size is not there"),
            (
                json!({"size": {"height": 224, "width": 200}}),
                "224 x 200, which is not square",
            ),
            (
                json!({"size": {"shortest_edge": 224}}),
                "images are not square",
            ),
            (
                json!({"size": {"shortest_edge": 256}, "do_center_crop": true, "crop_size": 224}),
                "one pixel off",
            ),
            (
                json!({"size": 235, "do_center_crop": true, "crop_size": 224}),
                "one pixel off",
            ),
            (
                json!({"size": 200, "do_center_crop": true, "crop_size": 224}),
                "black frame",
            ),
            (
                json!({"size": 224, "image_processor_type": "CLIPImageProcessor"}),
                "not the same to all processors",
            ),
            (json!({"size": 224, "crop_pct": 0.9}), "crop_pct = 0.9"),
            (json!({"size": 224, "image_std": 0.0}), "image_std"),
            (
                json!({"size": 224, "rescale_factor": 0.0}),
                "rescale_factor",
            ),
            (json!({"size": 224, "image_mean": [0.5]}), "three numbers"),
            (json!({"size": 224, "do_rescale": "yes"}), "do_rescale"),
            (json!({"size": 1_000_000}), "from 1 to 16384"),
        ] {
            let message = read(&settings).unwrap_err();
            assert!(message.contains(reason), "{settings}: {message}");
            assert!(message.contains("tip: "), "{message}");
        }
    }
}
