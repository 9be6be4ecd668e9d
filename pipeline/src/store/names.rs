//! What names say: Parquet or not, data or not, and which of them a glob means.
use globset::{GlobBuilder, GlobMatcher};

/// Whether a name or key ends as Parquet objects do.
pub fn is_parquet(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    [".parquet", ".parq", ".pq"]
        .iter()
        .any(|ending| name.ends_with(ending))
}

/// Whether a file or folder of this name is no data: it begins with `.`, or with `_` and is no Hive
/// key (`_column=value`). Spark, Hive and pyarrow leave the same out.
pub(super) fn is_hidden(name: &str) -> bool {
    name.starts_with('.') || (name.starts_with('_') && !name.contains('='))
}

/// A glob below a folder.
#[derive(Debug)]
pub(super) struct Pattern {
    whole: GlobMatcher,
    /// Its parts between slashes; none for one that is no glob by itself.
    parts: Vec<GlobMatcher>,
    is_flat: bool,
}

impl Pattern {
    /// Compiles a glob.
    pub(super) fn new(glob: &str) -> Result<Self, globset::Error> {
        let parts = parts(glob);
        Ok(Self {
            whole: matcher(glob)?,
            is_flat: parts.len() == 1 && !glob.contains("**") && !glob.contains('/'),
            parts: parts.into_iter().flat_map(matcher).collect(),
        })
    }

    /// Whether only names of the folder itself can match.
    pub(super) fn is_flat(&self) -> bool {
        self.is_flat
    }

    /// Whether the glob means `path`, relative to its folder: hidden names only where it spells
    /// their first character.
    pub(super) fn matches(&self, path: &str) -> bool {
        self.whole.is_match(path) && path.split('/').all(|name| self.may_hold(name))
    }

    /// Whether a match can have this name on its way.
    pub(super) fn may_hold(&self, name: &str) -> bool {
        !is_hidden(name) || self.parts.iter().any(|part| spells(part, name))
    }
}

fn matcher(glob: &str) -> Result<GlobMatcher, globset::Error> {
    let glob = GlobBuilder::new(glob).literal_separator(true).build()?;
    Ok(glob.compile_matcher())
}

/// Whether `glob` matches `name` for its first character, not by a wildcard.
fn spells(glob: &GlobMatcher, name: &str) -> bool {
    let other = format!("\u{1}{}", &name[1..]);
    glob.is_match(name) && !glob.is_match(other)
}

/// A glob's parts between slashes that stand in no braces.
fn parts(glob: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0usize, 0, Vec::new());
    for (at, c) in glob.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth = depth.saturating_sub(1),
            '/' if depth == 0 => {
                parts.push(&glob[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&glob[start..]);
    parts
}

/// `text` as a glob that matches nothing else.
pub(crate) fn escape_glob(text: &str) -> String {
    let escape = |c: char| match c {
        '*' | '?' | '[' | ']' | '{' | '}' | '\\' => format!("[{c}]"),
        _ => c.to_string(),
    };
    text.chars().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hidden_names_are_those_of_spark_and_hive() {
        for name in [
            "_temporary",
            "_delta_log",
            "_SUCCESS",
            ".tmp",
            "._a.parquet",
            ".x=1",
        ] {
            assert!(is_hidden(name), "{name}");
        }
        for name in ["_x=1", "a_b", "train.parquet", "label=_x"] {
            assert!(!is_hidden(name), "{name}");
        }
    }

    #[test]
    fn a_glob_means_hidden_names_only_where_it_spells_them() {
        for (glob, path, meant) in [
            ("*.parquet", "_index.parquet", false),
            ("_*.parquet", "_index.parquet", true),
            ("[_]*.parquet", "_index.parquet", true),
            ("{_index,b}.parquet", "_index.parquet", true),
            ("?index.parquet", "_index.parquet", false),
            ("**/*.parquet", "_temporary/0/a.parquet", false),
            ("**/*.parquet", "_x=1/a.parquet", true),
            ("_temporary/**/*.parquet", "_temporary/0/a.parquet", true),
            ("*/.tmp/*.parquet", "a/.tmp/b.parquet", true),
            ("*/.tmp/*.parquet", "_a/.tmp/b.parquet", false),
        ] {
            let pattern = Pattern::new(glob).unwrap();
            assert_eq!(pattern.matches(path), meant, "{glob} {path}");
        }
        assert!(Pattern::new("{a,b}-*.parquet").unwrap().is_flat());
        assert!(!Pattern::new("{a/x,b}.parquet").unwrap().is_flat());
        assert!(Pattern::new("{a,b").is_err());
    }

    #[test]
    fn an_escaped_name_matches_itself_alone() {
        for name in ["a[1]", "{x,y}", "a*?", "b\\c", "plain-0"] {
            let glob = matcher(&escape_glob(name)).unwrap();
            assert!(glob.is_match(name), "{name}");
            assert!(!glob.is_match("a1") && !glob.is_match("x"), "{name}");
        }
    }
}
