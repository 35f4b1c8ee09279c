//! The names of what this box makes on the server: `lakehead_<appliance>_<source>`. Pure.
//!
//! **Invariant:** what was made under a name keeps it: once the [`Origin`] is recorded, neither another
//! name of the appliance nor the box that made it being another one changes the names in use.

use crate::{config::Source, source::Origin};

/// Names of one source's slot and publications.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Names {
    /// The replication slot.
    pub(crate) slot: String,
    /// Whether the slot is an operator's.
    pub(crate) slot_given: bool,
    /// The publication of tables whose old rows can be named.
    pub(crate) publication: String,
    /// The publication, of inserts only, of the others. `None` beside an operator's publication.
    pub(crate) append: Option<String>,
}

impl Names {
    /// The operator's names, else those in use, else those that we would give.
    pub(crate) fn of(appliance: &str, source: &Source, origin: Option<&Origin>) -> Self {
        let mut names = Self::new(appliance, source);
        let Some(origin) = origin else { return names };
        if source.slot.is_none() {
            names.slot.clone_from(&origin.slot);
        }
        // An operator's publication that the configuration no longer names is left alone.
        if source.publication.is_none() && origin.append.is_some() {
            names.publication.clone_from(&origin.publication);
            names.append.clone_from(&origin.append);
        }
        names
    }

    /// The operator's names, or those that the appliance of this name gives.
    pub(crate) fn new(appliance: &str, source: &Source) -> Self {
        let ours = derived(appliance, &source.name);
        Self {
            slot: source.slot.clone().unwrap_or_else(|| ours.clone()),
            slot_given: source.slot.is_some(),
            append: source.publication.is_none().then(|| format!("{ours}_append")),
            publication: source.publication.clone().unwrap_or(ours),
        }
    }

    /// A fresh name for a slot that ends with its connection.
    pub(crate) fn temporary(&self) -> String {
        format!("{}_{:06x}", cut(&self.slot, NAME_BYTES_MAX - 7), fastrand::u32(..1 << 24))
    }

    /// The publications, as START_REPLICATION wants them: a quoted list of quoted names.
    pub(crate) fn publications(&self) -> String {
        let names = [Some(&self.publication), self.append.as_ref()];
        let names = names.into_iter().flatten().map(|name| super::catalog::identifier(name));
        names.collect::<Vec<_>>().join(",").replace('\'', "''")
    }
}

/// `lakehead_<appliance>_<source>` in `[a-z0-9_]`, short enough for a suffix.
fn derived(appliance: &str, source: &str) -> String {
    let plain = |c: char| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '_' };
    let long = format!("lakehead_{appliance}_{source}");
    let name: String = long.chars().map(plain).collect();
    match name.len() <= OURS_BYTES_MAX {
        true => name,
        false => {
            let sum = crc32c::crc32c(long.as_bytes());
            format!("{}_{sum:08x}", cut(&name, OURS_BYTES_MAX - 9))
        }
    }
}

fn cut(name: &str, bytes: usize) -> &str {
    name.get(..bytes).unwrap_or(name)
}

/// PostgreSQL's names end here (`NAMEDATALEN - 1`).
const NAME_BYTES_MAX: usize = 63;
/// Room for `_append`.
const OURS_BYTES_MAX: usize = NAME_BYTES_MAX - 7;

#[cfg(test)]
mod tests {
    use super::*;

    fn source(more: &str) -> Source {
        let text = format!(
            "[appliance]\nname = \"a\"\ndata_dir = \"/tmp\"\n[[source]]\nname = \"erp\"\nkind = \"postgres\"\n\
             url = \"postgresql://u@localhost/d\"\ntables = [\"*\"]\n{more}\n[lake]\nbucket = \"lake\"\nprefix = \"\"\n\
             region = \"eu-central-1\"\n[encryption]\nmode = \"none\"\n"
        );
        let environment = crate::config::Environment::default();
        let config = crate::config::Config::parse("x".as_ref(), &text, &environment).unwrap();
        config.sources[0].clone()
    }

    #[test]
    fn what_was_made_keeps_its_name_though_the_appliance_has_another() {
        let made = Names::new("a", &source(""));
        let origin = Origin {
            system_identifier: "7".into(),
            timeline: 1,
            database: "d".into(),
            slot: made.slot.clone(),
            publication: made.publication.clone(),
            append: made.append.clone(),
            consistent_point: crate::units::Position(1),
            made: false,
        };
        assert_eq!(Names::of("b", &source(""), Some(&origin)), made);
        assert_eq!(Names::of("b", &source(""), None).slot, "lakehead_b_erp");
        // The operator's word counts.
        let given = Names::of("b", &source("slot = \"s\"\npublication = \"p\""), Some(&origin));
        assert_eq!((&*given.slot, &*given.publication, given.append), ("s", "p", None));
        // A publication that was an operator's is not taken for ours.
        let foreign = Origin { publication: "p".into(), append: None, ..origin };
        let names = Names::of("b", &source(""), Some(&foreign));
        assert_eq!((&*names.slot, &*names.publication), ("lakehead_a_erp", "lakehead_b_erp"));
    }

    #[test]
    fn a_name_fits_and_long_ones_stay_apart() {
        assert_eq!(derived("plant7-a", "erp"), "lakehead_plant7_a_erp");
        let long = "x".repeat(40);
        let (one, two) = (derived(&long, &format!("{long}1")), derived(&long, &format!("{long}2")));
        assert_ne!(one, two);
        assert!(one.len() <= OURS_BYTES_MAX);
        let names = Names {
            slot: one,
            slot_given: false,
            publication: "it's".into(),
            append: Some("b".into()),
        };
        assert!(names.temporary().len() <= NAME_BYTES_MAX);
        assert_eq!(names.publications(), r#""it''s","b""#);
    }
}
