//! Short names of runs.

/// Names that tell runs apart: of each path or URL as few of its last parts as it takes. Where the
/// same is given twice, a number is added.
pub(super) fn distinct_names(places: &[String]) -> Vec<String> {
    let parts = places.iter().map(|place| {
        let local = !place.contains("://");
        let whole = std::path::absolute(place).ok().filter(|_| local);
        let whole = whole.map_or_else(|| place.clone(), |path| path.display().to_string());
        let parts = whole.split('/').filter(|part| !part.is_empty());
        parts.map(str::to_owned).collect::<Vec<_>>()
    });
    let parts = parts.collect::<Vec<_>>();
    let ending =
        |parts: &Vec<String>, count: usize| parts[parts.len().saturating_sub(count)..].join("/");
    let longest = parts.iter().map(Vec::len).max().unwrap_or(1).max(1);
    let names = |count| {
        parts
            .iter()
            .map(|parts| ending(parts, count))
            .collect::<Vec<_>>()
    };
    // What is given twice has one name, however long.
    let is_distinct = |names: &[String]| {
        let all = || names.iter().zip(&parts);
        all().all(|(name, of)| all().all(|(other, its)| name != other || of == its))
    };
    let mut found = (1..=longest).map(names).find(|names| is_distinct(names));
    let found = found.get_or_insert_with(|| names(1));
    let seen = found.clone();
    for (number, name) in found.iter_mut().enumerate() {
        let before = seen[..number].iter().filter(|other| *other == name).count();
        if before > 0 {
            *name = format!("{name} ({})", before + 1);
        }
    }
    std::mem::take(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_runs_apart() {
        let names = |places: &[&str]| {
            let places = places.iter().map(|place| (*place).to_owned());
            distinct_names(&places.collect::<Vec<_>>())
        };
        assert_eq!(names(&["runs/a", "/tmp/b/"]), ["a", "b"]);
        assert_eq!(names(&["s3://x/1/run", "/tmp/2/run"]), ["1/run", "2/run"]);
        assert_eq!(names(&["/a/1/run", "/b/1/run"]), ["a/1/run", "b/1/run"]);
        assert_eq!(names(&["/a", "/b/a"]), ["a", "b/a"]);
        assert_eq!(names(&["/a/run", "/b", "/a/run/"]), ["run", "b", "run (2)"]);
    }
}
