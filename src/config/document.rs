//! A TOML text read key by key, so that every problem is found at once and named by its place. Pure.
//!
//! **Invariant:** a key that nobody asked for is a problem: [`Section::finish`] names it.

use std::{cell::RefCell, collections::BTreeSet, ops::RangeInclusive};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{
    error::{Fault, Problem},
    rules, source_url,
};

/// The text, and what was found wrong with it so far.
pub(super) struct Document<'t> {
    text: &'t str,
    problems: RefCell<Vec<Problem>>,
}

/// One table of the text.
pub(super) struct Section<'d> {
    document: &'d Document<'d>,
    table: &'d DeTable<'d>,
    name: &'static str,
    at: usize,
    known: RefCell<Vec<&'static str>>,
}

/// A value that a rule accepts, and where it stands, for rules over several keys.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place(usize);

impl<'t> Document<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self { text, problems: RefCell::default() }
    }

    /// What is wrong, in the order of the lines.
    pub(super) fn into_problems(self) -> Vec<Problem> {
        let mut problems = self.problems.into_inner();
        problems.sort_by_key(|problem| (problem.line, problem.column));
        problems
    }

    /// The text's top table, or `None` if it is not TOML.
    pub(super) fn parse(&self) -> Option<Spanned<DeTable<'t>>> {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        let mut told = BTreeSet::new();
        for error in &errors {
            let at = error.span().map_or(0, |span| span.start);
            // What is wrong in a line behind the first thing follows from it.
            if !told.insert(self.line(Place(at))) {
                continue;
            }
            let twice = error.message() == "duplicate key";
            let key = error.span().filter(|_| twice).and_then(|span| self.text.get(span));
            let remedy = if twice {
                "remove one of the two"
            } else {
                "write the line as TOML, see https://toml.io"
            };
            let fault = Fault::new(error.message(), remedy);
            self.wrong(Place(at), key.unwrap_or_default().trim().into(), None, fault);
        }
        errors.is_empty().then_some(table)
    }

    pub(super) fn wrong(&self, place: Place, key: String, value: Option<String>, fault: Fault) {
        let line = self.line(place);
        let column = self.before(place).rsplit('\n').next().unwrap_or("").chars().count() + 1;
        let Fault { what, remedy } = fault;
        self.problems.borrow_mut().push(Problem { line, column, key, value, what, remedy });
    }

    fn before(&self, place: Place) -> &'t str {
        self.text.get(..place.0).unwrap_or(self.text)
    }

    fn line(&self, place: Place) -> usize {
        self.before(place).matches('\n').count() + 1
    }
}

impl<'d> Section<'d> {
    pub(super) fn top(document: &'d Document<'d>, table: &'d Spanned<DeTable<'d>>) -> Self {
        Self::new(document, table.get_ref(), "", 0)
    }

    fn new(
        document: &'d Document<'d>,
        table: &'d DeTable<'d>,
        name: &'static str,
        at: usize,
    ) -> Self {
        Self { document, table, name, at, known: RefCell::default() }
    }

    /// The table under `key`.
    pub(super) fn section(&self, key: &'static str) -> Option<Section<'d>> {
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::Table(table) => {
                Some(Section::new(self.document, table, key, value.span().start))
            }
            _ => self.mistyped(key, value, format!("write it as a table: [{key}]")),
        }
    }

