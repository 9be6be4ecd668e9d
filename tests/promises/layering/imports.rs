//! Which file of a crate imports which other one, read from its source.
//!
//! An arrow goes from a file to the file that defines what it names: in a `use`, or in a path in its
//! code. A name is followed through the re-exports of `mod.rs` and `lib.rs`, which are lists and no
//! imports themselves, and a path in code (`words::count`) through the `use` of its first name.
//! Tests do not count.
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A file by its path as a module, such as `["store", "request"]`; `lib.rs` is the empty one.
pub(super) type Module = Vec<String>;

/// The files of a crate and the arrows between them.
pub(super) struct Imports {
    pub(super) arrows: BTreeMap<Module, BTreeSet<Module>>,
}

/// What is read of a file.
struct Source {
    /// Paths of `use` declarations that re-export.
    exports: Vec<String>,
    /// Paths of the others, and those in the code.
    names: Vec<String>,
    /// What names of the code stand for, by the `use` declarations.
    aliases: BTreeMap<String, String>,
}

impl Imports {
    /// Reads all files below a crate's `src`.
    pub(super) fn of(root: &Path) -> Self {
        let mut sources = BTreeMap::new();
        read(root, &[], &mut sources);
        let exports = exports(&sources);
        let modules: BTreeSet<Module> = sources.keys().cloned().collect();
        let arrows = sources.iter().map(|(module, source)| {
            let names = source.names.iter().map(|name| source.spelled_out(name));
            let paths = names.filter_map(|name| absolute(module, &name, &modules));
            let mut defined_in: BTreeSet<Module> =
                paths.map(|path| follow(path, &exports, &modules)).collect();
            defined_in.remove(module);
            (module.clone(), defined_in)
        });
        Self {
            arrows: arrows.collect(),
        }
    }

    /// Files that import each other, directly or through others.
    pub(super) fn circles(&self) -> Vec<(Module, Module)> {
        let reachable: BTreeMap<&Module, BTreeSet<&Module>> = self
            .arrows
            .keys()
            .map(|module| (module, self.reachable(module)))
            .collect();
        let mut circles = Vec::new();
        for (a, from_a) in &reachable {
            for b in from_a {
                if a < b && reachable[b].contains(a) {
                    circles.push(((*a).clone(), (*b).clone()));
                }
            }
        }
        circles
    }

    fn reachable<'a>(&'a self, from: &'a Module) -> BTreeSet<&'a Module> {
        let mut found = BTreeSet::new();
        let mut open = vec![from];
        while let Some(module) = open.pop() {
            for next in self.arrows.get(module).into_iter().flatten() {
                if found.insert(next) {
                    open.push(next);
                }
            }
        }
        found
    }
}

impl Source {
    /// A path in code with what its first name stands for.
    fn spelled_out(&self, path: &str) -> String {
        let (first, rest) = path.split_once("::").unwrap_or((path, ""));
        match self.aliases.get(first) {
            Some(whole) if !rest.is_empty() => format!("{whole}::{rest}"),
            _ => path.to_owned(),
        }
    }
}

/// Files of tests and of models of the world.
fn is_test(name: &str) -> bool {
    name == "tests" || name.ends_with("_tests") || name == "simulation"
}

fn read(folder: &Path, above: &[String], sources: &mut BTreeMap<Module, Source>) {
    for entry in std::fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        let name = path.file_stem().and_then(|name| name.to_str());
        let name = name.expect("a name in UTF-8").to_owned();
        let module = [above, std::slice::from_ref(&name)].concat();
        if is_test(&name) {
            continue;
        }
        if path.is_dir() {
            read(&path, &module, sources);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            let text = std::fs::read_to_string(&path).expect("a source in UTF-8");
            let module = match name.as_str() {
                "mod" | "lib" => above.to_vec(),
                _ => module,
            };
            sources.insert(module, source(&text));
        }
    }
}

