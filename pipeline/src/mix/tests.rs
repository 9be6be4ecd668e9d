use super::*;
use crate::golden_tests as golden;
use crate::random::{Purpose, Stream, micro_batch_stream};

fn stream(step: u64) -> Stream {
    micro_batch_stream(7, step, 0, Purpose::MixImages)
}

const BOTH: MixConfig = MixConfig {
    mixup_alpha: 0.8,
    cutmix_alpha: 1.0,
    probability: 1.0,
    switch_probability: 0.5,
    mode: MixMode::Batch,
    label_smoothing: 0.1,
};

fn near(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let pairs = found.iter().zip(expected);
    let off = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(off <= 1e-6, "{what}: {off}");
}

#[test]
fn boxes_are_timms() {
    let Some(golden) = golden::json("mix.json") else {
        return;
    };
    let boxes = golden["boxes"].as_array().unwrap();
    for row in boxes {
        let number = |i: usize| row[i].as_u64().unwrap() as u32;
        let cut = CutBox::around(number(0), row[1].as_f64().unwrap(), number(2), number(3));
        let CutBox {
            top,
            bottom,
            left,
            right,
        } = cut;
        assert_eq!(
            [top, bottom, left, right],
            [4, 5, 6, 7].map(number),
            "{row}"
        );
        let plan = MixPlan {
            side: number(0),
            images: vec![ImageMix::CutMix(cut); 2],
            label_smoothing: 0.0,
        };
        assert!(
            (plan.lambda(0) - row[8].as_f64().unwrap()).abs() < 1e-12,
            "{row}"
        );
    }
    assert_eq!(boxes.len(), 99);
}

/// What timm was told to draw in a case of the golden data, as a plan.
fn plan_of(case: &serde_json::Value, side: u32, images: usize) -> MixPlan {
    let one = |lambda: f64, center: &serde_json::Value| match center.as_array() {
        Some(center) => {
            let [y, x] = [0, 1].map(|i| center[i].as_u64().unwrap() as u32);
            ImageMix::CutMix(CutBox::around(side, lambda, y, x))
        }
        None => ImageMix::Mixup { lambda },
    };
    let mut mixes: Vec<_> = if let Some(lambdas) = case["lam_drawn"].as_array() {
        let centers = case["centres"].as_array().unwrap();
        let both = lambdas.iter().zip(centers);
        both.map(|(lambda, center)| one(lambda.as_f64().unwrap(), center))
            .collect()
    } else {
        let center = match &case["cy"] {
            serde_json::Value::Null => serde_json::Value::Null,
            y => serde_json::json!([y, case["cx"]]),
        };
        let lambda = case["drawn_lam"].as_f64().or(case["lam"].as_f64());
        vec![one(lambda.unwrap(), &center); images]
    };
    if case["mode"] == "pair" {
        mixes = mixes.iter().chain(mixes.iter().rev()).copied().collect();
    }
    MixPlan {
        side,
        images: mixes,
        label_smoothing: case["smoothing"].as_f64().unwrap(),
    }
}

#[test]
fn pixels_and_targets_are_timms_in_all_modes() {
    let (Some(index), Some(tensors)) =
        (golden::json("mix.json"), golden::tensors("mix.safetensors"))
    else {
        return;
    };
    let pixels = tensors["pixels"].f32();
    let labels = tensors["labels"].i64();
    let labels = labels.iter().map(|&label| label as u32).collect::<Vec<_>>();
    let side = tensors["pixels"].shape[2];
    let len = 3 * side * side;
    let num_classes = index["classes"].as_u64().unwrap() as usize;
    let cases = index["cases"].as_array().unwrap();
    for case in cases {
        let key = case["key"].as_str().unwrap();
        let plan = plan_of(case, side as u32, labels.len());
        let expected = tensors[&format!("{key}.pixels")].f32();
        let mut in_place = pixels.clone();
        plan.apply(&mut in_place);
        near(&in_place, &expected, key);
        let images = pixels.chunks_exact(len).collect::<Vec<_>>();
        let mut gathered = vec![f32::NAN; pixels.len()];
        plan.gather(&images, &mut gathered);
        assert_eq!(gathered, in_place, "{key}");
        let targets = plan.targets(&labels, num_classes).unwrap();
        near(&targets, &tensors[&format!("{key}.targets")].f32(), key);
    }
    assert_eq!(cases.len(), 12);
}

