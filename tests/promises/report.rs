//! `nepa report`: what is shown of a run at any point of its life, of several runs, and that the
//! page can be read on any screen.
use std::fmt::Write as _;
use std::path::Path;

use nepa_tests::program::{assert_says, nepa, succeed, text, tiny_recipe};

use crate::eval::Place;

/// The page and the Markdown of a report.
fn read(folder: &Path) -> (String, String) {
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    (read("index.html"), read("report.md"))
}

/// What a person sees of a page: no style, script, recipe or markup.
fn words_of(page: &str) -> String {
    let mut page = page.to_owned();
    for element in ["style", "script", "pre"] {
        let end = format!("</{element}>");
        while let Some(from) = page.find(&format!("<{element}")) {
            let to = from + page[from..].find(&end).unwrap() + end.len();
            page.replace_range(from..to, " ");
        }
    }
    let mut words = String::new();
    let mut inside = false;
    for character in page.chars() {
        match character {
            '<' => {
                inside = true;
                words.push(' ');
            }
            '>' => inside = false,
            _ if !inside => words.push(character),
            _ => {}
        }
    }
    words
}

/// Numbers have at most six digits that mean something, or are whole and in groups of three.
fn assert_readable_numbers(text: &str) {
    let is_number = |c: char| c.is_ascii_digit() || c == '.' || c == ',';
    for number in text.split(|c| !is_number(c)) {
        let number = number.trim_matches(['.', ',']);
        let groups = number.split(',').collect::<Vec<_>>();
        let grouped = groups.len() > 1 && groups[1..].iter().all(|group| group.len() == 3);
        if grouped {
            continue;
        }
        let digits = number.replace('.', "");
        let digits = digits.trim_start_matches('0');
        assert!(digits.len() <= 6, "{number} in:\n{text}");
    }
}

/// What every page must have to be read on a telephone, in the dark, and without seeing it.
fn assert_for_any_screen(page: &str) {
    for part in [
        "<!DOCTYPE html><html lang=\"en\">",
        "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">",
        "@media (prefers-color-scheme: dark)",
        "@media print",
        "<title>",
        "<h1>",
    ] {
        assert!(page.contains(part), "{part:?} is not in the page");
    }
    // Nothing is fetched.
    for part in ["src=\"http", "href=\"http", "@import", "url("] {
        assert!(!page.contains(part), "{part:?} is in the page");
    }
    // No width is fixed above that of a small screen: what has one is a greatest width, or within
    // min().
    let style = &page[page.find("<style>").unwrap()..page.find("</style>").unwrap()];
    let widths = style.split([';', '{', '}']).filter_map(|rule| {
        let (name, value) = rule.split_once(':')?;
        let fixed = matches!(name.trim(), "width" | "min-width" | "grid-template-columns");
        (fixed && !value.contains("min(100%")).then_some(value)
    });
    for value in widths {
        for (unit, most) in [("px", 350.0), ("rem", 22.0), ("em", 22.0)] {
            let numbers = value
                .split_whitespace()
                .flat_map(|word| word.split(['(', ',', ')']));
            let numbers = numbers.filter_map(|word| word.strip_suffix(unit)?.parse::<f64>().ok());
            numbers.for_each(|number| assert!(number <= most, "{number}{unit} in {value}"));
        }
    }
    assert!(!page.contains("style=\"width"), "a width is fixed");
    for svg in page.split("<svg").skip(1) {
        let tag = &svg[..svg.find('>').unwrap()];
        for part in ["viewBox=", "role=\"img\"", "aria-label=\""] {
            assert!(tag.contains(part), "{part} is not in <svg{tag}>");
        }
        assert!(
            !tag.contains(" width=") && !tag.contains(" height="),
            "{tag}"
        );
    }
    for image in page.split("<img").skip(1) {
        assert!(image[..image.find('>').unwrap()].contains("alt="));
    }
}

/// Lines of a `metrics.jsonl` as a run of so many steps writes them.
fn metrics(steps: u64, batch: u64, loss: impl Fn(u64) -> String) -> String {
    let mut lines = String::new();
    for step in 1..=steps {
        let (wait, work) = (
            1.0 + (step % 7) as f64 / 3.0,
            20.0 + (step % 11) as f64 / 7.0,
        );
        writeln!(
            lines,
            "{{\"step\":{step},\"epoch\":{},\"samples\":{},\"loss\":{},\"lr\":{},\"grad_norm\":{},\
             \"images_per_second\":{},\"data_wait_ms\":{wait},\"step_ms\":{work},\
             \"cos_target\":0.51234567,\"cos_previous\":0.61234567,\"copy_win\":0.71234567}}",
            step * batch / 1000,
            step * batch,
            loss(step),
            1e-3 / step as f64,
            3.0 / (step as f64).sqrt(),
            1e3 * batch as f64 / (wait + work),
        )
        .unwrap();
    }
    lines
}

