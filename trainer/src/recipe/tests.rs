//! Tests of recipes: all that come with the program, overrides, and what is refused.
use std::path::Path;

use super::dotted::dotted;
use super::*;

const TINY: &str = include_str!("../../recipes/tiny.toml");

fn parse(sets: &[&str]) -> Result<Recipe, RecipeError> {
    let sets = sets.iter().map(ToString::to_string).collect::<Vec<_>>();
    Recipe::parse(TINY, Path::new("tiny.toml"), &sets)
}

fn checked(sets: &[&str]) -> Result<Recipe, RecipeError> {
    let mut recipe = parse(sets)?;
    recipe.data.urls = vec!["/data".to_owned()];
    recipe.check(1)?;
    Ok(recipe)
}

/// The error with its causes, as the program prints it.
fn text(error: RecipeError) -> String {
    crate::console::messages::with_causes(&error.into())
}

fn message(sets: &[&str]) -> String {
    text(checked(sets).expect_err("must be refused"))
}

/// `docs/recipe.md` shows every key, and its example is a recipe.
#[test]
fn every_key_is_documented() {
    let page = include_str!("../../../docs/recipe.md");
    let examples = page.split("```toml").skip(1);
    let examples = examples.map(|rest| rest.split("```").next().unwrap());
    let [pretraining, finetuning] = examples.collect::<Vec<_>>()[..] else {
        panic!("one example of each kind");
    };
    let path = Path::new("docs/recipe.md");
    let recipe = Recipe::parse(pretraining, path, &[]).unwrap();
    recipe.check(1).unwrap();
    // The sections that fine-tuning has beside those.
    let mut table: toml::Table = pretraining.parse().unwrap();
    for (section, value) in finetuning.parse::<toml::Table>().unwrap() {
        match (table.get_mut(&section), value) {
            (Some(toml::Value::Table(there)), toml::Value::Table(more)) => {
                merge(there, more);
            }
            (_, value) => drop(table.insert(section, value)),
        }
    }
    let whole = toml::to_string(&table).unwrap();
    let draft = Draft::parse(&whole, path, &[]).unwrap();
    let weights = NepaConfig::base_14();
    draft.finetuning(&weights).unwrap().check(1).unwrap();
    let mut num_keys = 0;
    for section in keys::SECTIONS {
        let example = if section.starts_with("finetune") {
            finetuning
        } else {
            pretraining
        };
        let prefix = dotted(section, "");
        for key in keys::keys_of(section, &table) {
            num_keys += 1;
            let shown = |line: &str| {
                let line = line.trim_start_matches("# ");
                line.starts_with(&format!("{key} "))
                    || line.starts_with(&format!("[{prefix}{key}]"))
            };
            let inline = section == "data.normalize" && example.contains(&format!("{key} = ["));
            let elsewhere = finetuning.lines().any(shown);
            assert!(
                example.lines().any(shown) || inline || elsewhere,
                "{prefix}{key} is not in docs/recipe.md"
            );
        }
    }
    assert!(num_keys > 80, "only {num_keys} keys were looked for");
}

fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(there)), toml::Value::Table(more)) => merge(there, more),
            (_, value) => drop(into.insert(key, value)),
        }
    }
}

#[test]
fn zero_switches_off_what_is_optional() {
    let recipe = parse(&[
        "optimizer.max_grad_norm=0",
        "optimizer.ema_decay=0.0",
        "checkpoint.every_minutes=0",
    ]);
    let recipe = recipe.unwrap();
    let off = |recipe: &OptimizerConfig, checkpoint: &CheckpointSection| {
        (
            recipe.max_grad_norm,
            recipe.ema_decay,
            checkpoint.every_minutes,
        ) == (None, None, None)
    };
    assert!(off(&recipe.optimizer, &recipe.checkpoint));
    // And stays so in what a run saves.
    let resolved = recipe.resolve(100, "digest".to_owned()).unwrap();
    let saved: ResolvedRecipe = toml::from_str(&resolved.to_toml()).unwrap();
    assert!(off(&saved.optimizer, &saved.checkpoint));
    let json = serde_json::to_string(&resolved).unwrap();
    assert_eq!(
        serde_json::from_str::<ResolvedRecipe>(&json).unwrap(),
        resolved
    );
    assert_eq!(parse(&[]).unwrap().checkpoint.every_minutes, Some(30.0));
}

