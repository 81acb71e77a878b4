//! The guides in `packaging/doc` hold: configurations load, Postfix knows the parameters, the commands exist.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use tlswarden::config::Config;

/// A fenced block of a guide.
struct Block {
    guide: PathBuf,
    kind: String,
    text: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn guides() -> Vec<PathBuf> {
    let files = fs::read_dir(root().join("packaging/doc")).unwrap();
    let mut guides: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    guides.sort();
    guides
}

/// All blocks of a kind; there are some.
fn blocks(kind: &str) -> Vec<Block> {
    let mut found = Vec::new();
    for guide in guides() {
        let text = fs::read_to_string(&guide).unwrap();
        let mut open: Option<Block> = None;
        for line in text.lines().map(str::trim) {
            match (line.strip_prefix("```"), open.as_mut()) {
                (Some(_), Some(_)) => found.extend(open.take()),
                (Some(kind), None) => {
                    open = Some(Block { guide: guide.clone(), kind: kind.to_owned(), text: String::new() });
                }
                (None, Some(block)) => block.text += &format!("{line}\n"),
                (None, None) => {}
            }
        }
        assert!(open.is_none(), "{}: a block is not closed", guide.display());
    }
    found.retain(|block| block.kind == kind);
    assert!(!found.is_empty(), "no guide has a block of {kind}");
    found
}

#[test]
fn configurations_load() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tlswarden.toml");
    for block in blocks("toml") {
        fs::write(&path, &block.text).unwrap();
        if let Err(error) = Config::load(&path) {
            panic!("{}: {error}\n{}", block.guide.display(), block.text);
        }
    }
}

#[test]
fn postfix_knows_the_parameters() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("master.cf"), "").unwrap();
    let known = Command::new("postconf").args(["-d"]).output().unwrap();
    let known = String::from_utf8(known.stdout).unwrap();
    for block in blocks("main.cf") {
        for line in block.text.lines() {
            let (name, value) = line.split_once(" = ").unwrap();
            // Postfix 3.10 and later have these, this host's perhaps not.
            let newer = name.starts_with("smtp_tlsrpt_");
            let is_known = newer || known.lines().any(|known| known.split(" =").next() == Some(name));
            assert!(is_known && !value.is_empty(), "{}: {line}", block.guide.display());
        }
    }
}

#[test]
fn commands_exist() {
    for block in blocks("sh") {
        for line in block.text.lines() {
            if line.starts_with("tlswarden ") {
                let words = line.split(" > ").next().unwrap().split_whitespace();
                if let Err(error) = tlswarden::cli::command().try_get_matches_from(words) {
                    panic!("{}: {line}: {error}", block.guide.display());
                }
            }
        }
    }
}

#[test]
fn options_and_map_names_exist() {
    let sample = fs::read_to_string(root().join("packaging/config.toml")).unwrap();
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    for guide in guides() {
        let name = guide.file_name().unwrap().to_str().unwrap();
        assert!(readme.contains(&format!("packaging/doc/{name}")), "the README does not name {name}");
        let text = fs::read_to_string(&guide).unwrap();
        let prose: String = text.split("```").step_by(2).collect();
        for quoted in prose.split('`').skip(1).step_by(2) {
            let Some((section, option)) = quoted.strip_prefix('[').and_then(|rest| rest.split_once("] ")) else {
                continue;
            };
            let section = format!("[{section}]");
            let at = sample.find(&section).unwrap_or_else(|| panic!("{name}: {section} is not in the sample"));
            let option = option.split(' ').next().unwrap();
            assert!(sample[at..].contains(&format!("{option} = ")), "{name}: {quoted}");
        }
    }
}