#[test]
fn soft_targets_are_timms() {
    let Some(index) = golden::json("mix.json") else {
        return;
    };
    let cases = index["soft_targets"].as_array().unwrap();
    for case in cases {
        let number = |key: &str| case[key].as_f64().unwrap();
        let plan = MixPlan {
            side: 1,
            images: vec![
                ImageMix::Mixup {
                    lambda: number("lam")
                };
                2
            ],
            label_smoothing: number("smoothing"),
        };
        let classes = number("classes") as usize;
        let targets = plan.targets(&[0, 1], classes).unwrap();
        near(
            &targets[..2],
            &["at_own", "at_other"].map(|key| number(key) as f32),
            &case.to_string(),
        );
        if let Some(elsewhere) = case["elsewhere"].as_f64() {
            near(
                &targets[2..classes],
                &vec![elsewhere as f32; classes - 2],
                &case.to_string(),
            );
        }
        // The partner's target is the same seen from the other side.
        near(
            &[targets[classes + 1], targets[classes]],
            &targets[..2],
            "partner",
        );
    }
    assert!(cases.len() > 10);
}

#[test]
fn draws_follow_the_settings() {
    let steps = 20_000;
    let lambdas_of = |config: &MixConfig| {
        let (mut mixup, mut cutmix, mut alone) = (Vec::new(), Vec::new(), 0);
        for step in 0..steps {
            let plan = MixPlan::draw(config, 4, 224, &mut stream(step)).unwrap();
            assert!(plan.images.iter().all(|image| *image == plan.images[0]));
            match plan.images[0] {
                ImageMix::Alone => alone += 1,
                ImageMix::Mixup { lambda } => mixup.push(lambda),
                ImageMix::CutMix(cut) => {
                    assert!(cut.bottom <= 224 && cut.right <= 224);
                    assert!(cut.top <= cut.bottom && cut.left <= cut.right);
                    cutmix.push(plan.lambda(0));
                }
            }
        }
        (mixup, cutmix, alone)
    };
    let (mixup, cutmix, alone) = lambdas_of(&BOTH);
    assert_eq!(alone, 0);
    let share = cutmix.len() as f64 / steps as f64;
    assert!((share - 0.5).abs() < 0.015, "{share}");
    let n = mixup.len() as f64;
    let variance = mixup.iter().map(|x| (x - 0.5).powi(2)).sum::<f64>() / n;
    // Beta(0.8, 0.8): 1 / (4 * 2.6).
    assert!((variance - 0.09615).abs() < 0.004, "{variance}");
    // Boxes lose what lies outside: the mean of lambda lies above a half.
    let mean = cutmix.iter().sum::<f64>() / cutmix.len() as f64;
    assert!((mean - 0.7).abs() < 0.05, "{mean}");

    let rarely = MixConfig {
        probability: 0.2,
        switch_probability: 1.0,
        ..BOTH
    };
    let (mixup, cutmix, alone) = lambdas_of(&rarely);
    assert!(mixup.is_empty());
    assert!(
        (f64::from(alone) / steps as f64 - 0.8).abs() < 0.015,
        "{alone}"
    );
    assert_eq!(cutmix.len() as u64 + u64::from(alone as u32), steps);
    let one = |mixup_alpha, cutmix_alpha| MixConfig {
        mixup_alpha,
        cutmix_alpha,
        ..BOTH
    };
    assert!(lambdas_of(&one(0.8, 0.0)).1.is_empty());
    assert!(lambdas_of(&one(0.0, 1.0)).0.is_empty());
    assert_eq!(u64::from(lambdas_of(&one(0.0, 0.0)).2 as u32), steps);
}

#[test]
fn modes_draw_for_the_batch_an_image_or_a_pair() {
    let images = |mode| {
        let config = MixConfig { mode, ..BOTH };
        MixPlan::draw(&config, 8, 16, &mut stream(1))
            .unwrap()
            .images
    };
    let different = |images: &[ImageMix]| {
        let found = images.iter().enumerate();
        found.filter(|(i, mix)| !images[..*i].contains(mix)).count()
    };
    assert_eq!(different(&images(MixMode::Batch)), 1);
    assert!(different(&images(MixMode::Elem)) >= 7);
    let pairs = images(MixMode::Pair);
    assert!(different(&pairs) >= 3 && different(&pairs) <= 4);
    assert!((0..8).all(|i| pairs[i] == pairs[7 - i]));
}