#[test]
fn every_recipe_parses_and_is_sound() {
    for built_in in built_in::BUILT_IN {
        let name = built_in.name;
        let draft = Draft::read(Path::new(name), &[]).unwrap_or_else(|e| panic!("{e}"));
        // What a recipe fine-tunes is another's model.
        let finetunes = name.strip_suffix("-finetune");
        let recipe = match finetunes {
            Some(pretrained) => {
                let pretrained = Recipe::read(Path::new(pretrained), &[]);
                let pretrained = pretrained.unwrap_or_else(|e| panic!("{name}: {e}"));
                draft.finetuning(&pretrained.model)
            }
            None => draft.pretraining(),
        };
        let mut recipe = recipe.unwrap_or_else(|e| panic!("{name}: {e}"));
        recipe.data.urls = vec!["/data".to_owned()];
        recipe.check(1).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(recipe.name, name);
        for heading in ["Hardware", "Time"] {
            let line = built_in.head(heading);
            assert!((1..=68).contains(&line.len()), "{name}: {heading}: {line}");
        }
        assert!(
            (20..=74).contains(&built_in.about().len()),
            "{name}: {}",
            built_in.about()
        );
        let command = match finetunes {
            Some(_) => format!("nepa finetune {name} "),
            None => format!("nepa pretrain {name} "),
        };
        let head = built_in.text;
        assert!(
            head.contains(&command) && head.contains("# Result:"),
            "{name}"
        );
    }
}

#[test]
fn all_recipes_of_the_folder_are_built_in() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
    let entries = std::fs::read_dir(folder).unwrap();
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        path.file_stem().unwrap().to_string_lossy().into_owned()
    };
    let mut there = entries.map(name).collect::<Vec<_>>();
    let mut listed = built_in::BUILT_IN
        .map(|recipe| recipe.name.to_owned())
        .to_vec();
    there.sort();
    listed.sort();
    assert_eq!(there, listed);
}

