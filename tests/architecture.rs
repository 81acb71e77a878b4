//! Who may import whom: the arrows of the design, read from the `use` lines of `src/`.
//!
//! Takes: the source files, without their tests. Gives: a failure that names each forbidden import and each circle.
//! A folder is a part of the program: answering, counting, reporting and checking never import each other, and what they
//! share is below them. Within a folder files form no circle; a folder's own `mod.rs` and the files below it are one unit
//! there, for it declares and re-exports them.
//! Limits: paths written out in an expression (`crate::a::b()`) are read as well; what a macro makes is not.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Each part, and the parts that it may import besides itself.
const ALLOWED: &[(&str, &[&str])] = &[
    ("cli", &["daemon", "checking", "config", "base"]),
    ("daemon", &["answering", "counting", "reporting", "checking", "store", "net", "config", "metrics", "base"]),
    ("checking", &["answering", "store", "net", "config", "metrics", "base"]),
    ("answering", &["store", "net", "config", "metrics", "base"]),
    ("counting", &["store", "net", "config", "metrics", "base"]),
    ("reporting", &["store", "net", "config", "metrics", "base"]),
    ("store", &["base"]),
    ("net", &["base"]),
    ("config", &["base"]),
    ("metrics", &["base"]),
    ("base", &[]),
];

/// A module by its path below the crate: `["answering", "policy"]`.
type Module = Vec<String>;

/// The imports of each file, by module: which module, and the names taken from it.
type Imports = BTreeMap<Module, BTreeMap<Module, BTreeSet<String>>>;

#[test]
fn no_part_imports_what_it_may_not() {
    let mut forbidden = Vec::new();
    for (from, targets) in &imports(Path::new(env!("CARGO_MANIFEST_DIR")).join("src").as_path()) {
        let Some(part) = from.first() else { continue };
        let allowed = ALLOWED.iter().find(|(name, _)| name == part);
        let (_, allowed) = allowed.unwrap_or_else(|| panic!("src/{part}: add it to ALLOWED, as the design has it"));
        for (to, names) in targets {
            let target = to.first().map_or("lib", String::as_str);
            if target != part && !allowed.contains(&target) {
                forbidden.push(format!("{} -> {}: {names:?}", from.join("::"), to.join("::")));
            }
        }
    }
    assert!(forbidden.is_empty(), "forbidden imports:\n{}", forbidden.join("\n"));
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let mut circles = Vec::new();
    for folder in ["src", "parsers/src"] {
        let imports = imports(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder));
        circles.extend(imports.keys().filter_map(|start| circle(start, &imports)));
    }
    circles.sort();
    circles.dedup();
    assert!(circles.is_empty(), "circles:\n{}", circles.join("\n"));
}