/// A run without checkpoints, with these metrics.
fn run_of(folder: &Path, recipe: &str, metrics: &str) {
    std::fs::create_dir_all(folder).unwrap();
    std::fs::write(folder.join("recipe.toml"), recipe).unwrap();
    std::fs::write(folder.join("metrics.jsonl"), metrics).unwrap();
}

/// The report of these runs, and what the program said.
fn report(runs: &[&Path], out: &Path) -> (String, String, String) {
    let said = text(&succeed(
        nepa().arg("report").args(runs).arg("--out").arg(out),
    ));
    let (page, markdown) = read(out);
    assert_for_any_screen(&page);
    assert_readable_numbers(&words_of(&page));
    let end = markdown.find("## Recipe as run").unwrap();
    assert_readable_numbers(&markdown[..end]);
    (page, markdown, said)
}

/// The recipe of a run of `tiny.toml`, as it is written into its output.
fn resolved_recipe(folder: &Path) -> String {
    let place = Place::new();
    std::fs::copy(place.run().join("recipe.toml"), folder.join("recipe.toml")).unwrap();
    std::fs::read_to_string(folder.join("recipe.toml")).unwrap()
}

#[test]
fn a_report_shows_curves_accuracies_and_maps() {
    let place = Place::new();
    let mut command = place.report();
    command
        .args(place.sets())
        .args(["--maps", "2", "--layers", "1,last"]);
    let said = text(&succeed(&mut command));
    assert_says(&said, &["index.html", "report.md", "browser"]);
    let folder = place.path("report");
    let (page, markdown) = read(&folder);
    assert_for_any_screen(&page);
    assert_readable_numbers(&words_of(&page));
    for name in [
        "accuracy-knn",
        "accuracy-logistic",
        "loss",
        "copying",
        "copy-share",
        "learning-rate",
        "gradient-norm",
        "speed",
        "waiting",
    ] {
        let svg = std::fs::read_to_string(folder.join(format!("{name}.svg"))).unwrap();
        assert!(svg.contains("<polyline"), "{name}");
        assert!(svg.contains("prefers-color-scheme: dark"), "{name}");
        assert!(markdown.contains(&format!("({name}.svg)")), "{name}");
    }
    for number in [1, 2] {
        let name = format!("maps-{number}.png");
        let map = image::open(folder.join(&name)).unwrap();
        // A picture, a prediction and two blocks, 6 pixels apart.
        assert_eq!(map.width(), 4 * 168 + 3 * 6);
        assert!(markdown.contains(&format!("({name})")));
    }
    // Two photos, each once, and three maps over it of each of two patches.
    assert_eq!(
        page.matches("data:image/png;base64,").count(),
        2 * (1 + 2 * 3)
    );
    assert!(!folder.join("maps-3.png").exists());
    // Steps 0 (random), 5, 10 and 12 of two layers, each point with its mark.
    let accuracy = std::fs::read_to_string(folder.join("accuracy-logistic.svg")).unwrap();
    assert_eq!(accuracy.matches("<circle").count(), 4 * 2);
    for part in [
        "random weights",
        "moving average, step 12",
        "12 of 12",
        "kNN (k = 20)",
        "The loss ",
        "of the test images (95 % interval",
        "chance 33.3 %",
    ] {
        assert!(page.contains(part), "{part:?} is not in the page");
        assert!(markdown.contains(part), "{part:?} is not in the Markdown");
    }
    // Every hue is found in the pixels already, and the page says so.
    assert_says(
        &markdown,
        &["**Note:** ", " than ", "the pixels themselves"],
    );

    // Without labels: curves and maps of any images.
    std::fs::remove_dir_all(&folder).unwrap();
    succeed(place.report().args([
        "--maps",
        "1",
        "--images",
        &place.shards("test"),
        "--label-column",
        "",
    ]));
    assert!(folder.join("maps-1.png").exists() && !folder.join("accuracy-knn.svg").exists());

    // Without any images: curves, and what to give for more.
    let (_, markdown, _) = report(&[&place.run()], &place.path("curves"));
    assert_says(
        &markdown,
        &[
            "Curves alone are drawn",
            "--train and --test",
            "step 5; 10; 12",
        ],
    );
}