#[test]
fn a_name_is_built_in_and_a_path_is_a_file() {
    for path in ["./tiny", "tiny.toml", "recipes/tiny", "TINY.TOML"] {
        assert_eq!(built_in::name_of(Path::new(path)), None, "{path}");
    }
    assert_eq!(built_in::name_of(Path::new("tiny")), Some("tiny"));
    let error = |path: &str| text(Recipe::read(Path::new(path), &[]).unwrap_err());
    let said = error("quikstart");
    for part in [
        "no recipe is called quikstart",
        "did you mean quickstart?",
        "cifar10",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let said = error("no/such/cifar10.toml");
    assert!(
        said.contains("the built-in recipe is called cifar10"),
        "{said}"
    );
}

#[test]
fn the_published_recipe_resolves_as_published() {
    let b14 = include_str!("../../recipes/nepa-b14-in1k.toml");
    let recipe = Recipe::parse(b14, Path::new("nepa-b14-in1k.toml"), &[]).unwrap();
    let resolved = recipe.resolve(1_281_167, "digest".to_owned()).unwrap();
    assert_eq!(resolved.train.steps_per_epoch, 312);
    assert_eq!(resolved.train.steps, 1600 * 312);
    assert_eq!(resolved.train.warmup_steps, 12_480);
    assert_eq!(resolved.train.accumulation, 16);
    assert!((resolved.train.lr - 4.8e-3).abs() < 1e-12);
    let again: ResolvedRecipe = toml::from_str(&resolved.to_toml()).unwrap();
    assert_eq!(again, resolved);
}

/// FINETUNE's numbers as released and as in the paper, on the size of ImageNet-1k.
#[test]
fn published_fine_tunings_resolve_as_published() {
    let resolve = |name: &str| {
        let draft = Draft::read(Path::new(name), &[]).unwrap();
        let recipe = draft.finetuning(&NepaConfig::base_14()).unwrap();
        let finetune = recipe.finetune.clone().unwrap();
        let model = recipe.model.clone();
        let resolved = recipe.resolve(1_281_167, "digest".to_owned()).unwrap();
        (resolved.train, finetune, model)
    };
    let rates = |train: &ResolvedTrain| (train.lr, train.warmup_steps, train.steps);
    for (name, expected, decay, end) in [
        (
            "nepa-b14-in1k-finetune",
            (6e-3, 25_020, 125_100),
            0.65,
            0.65,
        ),
        (
            "nepa-b14-in1k-paper-finetune",
            (4e-3, 6_255, 125_100),
            0.35,
            1.0,
        ),
        (
            "nepa-l14-in1k-finetune",
            (4e-3, 37_530, 125_100),
            0.75,
            0.75,
        ),
        (
            "nepa-l14-in1k-paper-finetune",
            (4e-3, 6_255, 62_550),
            0.6,
            1.0,
        ),
    ] {
        let (train, finetune, model) = resolve(name);
        assert_eq!(rates(&train), expected, "{name}");
        assert_eq!(train.accumulation, 8);
        let found = [
            finetune.layer_decay,
            finetune.layer_decay_end(),
            finetune.head_lr,
        ];
        let expected: [f64; 3] = [decay, end, 1e-3];
        assert_eq!(
            found.map(f64::to_bits),
            expected.map(f64::to_bits),
            "{name}"
        );
        assert!(!model.is_causal && model.add_pooling_layer && model.qk_norm_affine);
        let drop_path = if name.contains("b14") { 0.1 } else { 0.2 };
        assert_eq!(model.drop_path_prob.to_bits(), f64::to_bits(drop_path));
    }
}

#[test]
fn a_recipe_is_for_one_command() {
    let tune = |sets: &[&str]| {
        let sets = sets.iter().map(ToString::to_string).collect::<Vec<_>>();
        Draft::read(Path::new("tiny-finetune"), &sets)
    };
    let refused = text(Recipe::read(Path::new("tiny-finetune"), &[]).unwrap_err());
    for part in ["tiny-finetune", "[finetune]", "nepa finetune", "--from"] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
    let tiny = parse(&[]).unwrap();
    let draft = Draft::read(Path::new("tiny"), &[]).unwrap();
    let refused = text(draft.finetuning(&tiny.model).unwrap_err());
    assert!(
        refused.contains("no [finetune]") && refused.contains("nepa pretrain"),
        "{refused}"
    );
    // Its model is that of the weights, but for what it changes.
    let recipe = tune(&[]).unwrap().finetuning(&tiny.model).unwrap();
    assert_eq!(recipe.model.hidden_size, tiny.model.hidden_size);
    assert!(tiny.model.is_causal && !recipe.model.is_causal);
    let message = |sets: &[&str]| {
        let recipe = tune(sets).unwrap().finetuning(&tiny.model);
        let mut recipe = match recipe {
            Ok(recipe) => recipe,
            Err(error) => return text(error),
        };
        recipe.data.urls = vec!["/data".to_owned()];
        text(recipe.check(1).expect_err("must be refused"))
    };
    for (set, parts) in [
        (
            "model.hidden_size=64",
            &["model.hidden_size = 64", "--from have 32", "is_causal"][..],
        ),
        (
            "model.is_causal=3",
            &["model.is_causal = 3", "true or false"],
        ),
        ("model.is_casual=true", &["did you mean model.is_causal?"]),
        (
            "finetune.layer_decay=1.5",
            &["finetune.layer_decay = 1.5", "at most 1"],
        ),
        (
            "finetune.layer_decay=none",
            &["`finetune.layer_decay`, which is required"],
        ),
        (
            "finetune.layer_decay_end=1.0",
            &["finetune.layer_decay_end = 1", "no effect", "rising_linear"],
        ),
        (
            "finetune.schedule=cosine",
            &["finetune.schedule", "layerwise_warmup"],
        ),
        ("finetune.freeze=3", &["finetune.freeze = 3", "at most 2"]),
        (
            "finetune.freeze=0",
            &["finetune.freeze = 0", "number of blocks"],
        ),
        ("finetune.freeze=all", &["finetune.freeze", "\"backbone\""]),
        (
            "finetune.head_lr=-1",
            &["finetune.head_lr = -1", "0 or more"],
        ),
        (
            "finetune.mix.mixup_alpha=-1",
            &["finetune.mix.mixup_alpha is -1"],
        ),
        (
            "finetune.mix.label_smoothing=1",
            &["label_smoothing is 1", "--set"],
        ),
        ("finetune.mixup=1", &["unknown key `finetune.mixup`"]),
        (
            "train.micro_batch=1",
            &["train.micro_batch = 1", "even", "pairs"],
        ),
        (
            "finetune.num_classes=1",
            &["finetune.num_classes = 1", "at least 2"],
        ),
        (
            "finetune.classes=[\"a\"]",
            &["finetune.classes", "two classes"],
        ),
        (
            "finetune.eval.every_steps=0",
            &["finetune.eval.every_steps = 0"],
        ),
        ("finetune.eval.transform=centre", &["shorter-256-bicubic"]),
        (
            "optimizer.embedding_lr_factor=0.5",
            &["embedding_lr_factor = 0.5", "no effect", "layer_decay"],
        ),
    ] {
        let said = message(&[set]);
        for part in parts {
            assert!(said.contains(part), "{set}: {part:?} is not in: {said}");
        }
    }
    // The same value is no difference, however it is written.
    let same = tune(&["model.hidden_size=32", "model.rope_theta=100"]).unwrap();
    same.finetuning(&tiny.model).unwrap();
}

#[test]
fn set_overrides_dotted_keys_of_any_type() {
    let recipe = parse(&[
        "train.batch=64",
        "name = a run",
        "optimizer.beta2=0.9",
        "train.lr=1",
    ])
    .unwrap();
    assert_eq!(recipe.train.batch, 64);
    assert_eq!(recipe.name, "a run");
    assert_eq!(recipe.optimizer.beta2.to_bits(), 0.9f64.to_bits());
    assert!(
        parse(&["train.batch"])
            .unwrap_err()
            .to_string()
            .contains("no `=`")
    );
    assert!(
        parse(&["name.x=1"])
            .unwrap_err()
            .to_string()
            .contains("no section")
    );
}

#[test]
fn an_override_takes_the_place_of_what_gives_the_same() {
    for (set, replaced) in [
        (
            "train.epochs=3",
            "train.epochs = 3 takes the place of the recipe's train.steps = 12",
        ),
        (
            "train.base_lr=1",
            "train.base_lr = 1 takes the place of the recipe's train.lr = 0.001",
        ),
        (
            "train.warmup_fraction=.5",
            "train.warmup_fraction = 0.5 takes the place of the recipe's train.warmup_steps = 3",
        ),
    ] {
        let recipe = checked(&[set]).unwrap();
        assert_eq!(recipe.replaced(), [replaced]);
    }
    assert_eq!(
        checked(&["train.steps=5"]).unwrap().replaced(),
        &[] as &[String]
    );
    let both = message(&["train.epochs=3", "train.steps=7"]);
    for part in [
        "--set train.epochs=3",
        "--set train.steps=7",
        "cannot both hold",
    ] {
        assert!(both.contains(part), "{part}: {both}");
    }
    // The later of two for one key holds; one that was unset is no contradiction.
    let sets = [
        "train.epochs=3",
        "train.epochs=none",
        "train.steps=7",
        "train.steps=8",
    ];
    assert_eq!(checked(&sets).unwrap().train.steps, Some(8));
}

#[test]
fn none_unsets_a_key() {
    assert_eq!(
        parse(&["checkpoint.every_steps=none"])
            .unwrap()
            .checkpoint
            .every_steps,
        None
    );
    assert_eq!(parse(&["loader.jpeg=none"]).unwrap().loader.jpeg, None);
    let neither = message(&["train.steps=none"]);
    assert!(neither.contains("neither"), "{neither}");
    let required = text(parse(&["train.batch=none"]).unwrap_err());
    assert!(
        required.contains("`train.batch`, which is required"),
        "{required}"
    );
    assert!(required.contains("--set train.batch=none"), "{required}");
    let unknown = text(parse(&["train.bacth=none"]).unwrap_err());
    assert!(unknown.contains("did you mean train.batch?"), "{unknown}");
}

#[test]
fn what_is_wrong_is_said_in_the_words_of_who_wrote_it() {
    for (set, parts) in [
        (
            "train.batch=many",
            &["train.batch = \"many\"", "a whole number, 0 or more"][..],
        ),
        (
            "train.batch=-3",
            &["train.batch = -3", "a whole number, 0 or more"],
        ),
        (
            "train.steps=1e3",
            &[
                "train.steps = 1000.0",
                "whole number",
                "tip: --set train.steps=1000",
            ],
        ),
        (
            "train.lr=fast",
            &["train.lr = \"fast\"", "must be a number"],
        ),
        (
            "data.strict=yes",
            &["data.strict = \"yes\"", "true or false"],
        ),
        ("name=3", &["name = 3", "text in quotes"]),
        (
            "data.urls=/data",
            &["a list", "tip: --set 'data.urls=[\"/data\"]'"],
        ),
        (
            "data.augment.size=big",
            &["data.augment.size = \"big\"", "a whole number"],
        ),
        (
            "data.augment.size=5000000000",
            &["data.augment.size", "at most 4294967295"],
        ),
        (
            "data.augment.scale=[0.1]",
            &["data.augment", "a list of 2 numbers"],
        ),
        (
            "data.augment.kind=random_resize_crop",
            &["did you mean \"random_resized_crop\"?"],
        ),
        (
            "data.normalize.mean=[1.0]",
            &["data.normalize.mean", "a list of 3 numbers"],
        ),
        ("model=3", &["model = 3", "a section"]),
        (
            "model.hidden_size=wide",
            &["model.hidden_size = \"wide\"", "a whole number"],
        ),
        (
            "model.hidden_act=glu",
            &["model.hidden_act = \"glu\"", "did you mean \"gelu\"?"],
        ),
        (
            "train.precision=fp16",
            &["train.precision = \"fp16\"", "did you mean \"bf16\"?"],
        ),
        (
            "loader.jpeg_largest=9",
            &["loader.jpeg_largest = 9", "a list of 2 numbers"],
        ),
        (
            "checkpoint.spool_dir=3",
            &["checkpoint.spool_dir = 3", "text in quotes"],
        ),
        (
            "device=cudaa",
            &["device: \"cudaa\" is no device", "did you mean cuda?"],
        ),
        (
            "device=gpu",
            &["device: \"gpu\" is no device", "did you mean cuda?"],
        ),
        (
            "train.batchsize=3",
            &["unknown key `train.batchsize`", "did you mean train.batch?"],
        ),
        (
            "batch=3",
            &["unknown key `batch`", "did you mean train.batch?"],
        ),
        (
            "model.hiden_size=3",
            &[
                "unknown key `model.hiden_size`",
                "did you mean model.hidden_size?",
            ],
        ),
        ("train.learning_rate=1", &["did you mean train.lr?"]),
        (
            "data.normalise.mean=1",
            &[
                "unknown key `data.normalise`",
                "did you mean data.normalize?",
            ],
        ),
    ] {
        let said = message(&[set]);
        for part in parts {
            assert!(said.contains(part), "{set}: {part:?} is not in: {said}");
        }
        assert!(
            said.contains("(--set ") || set.starts_with("data.normalise"),
            "{set}: {said}"
        );
        for word in [
            "usize",
            "u32",
            "u64",
            "f64",
            "variant",
            "invalid type",
            "struct",
        ] {
            assert!(!said.contains(word), "{set}: {word} is in: {said}");
        }
    }
}

#[test]
fn what_is_wrong_in_a_file_is_said_with_its_line() {
    let read = |from: &str, to: &str| {
        let wrong = TINY.replace(from, to);
        let line = 1 + wrong[..wrong.find(to).unwrap()].matches('\n').count();
        let recipe = Recipe::parse(&wrong, Path::new("my runs/a.toml"), &[]);
        let checked = recipe.and_then(|recipe| recipe.check(1));
        let said = text(checked.unwrap_err());
        let place = format!("'my runs/a.toml', line {line}");
        assert!(said.contains(&place), "{place} is not in: {said}");
        said
    };
    assert!(read("batch = 8", "bacth = 8").contains("did you mean train.batch?"));
    assert!(read("batch = 8", "batch = 0").contains("train.batch = 0: it must be at least 1"));
    read("[train]", "[trian]");
    read("scale = [0.08, 1.0]", "scale = [0.08, \"x\"]");
    read("beta1 = 0.9", "beta1 = 1.5");
    read("hidden_size = 32", "hidden_size = 33");
    let said = text(Recipe::parse("name = \n", Path::new("a.toml"), &[]).unwrap_err());
    assert!(
        said.contains("is not a TOML file") && said.contains("line 1"),
        "{said}"
    );
    let no_name = TINY.replace("name = \"tiny\"", "");
    let said = text(Recipe::parse(&no_name, Path::new("a.toml"), &[]).unwrap_err());
    assert!(said.contains("the recipe a.toml has no `name`"), "{said}");
}

#[test]
fn a_flag_that_is_a_key_is_known_as_one() {
    for (flag, key) in [
        ("--batch", Some("train.batch")),
        ("--batch-size", Some("train.batch")),
        ("--lr", Some("train.lr")),
        ("--epochs", Some("train.epochs")),
        ("--device", Some("device")),
        ("--hidden-size", Some("model.hidden_size")),
        ("--colour", None),
    ] {
        assert_eq!(key_like_flag(flag).as_deref(), key, "{flag}");
    }
}

#[test]
fn a_precision_that_the_processor_is_slow_in_is_warned_of() {
    assert!(
        checked(&["train.precision=bf16"])
            .unwrap()
            .slow_precision()
            .is_some()
    );
    for sets in [&["device=cuda", "train.precision=bf16"][..], &[]] {
        assert_eq!(checked(sets).unwrap().slow_precision(), None);
    }
}

#[test]
fn lanes_divide_the_batch_and_are_divided_by_the_ranks() {
    assert_eq!(checked(&[]).unwrap().data.lanes, 1);
    for (lanes, parts) in [
        (0, ["data.lanes = 0", "at least 1"]),
        (3, ["data.lanes = 3", "divisor of train.batch = 8"]),
    ] {
        let error = message(&[&format!("data.lanes={lanes}")]);
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
    let recipe = |lanes| checked(&[&format!("data.lanes={lanes}"), "train.micro_batch=1"]).unwrap();
    for (lanes, ranks) in [(1, 8), (2, 2), (8, 4)] {
        recipe(lanes).check(ranks).unwrap();
    }
    let error = text(recipe(2).check(4).unwrap_err());
    for part in ["data.lanes = 2", "number of ranks, 4", "--set data.lanes=2"] {
        assert!(error.contains(part), "{part} is not in: {error}");
    }
}

#[test]
fn impossible_values_are_refused_with_the_rule() {
    let error = message(&["train.batch=10", "train.micro_batch=4"]);
    assert!(
        error.contains("train.batch = 10") && error.contains("train.batch=12"),
        "{error}"
    );
    let error = message(&["model.image_size=30", "data.augment.size=30"]);
    assert!(error.contains("multiple of model.patch_size"), "{error}");
    let error = message(&["data.augment.size=56"]);
    assert!(
        error.contains("data.augment.size = 56") && error.contains("model.image_size"),
        "{error}"
    );
    let error = message(&["data.augment.scale=[0.5, 0.1]"]);
    assert!(
        error.contains("data.augment.scale is [0.5, 0.1]") && error.contains("--set"),
        "{error}"
    );
    let two = TINY.replace("steps = 12", "steps = 12\nepochs = 3");
    let error = Recipe::parse(&two, Path::new("two.toml"), &[]).unwrap();
    let error = text(error.check(1).unwrap_err());
    assert!(
        error.contains("exactly one of train.epochs and train.steps") && error.contains("both"),
        "{error}"
    );
    let error = message(&["optimizer.ema_decay=1.0"]);
    assert!(
        error.contains("ema_decay") && error.contains("less than 1"),
        "{error}"
    );
    let error = message(&["model.num_attention_heads=5"]);
    assert!(error.contains("heads"), "{error}");
    let error = checked(&[])
        .unwrap()
        .resolve(3, String::new())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("3 samples") && error.contains("train.batch"),
        "{error}"
    );
    let error = text(parse(&[]).unwrap().check(1).unwrap_err());
    assert!(error.contains("--data"), "{error}");
}

#[test]
fn ranks_add_by_the_tree_unless_told_otherwise() {
    let sum = |sets: &[&str]| {
        checked(sets)
            .unwrap()
            .resolve(1000, String::new())
            .unwrap()
            .train
            .sum
    };
    assert_eq!(sum(&[]), SumChoice::Tree);
    assert_eq!(sum(&["train.sum=library"]), SumChoice::Library);
    let error = text(parse(&["train.sum=ring"]).unwrap_err());
    assert!(
        error.contains("train.sum") && error.contains("library"),
        "{error}"
    );
}

#[test]
fn the_decoder_of_jpegs_is_chosen_on_a_gpu_only() {
    let error = message(&["loader.jpeg=fixed"]);
    assert!(
        error.contains("loader.jpeg = \"fixed\"") && error.contains("device = \"cpu\""),
        "{error}"
    );
    let error = text(parse(&["loader.jpeg=nvjpeg"]).unwrap_err());
    assert!(
        error.contains("nvjpeg") && error.contains("hybrid") && error.contains("fixed"),
        "{error}"
    );
    let jpeg = |sets: &[&str]| {
        let resolved = checked(sets).unwrap().resolve(1000, String::new()).unwrap();
        let again: ResolvedRecipe = toml::from_str(&resolved.to_toml()).unwrap();
        assert_eq!(again, resolved);
        resolved.jpeg
    };
    assert_eq!(jpeg(&[]), None);
    assert_eq!(jpeg(&["device=cuda"]), Some(JpegChoice::Auto));
    let fixed = jpeg(&["device=cuda:1", "loader.jpeg=fixed"]);
    assert_eq!(fixed, Some(JpegChoice::Fixed));
}

#[test]
fn an_ablation_changes_the_model_and_takes_the_engine_that_can() {
    let resolved = |sets: &[&str]| {
        let recipe = checked(sets).expect("a recipe");
        recipe.resolve(100_000, String::new()).expect("resolves")
    };
    let plain = resolved(&[]);
    assert_eq!(plain.train.engine, EngineChoice::Cpu);
    assert!(
        !plain.to_toml().contains("ablation"),
        "an older program reads it"
    );
    for set in [
        "ablation.shift=false",
        "ablation.stop_gradient=false",
        "ablation.mask_ratio=0.4",
    ] {
        let ablated = resolved(&[set]);
        assert_eq!(ablated.train.engine, EngineChoice::Autograd, "{set}");
        let again: ResolvedRecipe = toml::from_str(&ablated.to_toml()).expect("parses");
        assert_eq!(again, ablated);
        assert_eq!(ablated.model.use_mask_token, set.contains("mask"));
        let refused = message(&[set, "train.engine=cpu"]);
        for part in [
            "train.engine = \"cpu\"",
            "\"autograd\"",
            "train.engine=none",
        ] {
            assert!(refused.contains(part), "{part} in {refused}");
        }
    }
    let unrotated = resolved(&["ablation.rope=false"]);
    assert!(!unrotated.model.use_rope && plain.model.use_rope);
    assert_eq!(
        unrotated.train.engine,
        EngineChoice::Cpu,
        "it is a model like another"
    );
    let again: ResolvedRecipe = toml::from_str(&unrotated.to_toml()).expect("parses");
    assert_eq!(again, unrotated);
    assert!(checked(&["ablation.shift=true", "train.engine=cpu"]).is_ok());
}

#[test]
fn nccl_connects_gpus_alone() {
    let gpu = [
        "device=cuda",
        "train.precision=bf16",
        "model.hidden_size=64",
        "model.num_attention_heads=1",
    ];
    let sums_by_nccl = |sets: &[&str]| {
        let recipe = checked(&[&gpu[..], sets].concat()).expect("a recipe");
        let resolved = recipe.resolve(1000, "digest".to_owned());
        resolved.expect("enough samples").sums_by_nccl()
    };
    assert!(sums_by_nccl(&[]) && sums_by_nccl(&["train.wire=nccl"]));
    assert!(!sums_by_nccl(&["train.wire=host"]) && !sums_by_nccl(&["train.engine=autograd"]));
    assert!(checked(&["train.wire=host"]).is_ok());
    let autograd = [&gpu[..], &["train.engine=autograd", "train.wire=nccl"]].concat();
    for sets in [&["train.wire=nccl"][..], &autograd[..]] {
        let refused = message(sets);
        for part in ["train.wire", "nccl", "\"host\""] {
            assert!(refused.contains(part), "{part} in {refused}");
        }
    }
}

#[test]
fn ablations_that_cannot_be_are_refused() {
    for (set, part) in [
        ("ablation.mask_ratio=1.0", "from 0 to less than 1"),
        ("ablation.mask_ratio=-0.1", "from 0 to less than 1"),
        ("ablation.mask_ratio=nan", "from 0 to less than 1"),
        ("ablation.mask_ratio=0.0001", "none, or all"),
        ("ablation.masks=0.4", "mask_ratio"),
        ("model.use_rope=false", "ablation.rope"),
        ("model.use_mask_token=true", "ablation.mask_ratio"),
    ] {
        let refused = message(&[set]);
        assert!(refused.contains(part), "{set}: {part} in {refused}");
    }
}