    /// The tables under `[[key]]`, in their order.
    pub(super) fn sections(&self, key: &'static str) -> Vec<Section<'d>> {
        let Some(value) = self.value(key) else { return vec![] };
        let remedy = format!("write two brackets: [[{key}]]");
        let DeValue::Array(items) = value.get_ref() else {
            return self.mistyped(key, value, remedy).unwrap_or_default();
        };
        let section = |item: &'d Spanned<DeValue<'d>>| match item.get_ref() {
            DeValue::Table(table) => {
                Some(Section::new(self.document, table, key, item.span().start))
            }
            _ => self.mistyped(key, item, remedy.clone()),
        };
        items.iter().filter_map(section).collect()
    }

    /// A text that must be there. `example` is how the line may read.
    pub(super) fn required<T>(
        &self,
        key: &'static str,
        example: &str,
        rule: impl FnOnce(&str) -> Result<T, Fault>,
    ) -> Option<T> {
        if self.place(key).is_none() {
            self.known(key);
            self.missing(key, Fault::new("is missing", format!("add a line like: {example}")));
            return None;
        }
        self.optional(key, rule)
    }

    /// A text that may be there.
    pub(super) fn optional<T>(
        &self,
        key: &'static str,
        rule: impl FnOnce(&str) -> Result<T, Fault>,
    ) -> Option<T> {
        let value = self.value(key)?;
        let DeValue::String(text) = value.get_ref() else {
            return self.mistyped(key, value, format!("write it in quotes: {key} = \"…\""));
        };
        let accepted = rule(text);
        accepted.map_err(|fault| self.refused(key, Place(value.span().start), text, fault)).ok()
    }

    /// A list of texts that may be there.
    pub(super) fn texts(
        &self,
        key: &'static str,
        rule: impl Fn(&str) -> Result<String, Fault>,
    ) -> Option<Vec<String>> {
        let value = self.value(key)?;
        let remedy = format!("write a list of texts: {key} = [\"…\"]");
        let DeValue::Array(items) = value.get_ref() else {
            return self.mistyped(key, value, remedy);
        };
        let accept = |item: &Spanned<DeValue<'_>>| match item.get_ref() {
            DeValue::String(text) => rule(text)
                .map_err(|fault| self.refused(key, Place(item.span().start), text, fault))
                .ok(),
            _ => self.mistyped(key, item, remedy.clone()),
        };
        let accepted: Vec<Option<String>> = items.iter().map(accept).collect();
        accepted.into_iter().collect()
    }

    /// `true` or `false`, if it is there.
    pub(super) fn flag(&self, key: &'static str) -> Option<bool> {
        let value = self.value(key)?;
        value.get_ref().as_bool().or_else(|| {
            self.mistyped(
                key,
                value,
                format!("write {key} = true or {key} = false, without quotes"),
            )
        })
    }

    /// A whole number, if it is there.
    pub(super) fn number(&self, key: &'static str, range: RangeInclusive<u32>) -> Option<u32> {
        let value = self.value(key)?;
        let (least, most) = (range.start(), range.end());
        let remedy = format!("write a whole number from {least} to {most}, without quotes");
        let DeValue::Integer(integer) = value.get_ref() else {
            return self.mistyped(key, value, remedy);
        };
        let number = u32::from_str_radix(integer.as_str(), integer.radix()).ok();
        number.filter(|number| range.contains(number)).or_else(|| {
            let fault = Fault::new("is out of range", remedy);
            let shown = Some(integer.to_string());
            self.document.wrong(Place(value.span().start), self.path(key), shown, fault);
            None
        })
    }

    /// Where `key`'s value stands.
    pub(super) fn place(&self, key: &str) -> Option<Place> {
        self.table.get(key).map(|value| Place(value.span().start))
    }

    /// Reports the value of `key`, or its absence.
    pub(super) fn wrong(&self, key: &'static str, fault: Fault) {
        match self.table.get(key) {
            Some(value) => {
                let place = Place(value.span().start);
                let shown = value.get_ref().as_str().and_then(|text| shown(key, text));
                self.document.wrong(place, self.path(key), shown, fault);
            }
            None => self.missing(key, fault),
        }
    }

    /// Reports the section itself.
    pub(super) fn wrong_here(&self, fault: Fault) {
        self.document.wrong(Place(self.at), self.name.into(), None, fault);
    }

    /// Names every key that nobody asked for.
    pub(super) fn finish(self) {
        let known = self.known.borrow();
        for key in self.table.keys() {
            let name: &str = key.get_ref();
            if known.contains(&name) {
                continue;
            }
            let fault = Fault::new("is not a key of this table", unknown_remedy(name, &known));
            // Its value is not shown: what stands in the wrong place may be a secret.
            self.document.wrong(Place(key.span().start), self.path(name), None, fault);
        }
    }

    fn value(&self, key: &'static str) -> Option<&'d Spanned<DeValue<'d>>> {
        self.known(key);
        self.table.get(key)
    }

    fn known(&self, key: &'static str) {
        self.known.borrow_mut().push(key);
    }

