//! `nepa eval top1` and `nepa predict`: the numbers are those of the model on the very pixels, every label means the class that it should, and what cannot be is refused.
use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::{DType, Device, Tensor};
use nepa_model::{Classes, Nepa, NepaConfig, Weights};
use nepa_pipeline::random::Stream;
use nepa_pipeline::{AugmentConfig, CpuRenderer, Filter, Normalize};
use nepa_tests::classifiers::{Labels, labelled_images, write_classifier, write_pretrained};
use nepa_tests::photos::photo;
use nepa_tests::program::{assert_says, nepa, succeed, text};
use rand_core::SeedableRng;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Images of every shard: with batches of 8 the last one is incomplete.
const IMAGES: u32 = 27;
/// Classes of the usual model.
const NAMES: [&str; 7] = ["ant", "bee", "cat", "dog", "eel", "fox", "gnu"];

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

/// Pictures of different sizes and shapes: none is square.
fn images() -> Vec<Vec<u8>> {
    (0..IMAGES).map(|number| photo(100 + number)).collect()
}

/// A classifier in `model`, and shards to ask it about.
struct Place {
    folder: TempDir,
    config: NepaConfig,
    weights: Weights,
}

impl Place {
    fn new(classes: Classes<'_>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (config, weights) = write_classifier(&folder.path().join("model"), classes, 5);
        Self {
            folder,
            config,
            weights,
        }
    }

