//! Which tables are meant: patterns over `schema.table`. Pure.
//!
//! `*` is any run of characters, `!` in front excludes, and the last pattern that matches decides. A schema in which a
//! restore keeps its progress is never meant, as the server's own are not: a restore of it would be in its own way.

use super::error::SourceError;
use crate::source::own::RESTORE_SCHEMA;

/// The patterns of a source's `tables`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Patterns(Vec<Pattern>);

#[derive(Clone, Debug, Eq, PartialEq)]
struct Pattern {
    includes: bool,
    glob: String,
}

impl Patterns {
    /// Reads the patterns.
    ///
    /// # Errors
    ///
    /// One of them can match nothing.
    pub(crate) fn new(texts: &[String]) -> Result<Self, SourceError> {
        let patterns = texts.iter().map(|text| {
            let (includes, glob) = match text.strip_prefix('!') {
                Some(glob) => (false, glob),
                None => (true, text.as_str()),
            };
            match glob == "*" || glob.contains('.') {
                true => Ok(Pattern { includes, glob: glob.into() }),
                false => Err(SourceError::Config(format!(
                    "`tables`: `{text}` names no schema: write `public.{glob}`"
                ))),
            }
        });
        Ok(Self(patterns.collect::<Result<_, _>>()?))
    }

    /// Whether a table is meant.
    pub(crate) fn include(&self, schema: &str, table: &str) -> bool {
        if schema == RESTORE_SCHEMA {
            return false;
        }
        let name = format!("{schema}.{table}");
        let last = self.0.iter().rev().find(|pattern| matches(&pattern.glob, &name));
        last.is_some_and(|pattern| pattern.includes)
    }

    /// Whether every table is meant.
    pub(crate) fn are_all(&self) -> bool {
        let all = |pattern: &Pattern| pattern.glob == "*" || pattern.glob == "*.*";
        self.0.iter().all(|pattern| pattern.includes) && self.0.iter().any(all)
    }
}

impl std::fmt::Display for Patterns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let texts = self.0.iter().map(|pattern| match pattern.includes {
            true => format!("`{}`", pattern.glob),
            false => format!("`!{}`", pattern.glob),
        });
        f.write_str(&texts.collect::<Vec<_>>().join(", "))
    }
}

/// Glob with `*` only. Linear: on a mismatch the last star takes one character more.
fn matches(glob: &str, text: &str) -> bool {
    let (glob, text) = (glob.as_bytes(), text.as_bytes());
    let (mut at, mut seen) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while seen < text.len() {
        if glob.get(at) == Some(&b'*') {
            star = Some((at, seen));
            at += 1;
        } else if glob.get(at) == Some(&text[seen]) {
            at += 1;
            seen += 1;
        } else if let Some((star_at, taken)) = star {
            star = Some((star_at, taken + 1));
            at = star_at + 1;
            seen = taken + 1;
        } else {
            return false;
        }
    }
    glob[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn patterns(texts: &[&str]) -> Patterns {
        Patterns::new(&texts.iter().map(ToString::to_string).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn the_last_pattern_that_matches_decides() {
        let patterns = patterns(&["public.*", "!public.scratch_*", "public.scratch_kept"]);
        assert!(patterns.include("public", "orders"));
        assert!(!patterns.include("public", "scratch_1"));
        assert!(patterns.include("public", "scratch_kept"));
        assert!(!patterns.include("sales", "orders"));
    }

    #[test]
    fn what_a_restore_keeps_is_never_meant() {
        for texts in [&["*"][..], &["*.*"], &["lakehead_restore.*"]] {
            assert!(!patterns(texts).include("lakehead_restore", "objects"), "{texts:?}");
        }
        assert!(patterns(&["*"]).include("lakehead_restored", "objects"));
        assert!(patterns(&["*"]).include("public", "lakehead_restore.objects"));
    }

    #[test]
    fn a_star_spans_anything_and_nothing() {
        assert!(matches("*", "public.t"));
        assert!(matches("p*.t*", "p.t"));
        assert!(matches("*.a*b*c", "x.aabbcc"));
        assert!(!matches("*.a*b*c", "x.aabb"));
        assert!(!matches("public.t", "public.tt"));
    }

    #[test]
    fn a_pattern_without_schema_is_refused() {
        let refused = Patterns::new(&["orders".into()]).unwrap_err().to_string();
        assert!(refused.contains("public.orders"));
    }

    proptest! {
        #[test]
        fn a_glob_matches_what_its_stars_are_filled_with(
            parts in prop::collection::vec("[a-c.]{0,3}", 1..5),
            fill in prop::collection::vec("[a-c.]{0,3}", 4),
        ) {
            let glob = parts.join("*");
            let mut text = parts[0].clone();
            for (part, filled) in parts[1..].iter().zip(&fill) {
                text.push_str(filled);
                text.push_str(part);
            }
            prop_assert!(matches(&glob, &text));
        }
    }
}
