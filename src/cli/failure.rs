//! Why a command failed, in the form that its user reads.

use std::{error::Error, fmt, io};

use serde_json::json;

use super::output;
use crate::{
    config::ConfigError,
    error::{Cause, Classified, Exit},
    telemetry::log::LogError,
};

/// What went wrong and what to do, one pair for each problem.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) problems: Vec<(String, String)>,
    pub(super) cause: &'static str,
    pub(super) exit: Exit,
}

impl Failure {
    pub(super) fn new(cause: Cause, error: impl Into<String>, remedy: impl Into<String>) -> Self {
        let exit = cause.disposition().exit();
        Self { problems: vec![(error.into(), remedy.into())], cause: cause.name(), exit }
    }

    /// The arguments are wrong.
    pub(super) fn usage(wrong: &clap::Error) -> Self {
        let text = wrong.to_string();
        let error = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
        let error = error.split_whitespace().collect::<Vec<_>>().join(" ");
        Self {
            problems: vec![(error, "see: lakehead --help".into())],
            cause: "Usage",
            exit: Exit::CouldNotRun,
        }
    }

    /// What was asked for belongs to a later firmware, or was not asked for rightly.
    pub(super) fn not_here(what: &str, remedy: &str) -> Self {
        Self::ended(Exit::CouldNotRun, "Usage", what, remedy)
    }

    /// Something that has no line in the table.
    pub(super) fn ended(exit: Exit, cause: &'static str, error: &str, remedy: &str) -> Self {
        Self { problems: vec![(error.into(), remedy.into())], cause, exit }
    }

    /// The system refused something that has no line in the table.
    pub(super) fn system(what: &str, why: &io::Error) -> Self {
        let cause = match why.kind() {
            io::ErrorKind::StorageFull => Cause::DiskFull,
            _ => Cause::Config,
        };
        let remedy = match why.kind() {
            io::ErrorKind::PermissionDenied => "run it as the user lakehead, or as root".into(),
            _ => cause.disposition().remedy().to_owned(),
        };
        Self::new(cause, format!("{what}: {why}"), remedy)
    }

    /// To stderr: stdout holds answers only.
    pub(super) fn print(&self, json: bool) {
        let text = match json {
            true => format!("{}\n", self.json()),
            false => self.to_string(),
        };
        output::to_stderr(&text);
    }

    fn json(&self) -> serde_json::Value {
        let joined = |part: fn(&(String, String)) -> &str| {
            self.problems.iter().map(part).collect::<Vec<_>>().join("\n")
        };
        let problems: Vec<_> = self
            .problems
            .iter()
            .map(|(error, remedy)| json!({ "error": error, "remedy": remedy }))
            .collect();
        json!({
            "error": joined(|(error, _)| error),
            "cause": self.cause,
            "remedy": joined(|(_, remedy)| remedy),
            "problems": problems,
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (error, remedy) in &self.problems {
            writeln!(
                f,
                "error: {}\nremedy: {}",
                output::printable(error),
                output::printable(remedy)
            )?;
        }
        Ok(())
    }
}

/// An error of a room, with what lies under it.
impl<E: Classified> From<E> for Failure {
    fn from(error: E) -> Self {
        let any: &dyn Error = &error;
        if let Some(config) = any.downcast_ref::<ConfigError>() {
            let exit = Exit::CouldNotRun;
            return Self {
                problems: config.pairs(),
                cause: Classified::cause(config).name(),
                exit,
            };
        }
        let cause = Classified::cause(&error);
        Self::new(cause, error.to_string(), error.remedy())
    }
}

impl From<LogError> for Failure {
    fn from(error: LogError) -> Self {
        Self::not_here(
            &error.to_string(),
            "write LAKEHEAD_LOG like: info, or lakehead::ship=debug,info",
        )
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{Config, Environment};

    #[test]
    fn each_problem_of_a_configuration_has_its_remedy() {
        let text = "[appliance]\nname = \"A\"\ndata_dir = \"d\"\n";
        let wrong = Config::parse(Path::new("/etc/x.toml"), text, &Environment::default());
        let failure = Failure::from(wrong.unwrap_err());
        assert_eq!((failure.exit, failure.cause), (Exit::CouldNotRun, "Config"));
        let shown = failure.to_string();
        assert!(shown.contains("error: /etc/x.toml:2:8: appliance.name = \"A\": is not a name\nremedy: write 1 to 40"), "{shown}");
        assert_eq!(shown.matches("\nremedy: ").count(), failure.problems.len());
        let json = failure.json();
        assert_eq!(json["cause"], "Config");
        assert!(json["error"].as_str().unwrap().contains("/etc/x.toml:3:12:"));
        assert_eq!(json["problems"].as_array().unwrap().len(), failure.problems.len());
    }

    #[test]
    fn a_foreign_owner_ends_with_3() {
        assert_eq!(Failure::new(Cause::Fenced, "a", "b").exit, Exit::Fenced);
    }
}
