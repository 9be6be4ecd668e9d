//! Tests of recipes: all that come with the program, overrides, and what is refused.
use super::*;

const TINY: &str = include_str!("../recipes/tiny.toml");

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
    format!("{:#}", anyhow::Error::from(error))
}

fn message(sets: &[&str]) -> String {
    text(checked(sets).expect_err("must be refused"))
}

/// `docs/recipe.md` shows every key, and its example is a recipe.
#[test]
fn every_key_is_documented() {
    let page = include_str!("../../docs/recipe.md");
    let example = page
        .split("```toml")
        .nth(1)
        .unwrap()
        .split("```")
        .next()
        .unwrap();
    let read = |sets: &[String]| Recipe::parse(example, Path::new("docs/recipe.md"), sets);
    read(&[]).unwrap().check(1).unwrap();
    let mut num_keys = 0;
    for section in [
        "",
        "model.",
        "data.",
        "data.augment.",
        "data.normalize.",
        "train.",
        "optimizer.",
        "checkpoint.",
        "log.",
        "loader.",
        "io.",
    ] {
        // What an unknown key's error lists is what serde knows.
        let error = text(read(&[format!("{section}no_such_key=1")]).unwrap_err());
        let known = error.rsplit_once("expected").or(error.rsplit_once("are:"));
        let (_, known) = known.unwrap_or_else(|| panic!("{error}"));
        let keys = known
            .lines()
            .next()
            .unwrap_or_default()
            .split([',', '`', ' ']);
        let keys = keys.filter(|key| !["", "one", "of", "or"].contains(key));
        for key in keys {
            num_keys += 1;
            let shown = |line: &str| {
                let line = line.trim_start_matches("# ");
                line.starts_with(&format!("{key} "))
                    || line.starts_with(&format!("[{section}{key}]"))
            };
            let inline = section == "data.normalize." && example.contains(&format!("{key} = ["));
            assert!(
                example.lines().any(shown) || inline,
                "{section}{key} is not in docs/recipe.md"
            );
        }
    }
    assert!(num_keys > 80, "only {num_keys} keys were looked for");
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
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes");
    let mut count = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "toml")
        {
            let mut recipe = Recipe::read(&path, &[]).unwrap_or_else(|error| panic!("{error}"));
            recipe.data.urls = vec!["/data".to_owned()];
            recipe
                .check(1)
                .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            assert_eq!(
                Some(recipe.name.as_str()),
                path.file_stem().and_then(|stem| stem.to_str())
            );
            let head = std::fs::read_to_string(&path).unwrap();
            for heading in ["# Command:", "# Hardware:", "# Time:", "# Result:"] {
                assert!(
                    head.contains(heading),
                    "{} has no line `{heading}`",
                    path.display()
                );
            }
            count += 1;
        }
    }
    assert!(count >= 5, "only {count} recipes");
}

#[test]
fn the_published_recipe_resolves_as_published() {
    let b14 = include_str!("../recipes/nepa-b14-in1k.toml");
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
fn unknown_keys_are_refused_by_name_with_the_known_ones() {
    let error = text(parse(&["train.bacth=64"]).unwrap_err());
    assert!(
        error.contains("bacth") && error.contains("micro_batch"),
        "{error}"
    );
    let error = text(parse(&["model.hiden_size=64"]).unwrap_err());
    assert!(
        error.contains("hiden_size") && error.contains("hidden_size"),
        "{error}"
    );
    let error =
        text(Recipe::parse(&format!("colour = 1\n{TINY}"), Path::new("x.toml"), &[]).unwrap_err());
    assert!(
        error.contains("colour") && error.contains("optimizer") && error.contains("line 1"),
        "{error}"
    );
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
        error.contains("data.augment is impossible") && error.contains("scale"),
        "{error}"
    );
    let error = text(parse(&["device=gpu"]).unwrap_err());
    assert!(
        error.contains("device = \"gpu\"") && error.contains("cuda:N"),
        "{error}"
    );
    let error = message(&["train.epochs=3"]);
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