#[test]
fn forbidden_imports_and_circles_are_seen() {
    let folder = tempfile::tempdir().unwrap();
    let write = |file: &str, text: &str| {
        let path = folder.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("lib.rs", "pub mod counting;\npub mod store;\n");
    write("counting/mod.rs", "mod a;\nmod b;\nuse a::A;\npub struct Shared;\n");
    write(
        "counting/a.rs",
        "use super::Shared;\nuse crate::{\n    counting::b::{self, B},\n    store::Store,\n};\npub struct A;\n",
    );
    write("counting/b.rs", "fn f() { crate::counting::a::g() }\npub struct B;\n");
    write("store/mod.rs", "pub struct Store;\n#[cfg(test)]\nmod tests {\n    use crate::counting::Shared;\n}\n");
    let found = imports(folder.path());
    let module = |path: &str| -> Module { path.split("::").map(str::to_owned).collect() };
    let of = |path: &str| found[&module(path)].keys().map(|to| to.join("::")).collect::<Vec<_>>();
    assert_eq!(of("counting::a"), ["counting", "counting::b", "store"]);
    assert_eq!(of("counting::b"), ["counting::a"]);
    assert_eq!(of("counting"), ["counting::a"]);
    assert!(found[&module("store")].is_empty(), "tests may import what they like");
    assert_eq!(circle(&module("counting::a"), &found).unwrap(), "counting::a -> counting::b -> counting::a");
    assert_eq!(circle(&module("store"), &found), None);
}

#[test]
fn a_type_that_others_see_has_a_name_of_its_own() {
    let mut files = Vec::new();
    list(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for file in &files {
        let text = fs::read_to_string(file).unwrap();
        for name in without_tests(&text).lines().filter_map(public_type) {
            names.entry(name).or_default().push(file.display().to_string());
        }
    }
    names.retain(|_, files| files.len() > 1);
    assert!(names.is_empty(), "public types of the same name: {names:#?}");
}

/// The first circle through `start`, from its smallest member; none where there is no circle.
fn circle(start: &Module, imports: &Imports) -> Option<String> {
    let mut paths = vec![vec![start.clone()]];
    let mut seen = BTreeSet::new();
    while let Some(path) = paths.pop() {
        let last = path.last()?;
        for next in imports.get(last).into_iter().flat_map(BTreeMap::keys) {
            // A folder's module file and what is below it are one unit.
            if next.starts_with(last) || last.starts_with(next) {
                continue;
            }
            if next == start {
                return Some(rotated(&path));
            }
            if seen.insert(next.clone()) {
                paths.push([path.clone(), vec![next.clone()]].concat());
            }
        }
    }
    None
}

/// A circle as text, the same whichever member it was found from.
fn rotated(path: &[Module]) -> String {
    let first = (0..path.len()).min_by_key(|at| &path[*at]).unwrap_or(0);
    let turned = path[first..].iter().chain(&path[..=first]);
    turned.map(|module| module.join("::")).collect::<Vec<_>>().join(" -> ")
}

/// Reads every file below a source folder.
fn imports(folder: &Path) -> Imports {
    let mut files = Vec::new();
    list(folder, &mut files);
    let modules: BTreeMap<Module, PathBuf> =
        files.into_iter().map(|file| (module_of(file.strip_prefix(folder).unwrap()), file)).collect();
    let mut imports = Imports::new();
    for (module, file) in &modules {
        let text = fs::read_to_string(file).unwrap();
        let targets = imports.entry(module.clone()).or_default();
        for path in paths(without_tests(&text)) {
            let absolute = absolute(module, &path, &modules);
            // The longest part of the path that is a module; the rest is what is taken from it.
            let longest = (1..=absolute.len()).rev().find(|n| modules.contains_key(&absolute[..*n]));
            let Some(longest) = longest else { continue };
            let target = absolute[..longest].to_vec();
            if target != *module {
                targets.entry(target).or_default().insert(absolute[longest..].join("::"));
            }
        }
    }
    imports
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            list(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") && path.file_name().is_some_and(|n| n != "tests.rs") {
            files.push(path);
        }
    }
}

fn module_of(file: &Path) -> Module {
    let mut module: Module = file.with_extension("").iter().map(|part| part.to_string_lossy().into_owned()).collect();
    if module.last().is_some_and(|last| ["mod", "lib", "main"].contains(&last.as_str())) {
        module.pop();
    }
    module
}

/// A file's text up to its test module, which stands last.
fn without_tests(text: &str) -> &str {
    text.find("\n#[cfg(test)]\nmod ").map_or(text, |at| &text[..at])
}

/// The paths that a text imports or writes out, each as its segments, comments left out.
fn paths(text: &str) -> Vec<Vec<String>> {
    let code: String = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let mut found = Vec::new();
    let mut rest = code.as_str();
    while let Some(at) = rest.find("use ") {
        let begins = rest[..at].chars().next_back().is_none_or(|c| c.is_whitespace());
        let tail = &rest[at + 4..];
        let end = tail.find(';').unwrap_or(tail.len());
        if begins && tail.starts_with(|c: char| c.is_ascii_lowercase()) {
            expand("", &tail[..end], &mut found);
        }
        rest = tail;
    }
    for (at, _) in code.match_indices("crate::") {
        let path: String = code[at..].chars().take_while(|c| c.is_alphanumeric() || "_:".contains(*c)).collect();
        found.push(path.trim_end_matches(':').split("::").map(str::to_owned).collect());
    }
    found
}

/// `a::{b, c::{d, e}}` as `a::b`, `a::c::d`, `a::c::e`.
fn expand(front: &str, tree: &str, found: &mut Vec<Vec<String>>) {
    let tree = tree.trim();
    let Some((before, inner)) = tree.split_once('{') else {
        let name = tree.split(" as ").next().unwrap_or_default().trim();
        let path = format!("{front}{name}");
        return found.push(path.split("::").filter(|part| *part != "self").map(str::to_owned).collect());
    };
    let front = format!("{front}{}", before.trim());
    let inner = inner.trim_end().strip_suffix('}').unwrap_or(inner);
    let (mut depth, mut begin) = (0, 0);
    for (at, c) in inner.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                expand(&front, &inner[begin..at], found);
                begin = at + 1;
            }
            _ => {}
        }
    }
    if !inner[begin..].trim().is_empty() {
        expand(&front, &inner[begin..], found);
    }
}

/// A path below the crate, whichever way it was written.
fn absolute(module: &Module, path: &[String], modules: &BTreeMap<Module, PathBuf>) -> Module {
    match path.first().map(String::as_str) {
        Some("crate") => path[1..].to_vec(),
        Some("super") => {
            let ups = path.iter().take_while(|part| *part == "super").count();
            [&module[..module.len().saturating_sub(ups)], &path[ups..]].concat()
        }
        Some(first) => {
            let child = [module.clone(), vec![first.to_owned()]].concat();
            if modules.contains_key(&child) { [module.clone(), path.to_vec()].concat() } else { Vec::new() }
        }
        None => Vec::new(),
    }
}

/// The name of the type that a line declares, where other files see it.
fn public_type(line: &str) -> Option<String> {
    let line = line.strip_prefix("pub ").or_else(|| line.strip_prefix("pub(crate) "))?;
    let rest = ["struct ", "enum ", "trait ", "type ", "union "].iter().find_map(|word| line.strip_prefix(word))?;
    Some(rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect())
}