fn source(text: &str) -> Source {
    let code = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default());
    // Tests within a file stand at its end.
    let code =
        code.take_while(|line| !(line.starts_with("mod tests") || line.contains(") mod tests")));
    let code = code.collect::<Vec<_>>().join("\n");
    let (mut exports, mut names, mut rest) = (Vec::new(), Vec::new(), String::new());
    let mut aliases = BTreeMap::new();
    for statement in code.split_inclusive(';') {
        let start = statement
            .rfind("\nuse ")
            .or_else(|| statement.rfind("\npub use "));
        let start = start.or_else(|| statement.rfind("\npub(crate) use "));
        let start = start.or_else(|| statement.rfind("\npub(super) use "));
        let Some(start) = start else {
            rest.push_str(statement);
            continue;
        };
        rest.push_str(&statement[..start]);
        let declaration = statement[start..].trim().trim_end_matches(';');
        let (is_export, tree) = match declaration.split_once("use ") {
            Some((before, tree)) => (!before.is_empty(), tree),
            None => continue,
        };
        let paths = if is_export { &mut exports } else { &mut names };
        let mut found = Vec::new();
        flatten("", tree, &mut found);
        for (alias, path) in found {
            aliases.insert(alias, path.clone());
            paths.push(path);
        }
    }
    names.extend(paths_in(&rest));
    // What is re-exported and used in the same file is imported, too.
    let is_used = |path: &&String| {
        let name = path.rsplit("::").next().unwrap_or_default();
        let mut words = rest.split(|letter: char| !(letter.is_alphanumeric() || letter == '_'));
        words.any(|word| word == name)
    };
    names.extend(exports.iter().filter(is_used).cloned());
    Source {
        exports,
        names,
        aliases,
    }
}

/// The paths of a `use` tree, each with its name in the code.
fn flatten(above: &str, tree: &str, paths: &mut Vec<(String, String)>) {
    let tree = tree.trim();
    let Some((head, body)) = tree.split_once('{') else {
        let (name, alias) = tree.split_once(" as ").unwrap_or((tree, ""));
        let path = format!("{above}{}", name.trim());
        let path = path.strip_suffix("::self").unwrap_or(&path).to_owned();
        let last = path.rsplit("::").next().unwrap_or_default().to_owned();
        let alias = match alias.trim() {
            "" => last,
            alias => alias.to_owned(),
        };
        paths.push((alias, path));
        return;
    };
    let head = format!("{above}{}", head.trim());
    let body = body.rsplit_once('}').map_or(body, |(body, _)| body);
    let (mut depth, mut start) = (0, 0);
    for (at, letter) in body.char_indices().chain([(body.len(), ',')]) {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                if !body[start..at].trim().is_empty() {
                    flatten(&head, &body[start..at], paths);
                }
                start = (at + 1).min(body.len());
            }
            _ => {}
        }
    }
}

/// Paths such as `super::name::Item` or `name::item` in code.
fn paths_in(code: &str) -> Vec<String> {
    let is_part = |letter: char| letter.is_alphanumeric() || letter == '_' || letter == ':';
    let words = code.split(|letter: char| !is_part(letter));
    let paths = words.filter(|word| word.contains("::") && !word.starts_with("::"));
    paths
        .map(|path| path.trim_end_matches(':').to_owned())
        .collect()
}

/// A path from the crate's root; `None` of a path into other crates.
fn absolute(module: &Module, path: &str, modules: &BTreeSet<Module>) -> Option<Module> {
    let mut names: Vec<String> = path.split("::").map(str::to_owned).collect();
    let mut base = module.clone();
    match names.first()?.as_str() {
        "crate" => return Some(names.split_off(1)),
        "self" => names = names.split_off(1),
        "super" => {
            while names.first().is_some_and(|name| name == "super") {
                names.remove(0);
                base.pop();
            }
        }
        child => {
            let child = [&module[..], &[child.to_owned()]].concat();
            if !modules.contains(&child) {
                return None;
            }
        }
    }
    Some([base, names].concat())
}

/// Where each file's re-exports lead.
fn exports(sources: &BTreeMap<Module, Source>) -> BTreeMap<Module, Module> {
    let modules: BTreeSet<Module> = sources.keys().cloned().collect();
    let mut exports = BTreeMap::new();
    for (module, source) in sources {
        for path in &source.exports {
            if let Some(target) = absolute(module, path, &modules)
                && let Some(name) = target.last().cloned()
            {
                exports.insert([&module[..], &[name]].concat(), target);
            }
        }
    }
    exports
}

/// The file that defines what a path names.
fn follow(
    mut path: Module,
    exports: &BTreeMap<Module, Module>,
    modules: &BTreeSet<Module>,
) -> Module {
    loop {
        let known = (0..=path.len())
            .rev()
            .find(|&length| modules.contains(&path[..length]));
        let length = known.unwrap_or(0);
        let item = path.get(..=length).and_then(|item| exports.get(item));
        match item {
            Some(target) => path = [&target[..], &path[length + 1..]].concat(),
            None => return path[..length].to_vec(),
        }
    }
}