    fn missing(&self, key: &'static str, fault: Fault) {
        self.document.wrong(Place(self.at), self.path(key), None, fault);
    }

    fn refused(&self, key: &'static str, place: Place, text: &str, fault: Fault) {
        let shown = shown(key, text);
        let fault = match (&shown, names_secret(key)) {
            (None, true) => Fault { remedy: FILE_OF_SECRET.into(), ..fault },
            _ => fault,
        };
        self.document.wrong(place, self.path(key), shown, fault);
    }

    fn mistyped<T>(
        &self,
        key: &'static str,
        value: &Spanned<DeValue<'_>>,
        remedy: String,
    ) -> Option<T> {
        let (value, place) = (value.get_ref(), Place(value.span().start));
        let fault = Fault::new(format!("is of type {}", value.type_str()), remedy);
        let shown = match value {
            DeValue::Integer(number) if !names_secret(key) => Some(number.to_string()),
            DeValue::Float(number) if !names_secret(key) => Some(number.to_string()),
            DeValue::Boolean(flag) => Some(flag.to_string()),
            _ => None,
        };
        self.document.wrong(place, self.path(key), shown, fault);
        None
    }

    fn path(&self, key: &str) -> String {
        if self.name.is_empty() { key.into() } else { format!("{}.{key}", self.name) }
    }
}

/// The value as an error shows it: quoted, control characters escaped, cut, without a URL's password. `None`: it may
/// be a secret itself, where the name of its file belongs, or have one in it.
fn shown(key: &str, text: &str) -> Option<String> {
    let text = match key {
        _ if rules::is_key32(text.trim()) => return None,
        "url" | "endpoint" => hide_password(text)?,
        _ if names_secret(key) && !is_path(text) => return None,
        _ => text.into(),
    };
    let cut: String = text.chars().take(SHOWN_CHARS_MAX).collect();
    let more = if cut.len() < text.len() { "…" } else { "" };
    Some(format!("{cut:?}{more}"))
}

/// Whether a text is the name of a file, and not what belongs into it.
fn is_path(text: &str) -> bool {
    text.starts_with("${") || text.starts_with('/')
}

/// Whether the key is for the name of a file, in whose place people write what is to be in it.
fn names_secret(key: &str) -> bool {
    matches!(
        key,
        "password_file" | "key_file" | "client_key_file" | "credentials_file" | "certificate_key"
    )
}

/// What can be a password goes: all between the user's name and the last `@`, what stands where a port
/// should and is no number, and parameters that speak of secrets. `None`: it is no URL, such as the words of a connection
/// string of libpq's, or speaks of a secret elsewhere.
fn hide_password(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let lead = if scheme.is_empty() { String::new() } else { format!("{scheme}://") };
    let (login, hosts) = match rest.rsplit_once('@') {
        Some((login, hosts)) => (Some(login), hosts),
        None => (None, rest),
    };
    let login = login.map_or(String::new(), |login| match login.split_once(':') {
        Some((user, _)) => format!("{user}:…@"),
        None => format!("{login}@"),
    });
    let (hosts, query) = hosts.split_once('?').unwrap_or((hosts, ""));
    let query = match query {
        "" => "",
        known if source_url::are_known(known) => &format!("?{known}"),
        _ => "?…",
    };
    let hosts = match hosts.split_once(':') {
        Some((user, after)) if login.is_empty() && !begins_with_port(after) => {
            format!("{user}:…")
        }
        _ => hosts.into(),
    };
    let shown = format!("{lead}{login}{hosts}{query}");
    let lower = shown.to_lowercase();
    let speaks = ["pass", "pwd", "secret", "token"].iter().any(|word| lower.contains(word));
    let is_words = scheme.is_empty() && shown.contains('=') || shown.contains(char::is_whitespace);
    (!speaks && !is_words).then_some(shown)
}

fn begins_with_port(text: &str) -> bool {
    let port = text.split(['/', ',']).next().unwrap_or_default();
    port.parse::<u16>().is_ok()
}