#[test]
fn runs_are_drawn_over_each_other() {
    let place = Place::new();
    let other = place.path("b/run");
    succeed(
        nepa()
            .arg("pretrain")
            .arg(tiny_recipe())
            .args(["--data", &place.shards("train-0"), "--out"])
            .arg(&other)
            .args(["--max-steps", "8", "--set", "train.lr=0.004"]),
    );
    // Of a third there is no checkpoint yet, and its last line is being written.
    let recipe = std::fs::read_to_string(other.join("recipe.toml")).unwrap();
    let lines = metrics(7, 8, |step| format!("{}", -0.01 * step as f64));
    let young = place.path("young");
    run_of(&young, &recipe, &lines[..lines.len() - 40]);

    let out = place.path("compared");
    let mut command = nepa();
    command
        .arg("report")
        .args([&place.run(), &other, &young, &young])
        .args(place.sets())
        .args(["--maps", "1", "--ridge-only", "--out"])
        .arg(&out);
    succeed(&mut command);
    let (page, markdown) = read(&out);
    assert_for_any_screen(&page);
    assert_readable_numbers(&words_of(&page));
    let parent = place.path("");
    let parent = parent.file_name().unwrap().to_string_lossy().into_owned();
    let names = [format!("{parent}/run"), "b/run".to_owned()];
    let names = names
        .into_iter()
        .chain(["young", "young (2)"].map(|name| format!("{parent}/{name}")));
    let loss = std::fs::read_to_string(out.join("loss.svg")).unwrap();
    let legend = &page[page.find("<h3>Loss</h3>").unwrap()..];
    let legend = &legend[..legend.find("</ul>").unwrap()];
    for name in names {
        assert!(legend.contains(&name), "{name} is not in {legend}");
        assert!(loss.contains(&name), "{name} is not in the picture");
        assert!(
            markdown.contains(&format!("| {name}")),
            "{name} has no column in {markdown}"
        );
    }
    assert_eq!(loss.matches("<polyline").count() - mesh_lines(&loss), 4);
    assert_says(
        &markdown,
        &[
            "The lowest loss at the end is that of",
            "not trained on the same data",
            "different lengths",
            "young: There is no checkpoint yet",
            "train.lr",
            "0.004",
            "b/run: moving average, step 8",
            "6 of 12",
        ],
    );
    assert!(
        !markdown.contains("| seed "),
        "a setting that is the same is shown"
    );
}

/// Lines of the grid and axes, which are the same in every picture of this form.
fn mesh_lines(svg: &str) -> usize {
    let grey = |line: &&str| {
        line.contains("<polyline") && (line.contains("#555555") || line.contains("#E1E1E1"))
    };
    svg.lines().filter(grey).count()
}

#[test]
fn a_young_or_odd_run_is_shown_as_far_as_it_goes() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let recipe = resolved_recipe(folder.path());
    let page_of = |name: &str, metrics: &str| {
        run_of(&path(name), &recipe, metrics);
        report(&[&path(name)], &path(&format!("{name}-report")))
    };
    let (page, markdown, _) = page_of("empty", "");
    assert_says(
        &markdown,
        &["No step of 12 is written down yet", "no checkpoint yet"],
    );
    assert_says(&page, &["There is no step to draw yet", "after step 5"]);

    // Not even a line: the file comes with the first checkpoint where the output is in a store.
    std::fs::remove_file(path("empty/metrics.jsonl")).unwrap();
    report(&[&path("empty")], &path("empty-report"));

    let (page, markdown, _) = page_of("one", &metrics(1, 8, |_| "-0.123456789012".to_owned()));
    assert_says(
        &markdown,
        &["1 of 12 steps", "The loss of its one step was −0.123"],
    );
    assert!(page.contains("<circle"), "one step is a point");

    let lines = metrics(40, 8, |step| match step {
        7 | 9 => "null".to_owned(),
        step => format!("{}", -0.01 * step as f64),
    });
    let (_, markdown, _) = page_of("nan", &lines);
    assert_says(
        &markdown,
        &[
            "2 steps had a loss or gradient that is not finite",
            "fell from",
        ],
    );

    let (_, markdown, _) = page_of("flat", &metrics(40, 8, |step| format!("-0.{}", step % 3)));
    assert_says(&markdown, &["**Note:** The loss did not fall"]);
    assert_says(&markdown, &["repeats its input"]);

    // What is no line of a run is named.
    run_of(&path("odd"), &recipe, "{\"step\":1}\n\nnonsense\n");
    let output = nepa().arg("report").arg(path("odd")).output().unwrap();
    assert!(!output.status.success());
    assert_says(&text(&output), &["line 1 of metrics.jsonl", "odd"]);
}

#[test]
fn a_long_run_makes_a_small_page() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let recipe = resolved_recipe(folder.path());
    let loss = |step: u64| format!("{}", -0.5 + 400.0 / (1000 + step) as f64);
    run_of(&path("long"), &recipe, &metrics(100_000, 8, loss));
    run_of(&path("short"), &recipe, &metrics(50, 8, loss));
    let (page, markdown, _) = report(&[&path("long")], &path("report"));
    assert!(page.len() < 300_000, "{} bytes", page.len());
    assert_says(
        &markdown,
        &[
            "mean of 667 steps; band: the least to the greatest",
            "800,000",
        ],
    );
    assert!(page.contains("<polygon"), "the band");
    let (page, _, _) = report(&[&path("long"), &path("short")], &path("both"));
    assert!(page.len() < 400_000, "{} bytes", page.len());
}
