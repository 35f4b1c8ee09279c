//! The doors of tests/fuzz to what an operator writes: the configuration and files of secrets.

use std::path::Path;

use super::{Config, ConfigError, Environment, load_key32};
use crate::disk;

/// `site.toml`: taken, or every problem has its place in it.
pub fn site(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let parse = || Config::parse(Path::new("site.toml"), text, &Environment::default());
    match parse() {
        Ok(config) => assert!(parse().is_ok_and(|again| again == config)),
        Err(ConfigError::Wrong { problems, .. }) => {
            assert!(!problems.is_empty() && problems.len() <= text.len() + PROBLEMS_MAX);
            let lines = text.split('\n').count();
            for problem in &problems {
                assert!((1..=lines).contains(&problem.line), "{problem}");
                assert!(
                    problem.column >= 1 && !problem.what.is_empty() && !problem.remedy.is_empty()
                );
            }
            assert!(problems.is_sorted_by_key(|problem| (problem.line, problem.column)));
        }
        Err(other) => unreachable!("the text was read: {other}"),
    }
}

/// A file with a key: no error says what is in it.
pub fn secret(bytes: &[u8]) {
    let (_kept, path) = disk::in_memory(bytes).expect("room in memory");
    match load_key32(&path) {
        Ok(key) => assert_eq!(key.expose().len(), 32),
        Err(why) => {
            let what = why.to_string().replace(&path.display().to_string(), "");
            assert!(what.len() < 80, "{what}");
        }
    }
}

/// Of an empty file: what is missing.
const PROBLEMS_MAX: usize = 32;