fn unknown_remedy(name: &str, known: &[&str]) -> String {
    if name.contains("password") && known.contains(&"password_file") {
        return "put the password in a file of mode 0600 and name it with password_file".into();
    }
    let near = known.iter().map(|key| (distance(name, key), key)).min();
    match near {
        Some((0..=2, key)) => format!("write {key}, or remove the line"),
        _ => format!("remove it; the keys are: {}", known.join(", ")),
    }
}

/// How many letters have to change to get from one word to the other (Levenshtein).
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, letter) in from.chars().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, other) in to.iter().enumerate() {
            let replaced = corner + usize::from(letter != *other);
            corner = row[j + 1];
            row[j + 1] = replaced.min(corner + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}

const FILE_OF_SECRET: &str =
    "put what is secret in a file of mode 0600 and write its name here, from the root: /…";
/// A value longer than this is cut in errors.
const SHOWN_CHARS_MAX: usize = 120;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_shown_without_its_password() {
        for (url, hidden) in [
            ("postgresql://u:s3cr3t@h/d", "postgresql://u:…@h/d"),
            (
                "postgresql://u:s3@cr3t@h,h2/d?sslmode=require",
                "postgresql://u:…@h,h2/d?sslmode=require",
            ),
            ("postgresql://u:s3?cr3t@h/d", "postgresql://u:…@h/d"),
            ("postgresql://u:s3cr3t/d", "postgresql://u:…"),
            ("postgresql://h:5432/d", "postgresql://h:5432/d"),
            ("postgresql://u@h/d?password=s3cr3t", "postgresql://u@h/d?…"),
            ("postgresql://u:5ecret/d", "postgresql://u:…"),
            ("postgresql://u:12345678/d", "postgresql://u:…"),
            ("postgresql://u@h/d?sslmode=disable;pw=s3cr3t", "postgresql://u@h/d?…"),
            ("postgresql://u@h/d?pw=s3cr3t", "postgresql://u@h/d?…"),
            ("postgresql://u@h/d?sslmode=require", "postgresql://u@h/d?sslmode=require"),
            ("u:s3cr3t@h", "u:…@h"),
        ] {
            assert_eq!(hide_password(url).as_deref(), Some(hidden));
        }
        for url in [
            "host=db user=u password=s3cr3t dbname=d",
            "host=db user=u s3cr3t",
            "postgresql://u@h/d password=s3cr3t",
            "postgresql://u s3cr3t@h/d",
            "jdbc:postgresql://h/d;pwd=s3cr3t",
        ] {
            assert_eq!(shown("url", url), None);
        }
    }

    #[test]
    fn what_stands_where_a_secrets_file_is_to_be_named_is_not_shown() {
        for key in ["password_file", "key_file", "client_key_file", "certificate_key"] {
            for secret in ["s3cr3t", "$3cr3t", "/3q2+7wAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="] {
                assert_eq!(shown(key, secret), None);
            }
            assert_eq!(shown(key, "/etc/it").as_deref(), Some("\"/etc/it\""));
        }
        assert_eq!(shown("bucket", "raw").as_deref(), Some("\"raw\""));
        assert_eq!(shown("ca_file", "/3q2+7wAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="), None);
    }

    #[test]
    fn a_key_that_comes_twice_is_named() {
        let document = Document::new("[a]\nb = 1\nb = 2\n");
        assert!(document.parse().is_none());
        let problems = document.into_problems();
        let [problem] = &problems[..] else { panic!("{problems:?}") };
        assert_eq!((problem.line, problem.key.as_str()), (3, "b"));
        assert_eq!(problem.remedy, "remove one of the two");
    }

    #[test]
    fn of_a_line_that_is_not_toml_one_problem_is_told() {
        let document = Document::new("a = 1 ==== }}}}\nb = 2\n]]]] x\n");
        assert!(document.parse().is_none());
        let lines: Vec<_> =
            document.into_problems().into_iter().map(|one| (one.line, one.column)).collect();
        assert_eq!(lines, [(1, 7), (3, 1)]);
    }

    #[test]
    fn a_misspelt_key_is_recognised() {
        assert_eq!(distance("buket", "bucket"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(
            unknown_remedy("buket", &["prefix", "bucket"]),
            "write bucket, or remove the line"
        );
        assert!(unknown_remedy("colour", &["prefix", "bucket"]).ends_with("prefix, bucket"));
    }
}