    fn named() -> Self {
        Self::new(Classes::Named(&names(&NAMES)))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn shard(&self, name: &str, labels: &Labels) -> PathBuf {
        let path = self.path(&format!("{name}.parquet"));
        std::fs::write(&path, labelled_images(&images(), labels)).unwrap();
        path
    }

    fn top1(&self, shard: &Path) -> Command {
        let mut command = nepa();
        command.args(["eval", "top1", "--checkpoint"]);
        command.arg(self.path("model")).arg("--test").arg(shard);
        command.args(["--batch", "8"]);
        command
    }

    /// What a command measures, and what it says.
    fn measured(&self, command: &mut Command) -> (Value, String) {
        let file = self.path("top1.json");
        let said = text(&succeed(command.arg("--json").arg(&file)));
        let value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        (value, said)
    }

    /// Logits of the model itself, by candle's operations, one image at a time.
    fn logits(&self, augment: &AugmentConfig, normalize: Normalize) -> Vec<Vec<f32>> {
        let model = Nepa::new(&self.config, &self.weights, DType::F32, &Device::Cpu).unwrap();
        let side = self.config.image_size;
        let augment = augment.build().unwrap();
        let mut renderer = CpuRenderer::<f32>::new(normalize, true);
        let of_image = |image: Vec<u8>| {
            let header = renderer.read_header(&image).unwrap();
            let mut stream = Stream::seed_from_u64(1);
            let plans = augment.draw(header.width, header.height, &mut stream);
            let mut pixels = vec![0.0; 3 * side * side];
            renderer
                .render_plan(&image, &plans[0], &mut pixels)
                .unwrap();
            let pixels = Tensor::from_vec(pixels, (1, 3, side, side), &Device::Cpu).unwrap();
            let logits = model.logits(&pixels).unwrap();
            logits.to_vec2::<f32>().unwrap().remove(0)
        };
        images().into_iter().map(of_image).collect()
    }
}

/// What the command must find, counted in the plainest way: top-1, top-5, mean loss.
fn expected(logits: &[Vec<f32>], classes: &[usize]) -> (usize, usize, f64) {
    let (mut first, mut five, mut loss) = (0, 0, 0.0);
    for (logits, &class) in logits.iter().zip(classes) {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        first += usize::from(order[0] == class);
        five += usize::from(order[..5.min(order.len())].contains(&class));
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        loss += sum.ln() - f64::from(logits[class]);
    }
    (first, five, loss / classes.len() as f64)
}

#[track_caller]
fn assert_scores(result: &Value, (first, five, loss): (usize, usize, f64), total: usize) {
    assert_eq!(result["top1"]["right"], json!(first), "{result}");
    assert_eq!(result["top1"]["total"], json!(total), "{result}");
    assert_eq!(result["top5"]["right"], json!(five), "{result}");
    let found = result["loss"].as_f64().unwrap();
    assert!((found - loss).abs() < 1e-5, "{found} for {loss}");
}

fn center(resize: u32, filter: Filter) -> AugmentConfig {
    AugmentConfig::CenterCrop {
        size: 28,
        resize,
        filter,
    }
}

fn squash(resize: u32, filter: Filter) -> AugmentConfig {
    AugmentConfig::Squash {
        size: 28,
        resize,
        filter,
    }
}

/// Labels such that the model is right on some images and wrong on others.
fn some_right(logits: &[Vec<f32>]) -> Vec<usize> {
    let number = |(index, logits): (usize, &Vec<f32>)| {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        order[[0, 0, 1, 6, 3][index % 5]]
    };
    logits.iter().enumerate().map(number).collect()
}

fn numbers(classes: &[usize]) -> Vec<Option<i64>> {
    classes.iter().map(|&class| Some(class as i64)).collect()
}

/// Pixels of every transform, accuracies, loss, table of classes: all as counted here.
#[test]
fn scores_are_those_of_the_model_on_the_very_pixels() {
    let place = Place::named();
    let half = Normalize::default();
    let usual = place.logits(&center(28, Filter::Bicubic), half);
    let classes = some_right(&usual);
    let shard = place.shard("plain", &Labels::Numbers(numbers(&classes), None));
    let (found, said) = place.measured(&mut place.top1(&shard));
    let result = &found["results"][0];
    assert_scores(result, expected(&usual, &classes), IMAGES as usize);
    assert_eq!(
        found["results"].as_array().unwrap().len(),
        1,
        "one kind of weights"
    );
    assert_says(
        &said,
        &[
            "raw weights",
            "27 test images",
            "by number, the model has 7 classes",
        ],
    );
    // Wilson's interval, and a row for each class that an image has.
    let interval = &result["top1"]["interval"];
    let share = result["top1"]["share"].as_f64().unwrap();
    assert!(interval[0].as_f64().unwrap() < share && share < interval[1].as_f64().unwrap());
    let rows = result["classes"].as_array().unwrap();
    let images: u64 = rows.iter().map(|row| row["images"].as_u64().unwrap()).sum();
    assert_eq!(images, u64::from(IMAGES));
    for row in rows {
        let class = row["class"].as_u64().unwrap() as usize;
        let of_class = classes.iter().zip(&usual).filter(|(own, _)| **own == class);
        let (own, logits): (Vec<_>, Vec<_>) = of_class.map(|(c, l)| (*c, l.clone())).unzip();
        let (first, five, _) = expected(&logits, &own);
        assert_eq!(row["name"], json!(NAMES[class]));
        let found = [&row["images"], &row["top1_right"], &row["top5_right"]];
        assert_eq!(found, [&json!(own.len()), &json!(first), &json!(five)]);
    }

    // 32 of 256, 29 of 235, 28 of 224 pixels.
    for (name, augment) in [
        ("shorter-256-bicubic", center(32, Filter::Bicubic)),
        ("squash-235-bicubic", squash(29, Filter::Bicubic)),
        ("squash-224-bilinear", squash(28, Filter::Bilinear)),
    ] {
        let logits = place.logits(&augment, half);
        assert!(logits != usual, "{name} gives other pixels");
        let (found, _) = place.measured(place.top1(&shard).args(["--transform", name]));
        let scores = expected(&logits, &classes);
        assert_scores(&found["results"][0], scores, IMAGES as usize);
    }

    // By default as the folder says; a crop of the squashed image, and a mean of its own.
    let settings = json!({
        "do_resize": true, "size": {"height": 32, "width": 32}, "resample": 3,
        "do_center_crop": true, "crop_size": {"height": 28, "width": 28},
        "do_rescale": true, "rescale_factor": 0.003_921_568_627_450_98, "do_normalize": true,
        "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4],
        "image_processor_type": "DeiTImageProcessor",
    });
    let preprocessor = place.path("model/preprocessor_config.json");
    std::fs::write(&preprocessor, settings.to_string()).unwrap();
    let normalize = Normalize {
        mean: [0.4, 0.5, 0.6],
        std: [0.2, 0.3, 0.4],
    };
    let (found, said) = place.measured(&mut place.top1(&shard));
    let logits = place.logits(&squash(32, Filter::Bicubic), normalize);
    let scores = expected(&logits, &classes);
    assert_scores(&found["results"][0], scores, IMAGES as usize);
    assert_says(
        &said,
        &[
            "squashed to 32 x 32, bicubic, centre 28",
            "preprocessor_config.json",
        ],
    );
    // One that cannot be done is refused with the way out.
    std::fs::write(&preprocessor, r#"{"size": 28, "resample": 1}"#).unwrap();
    refuse(&mut place.top1(&shard), &["resample = 1", "--transform"]);
    let named = ["--transform", "squash-224-bilinear"];
    let (found, _) = place.measured(place.top1(&shard).args(named));
    let logits = place.logits(&squash(28, Filter::Bilinear), half);
    let scores = expected(&logits, &classes);
    assert_scores(&found["results"][0], scores, IMAGES as usize);
}

#[track_caller]
fn refuse(command: &mut Command, parts: &[&str]) {
    let output = command.output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_says(&said, parts);
    let lines = String::from_utf8_lossy(&output.stderr);
    let wide = lines.lines().filter(|line| line.contains(' '));
    for line in wide.filter(|line| !line.starts_with("  python")) {
        assert!(line.chars().count() <= 120, "{line}");
    }
}

/// The same images and labels, said in every way, give the same scores.
#[test]
fn labels_mean_the_class_of_their_name_or_their_number() {
    let place = Place::named();
    let logits = place.logits(&center(28, Filter::Bicubic), Normalize::default());
    let classes = some_right(&logits);
    let scores = expected(&logits, &classes);
    let name = |class: &usize| NAMES[*class].to_owned();
    let by_name: Vec<_> = classes.iter().map(|class| Some(name(class))).collect();
    // Another order, and a class that no image has.
    let other = names(&["zebu", "gnu", "fox", "eel", "dog", "cat", "bee", "ant"]);
    let in_other = |class: &usize| Some(7 - *class as i64);
    let others: Vec<_> = classes.iter().map(in_other).collect();
    for (shard, labels, line) in [
        (
            "names",
            Labels::Names(by_name),
            "by name, the model has 7 classes",
        ),
        (
            "other",
            Labels::Numbers(others, Some(other)),
            "by name, 7 of 8 are among the model's 7",
        ),
        (
            "same",
            Labels::Numbers(numbers(&classes), Some(names(&NAMES))),
            "by name, 7 of 7 are among the model's 7",
        ),
    ] {
        let shard = place.shard(shard, &labels);
        let (found, said) = place.measured(&mut place.top1(&shard));
        assert_scores(&found["results"][0], scores, IMAGES as usize);
        assert_says(&said, &[line]);
    }
    // Names that the model has not: by number only if that is asked for.
    let synsets: Vec<_> = (0..7).map(|number| format!("n{number:08}")).collect();
    let shard = place.shard(
        "synsets",
        &Labels::Numbers(numbers(&classes), Some(synsets)),
    );
    refuse(
        &mut place.top1(&shard),
        &[
            "none of its classes",
            "`n00000000`",
            "`ant`",
            "--match number",
        ],
    );
    let (found, _) = place.measured(place.top1(&shard).args(["--match", "number"]));
    assert_scores(&found["results"][0], scores, IMAGES as usize);
}

/// Without a label: left out. Of a class that the model has not: wrong. Both are said.
#[test]
fn images_without_label_or_class_are_counted_and_said() {
    let place = Place::named();
    let logits = place.logits(&center(28, Filter::Bicubic), Normalize::default());
    let classes = some_right(&logits);
    let label = |(index, class): (usize, &usize)| match index {
        0 | 9 | 26 => None,
        3 | 4 => Some("zebu".to_owned()),
        _ => Some(NAMES[*class].to_owned()),
    };
    let labels: Vec<_> = classes.iter().enumerate().map(label).collect();
    let counted = |index: usize| ![0, 9, 26, 3, 4].contains(&index);
    let kept = logits.iter().zip(&classes).enumerate();
    let kept = kept
        .filter(|(index, _)| counted(*index))
        .map(|(_, pair)| pair);
    let (logits, classes): (Vec<_>, Vec<_>) = kept.map(|(l, c)| (l.clone(), *c)).unzip();
    let shard = place.shard("some", &Labels::Names(labels));
    let (found, said) = place.measured(&mut place.top1(&shard));
    // Two more are wrong, and have no loss.
    assert_scores(&found["results"][0], expected(&logits, &classes), 24);
    assert_eq!(found["images_without_label"], json!(3));
    assert_eq!(found["images_without_class"], json!(2));
    assert_says(
        &said,
        &[
            "3 of 27 test images have no label",
            "no class for 1 of the test set's labels",
            "`zebu` (2)",
        ],
    );
    // Bytes that are no image.
    let mut broken = images();
    broken[5] = b"no image".to_vec();
    let labels = Labels::Numbers(vec![Some(1); IMAGES as usize], None);
    let path = place.path("broken.parquet");
    std::fs::write(&path, labelled_images(&broken, &labels)).unwrap();
    let (found, said) = place.measured(&mut place.top1(&path));
    assert_eq!(found["images_undecodable"], json!(1));
    assert_eq!(found["images"], json!(26));
    assert_says(&said, &["1 of 27 test images cannot be decoded"]);
}

#[test]
fn what_cannot_be_matched_is_refused() {
    let unnamed = Place::new(Classes::Count(7));
    let words = Labels::Names((0..IMAGES).map(|_| Some("ant".to_owned())).collect());
    let shard = unnamed.shard("words", &words);
    refuse(&mut unnamed.top1(&shard), &["LABEL_0", "id2label"]);
    refuse(
        unnamed.top1(&shard).args(["--match", "number"]),
        &["names, not numbers", "--match"],
    );
    let place = Place::named();
    let beyond = Labels::Numbers((0..i64::from(IMAGES)).map(Some).collect(), None);
    let shard = place.shard("beyond", &beyond);
    refuse(
        &mut place.top1(&shard),
        &["the label 7", "7 classes, 0 to 6"],
    );
    refuse(
        place.top1(&shard).args(["--match", "name"]),
        &["numbers without names"],
    );
    let many = (0..9).map(|number| format!("thing {number}")).collect();
    let many = Labels::Numbers(vec![Some(0); IMAGES as usize], Some(many));
    let shard = place.shard("many", &many);
    refuse(
        place.top1(&shard).args(["--match", "number"]),
        &["it names 9 classes, the model has 7"],
    );
    let none = Labels::Names((0..IMAGES).map(|_| Some("zebu".to_owned())).collect());
    let shard = place.shard("none", &none);
    refuse(
        &mut place.top1(&shard),
        &["no image has a class of the model", "`zebu`"],
    );
    // Two classes of one name: whose label is it?
    let twins = Place::new(Classes::Named(&names(&["crane", "ant", "crane"])));
    let word = Labels::Names((0..IMAGES).map(|_| Some("crane".to_owned())).collect());
    let shard = twins.shard("word", &word);
    refuse(&mut twins.top1(&shard), &["two classes", "`crane`"]);
    // The very same list: by its numbers.
    let same = Labels::Numbers(
        vec![Some(2); IMAGES as usize],
        Some(names(&["crane", "ant", "crane"])),
    );
    let shard = twins.shard("same", &same);
    let (found, said) = twins.measured(&mut twins.top1(&shard));
    assert_eq!(found["results"][0]["classes"][0]["class"], json!(2));
    // Fewer than five classes have no five likeliest.
    assert_eq!(found["results"][0]["top5"], Value::Null);
    assert!(!said.contains("top-5"), "{said}");
}

#[test]
fn a_model_of_pretraining_has_no_classes() {
    let place = Place::named();
    write_pretrained(&place.path("pretrained"), 3);
    let shard = place.shard(
        "plain",
        &Labels::Numbers(vec![Some(0); IMAGES as usize], None),
    );
    let mut top1 = nepa();
    top1.args(["eval", "top1", "--test"]).arg(&shard);
    top1.arg("--checkpoint").arg(place.path("pretrained"));
    let advice = [
        "no classifier",
        "nepa finetune",
        "nepa eval knn",
        "nepa eval linear",
    ];
    refuse(&mut top1, &advice);
    let mut predict = nepa();
    predict
        .arg("predict")
        .arg(place.path("pretrained"))
        .arg(&shard);
    refuse(&mut predict, &advice);
    refuse(
        place.top1(&shard).args(["--weights", "ema"]),
        &["one kind of weights"],
    );
}

/// Every image is classified, whatever its format; a bad one is said, and the others are done.
#[test]
fn predict_says_the_classes_of_every_image_that_can_be_read() {
    let place = Place::named();
    let mut files = Vec::new();
    let jpeg = photo(100);
    let decoded = nepa_pipeline::decode_rgb(&jpeg, true).unwrap();
    let decoded = image::RgbImage::from_raw(decoded.width, decoded.height, decoded.data);
    let decoded = decoded.unwrap();
    for suffix in ["jpg", "png", "webp", "bmp"] {
        let path = place.path(&format!("photo.{suffix}"));
        match suffix {
            "jpg" => std::fs::write(&path, &jpeg).unwrap(),
            _ => decoded.save(&path).unwrap(),
        }
        files.push(path);
    }
    std::fs::write(place.path("broken.jpg"), &jpeg[..jpeg.len() / 2]).unwrap();
    let predict = |files: &[PathBuf], arguments: &[&str]| {
        let mut command = nepa();
        command.arg("predict").arg(place.path("model"));
        command.args(files).args(arguments);
        command.output().unwrap()
    };
    let output = predict(&files, &["--json", "--top", "7"]);
    assert!(output.status.success(), "{}", text(&output));
    let lines = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), files.len());
    let logits = &place.logits(&center(28, Filter::Bicubic), Normalize::default())[0];
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
    for (line, file) in lines.iter().zip(&files) {
        assert_eq!(line["image"], json!(file.to_str().unwrap()));
        let classes = line["classes"].as_array().unwrap();
        assert_eq!(classes.len(), 7);
        let probability = |entry: &Value| entry["probability"].as_f64().unwrap();
        assert!(classes.is_sorted_by(|a, b| probability(a) >= probability(b)));
        let total: f64 = classes.iter().map(probability).sum();
        assert!((total - 1.0).abs() < 1e-9, "{total}");
        for entry in classes.iter().filter(|_| file.ends_with("photo.jpg")) {
            let class = entry["class"].as_u64().unwrap() as usize;
            assert_eq!(entry["name"], json!(NAMES[class]));
            let expected = f64::from(logits[class]).exp() / sum;
            assert!((probability(entry) - expected).abs() < 1e-6);
        }
    }

    // For people, the five likeliest.
    let broken = [
        place.path("broken.jpg"),
        place.path("absent.jpg"),
        files[0].clone(),
    ];
    let output = predict(&broken, &[]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_says(
        &said,
        &["cannot decode", "broken.jpg", "cannot read", "absent.jpg"],
    );
    let shown = said.lines().filter(|line| line.contains(" %  ")).count();
    assert_eq!(shown, 5, "{said}");
    let output = predict(&broken, &["--json"]);
    let lines = String::from_utf8(output.stdout).unwrap();
    let errors = lines
        .lines()
        .filter(|line| line.contains("\"error\""))
        .count();
    assert_eq!(
        (output.status.code(), errors, lines.lines().count()),
        (Some(1), 2, 3)
    );
}