#[test]
fn a_stream_is_one_micro_batchs_own() {
    let plan = |seed, step, micro_batch| {
        let mut stream = micro_batch_stream(seed, step, micro_batch, Purpose::MixImages);
        MixPlan::draw(&BOTH, 2, 224, &mut stream).unwrap()
    };
    assert_eq!(plan(1, 2, 3), plan(1, 2, 3));
    let all = [
        plan(1, 2, 3),
        plan(2, 2, 3),
        plan(1, 3, 3),
        plan(1, 2, 4),
        plan(1, 3, 2),
    ];
    for (i, plan) in all.iter().enumerate() {
        assert!(!all[..i].contains(plan), "{i}");
    }
    let text = serde_json::to_string(&all).unwrap();
    assert_eq!(serde_json::from_str::<Vec<MixPlan>>(&text).unwrap(), all);
}

#[test]
fn an_odd_number_is_refused_if_it_could_be_mixed() {
    let error = MixPlan::draw(&BOTH, 5, 8, &mut stream(0)).unwrap_err();
    assert_eq!(error, MixError::Odd { images: 5 });
    assert!(error.to_string().contains("even number"), "{error}");
    for mode in [MixMode::Batch, MixMode::Elem, MixMode::Pair] {
        for (probability, alpha) in [(0.0, 1.0), (1.0, 0.0)] {
            let config = MixConfig {
                mixup_alpha: alpha,
                cutmix_alpha: alpha,
                probability,
                mode,
                ..BOTH
            };
            let plan = MixPlan::draw(&config, 5, 2, &mut stream(0)).unwrap();
            assert_eq!(plan.images, [ImageMix::Alone; 5]);
            let pixels = (0..5 * 12).map(|value| value as f32).collect::<Vec<_>>();
            let mut mixed = pixels.clone();
            plan.apply(&mut mixed);
            assert_eq!(mixed, pixels);
            // Targets are smoothed all the same.
            let targets = plan.targets(&[0, 1, 2, 3, 3], 4).unwrap();
            near(
                &targets[..4],
                &[0.925, 0.025, 0.025, 0.025],
                "smoothing alone",
            );
        }
    }
}

#[test]
fn impossible_settings_and_labels_are_refused_by_name() {
    let with = |change: fn(&mut MixConfig)| {
        let mut config = BOTH;
        change(&mut config);
        let error = MixPlan::draw(&config, 2, 8, &mut stream(0)).unwrap_err();
        error.to_string()
    };
    for (message, field) in [
        (
            with(|config| config.mixup_alpha = -1.0),
            "mixup_alpha is -1",
        ),
        (
            with(|config| config.cutmix_alpha = f64::NAN),
            "cutmix_alpha is NaN",
        ),
        (
            with(|config| config.cutmix_alpha = f64::INFINITY),
            "cutmix_alpha is inf",
        ),
        (
            with(|config| config.probability = 1.5),
            "probability is 1.5",
        ),
        (
            with(|config| config.switch_probability = -0.5),
            "switch_probability is -0.5",
        ),
        (
            with(|config| config.label_smoothing = 1.0),
            "label_smoothing is 1",
        ),
    ] {
        assert!(
            message.starts_with(field) && message.contains("must be"),
            "{message}"
        );
    }
    assert!(serde_json::from_str::<MixConfig>(r#"{"alpha": 1}"#).is_err());
    let config = serde_json::from_str::<MixConfig>(r#"{"mode": "elem"}"#).unwrap();
    let expected = MixConfig {
        mode: MixMode::Elem,
        ..MixConfig::default()
    };
    assert_eq!(config, expected);

    let plan = MixPlan::draw(&BOTH, 2, 8, &mut stream(0)).unwrap();
    let error = plan.targets(&[3, 10], 10).unwrap_err();
    assert!(error.to_string().contains("image 1") && error.to_string().contains("label 10"));
    let error = plan.targets(&[3], 10).unwrap_err();
    assert_eq!(
        error,
        MixError::Labels {
            labels: 1,
            images: 2
        }
    );
}
