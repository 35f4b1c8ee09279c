//! Faults on command: which request suffers what.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// When a fault strikes. Rules are looked at in order; the first that strikes counts.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// S3's name of the operation, `UploadPart`; any if empty.
    pub operation: &'static str,
    /// A part of the key; any if empty.
    pub key: String,
    /// How many such requests pass before.
    pub skip: u32,
    /// How many it strikes then.
    pub times: u32,
    /// How likely it strikes each, 0 to 1.
    pub chance: f64,
    /// What happens.
    pub fault: Fault,
}

/// What a request suffers.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// Answered with this status and code, without effect.
    Refuse(u16, &'static str),
    /// Carried out after a pause.
    Delay(Duration),
    /// The connection is closed after so many bytes of the body, without effect.
    Cut(u64),
    /// Carried out; the connection is closed instead of an answer.
    LoseAnswer,
    /// 200 with an error in the body, without effect: as Complete does it.
    ErrorBody,
    /// 200 with an error in the body, although it was carried out.
    ErrorBodyAfter,
    /// Neither carried out nor answered; the connection stays open.
    Stall,
    /// One bit of the body is turned on its way.
    Corrupt,
}

impl Rule {
    /// Strikes the first request of this operation.
    pub fn once(operation: &'static str, fault: Fault) -> Self {
        Self { operation, key: String::new(), skip: 0, times: 1, chance: 1.0, fault }
    }

    /// Strikes every request of this operation.
    pub fn always(operation: &'static str, fault: Fault) -> Self {
        Self { times: u32::MAX, ..Self::once(operation, fault) }
    }

    /// Strikes requests of this operation with this chance.
    pub fn often(operation: &'static str, chance: f64, fault: Fault) -> Self {
        Self { chance, ..Self::always(operation, fault) }
    }
}

/// The rules in force.
#[derive(Debug, Default)]
pub(super) struct Faults(Mutex<Vec<Rule>>);

impl Faults {
    pub(super) fn add(&self, rule: Rule) {
        self.rules().push(rule);
    }

    pub(super) fn clear(&self) {
        self.rules().clear();
    }

    pub(super) fn strike(&self, operation: &str, key: &str) -> Option<Fault> {
        for rule in self.rules().iter_mut() {
            let meant = rule.operation.is_empty() || rule.operation == operation;
            if !meant || rule.times == 0 || !key.contains(&rule.key) {
                continue;
            }
            if rule.skip > 0 {
                rule.skip -= 1;
            } else if rule.chance >= 1.0 || fastrand::f64() < rule.chance {
                rule.times = rule.times.saturating_sub(u32::from(rule.times != u32::MAX));
                return Some(rule.fault.clone());
            }
        }
        None
    }

    fn rules(&self) -> MutexGuard<'_, Vec<Rule>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_skips_then_strikes_then_is_spent() {
        let faults = Faults::default();
        let rule = Rule::once("PutObject", Fault::LoseAnswer);
        faults.add(Rule { skip: 1, times: 2, key: "/t/".into(), ..rule });
        let strikes = |operation, key| faults.strike(operation, key).is_some();
        assert!(!strikes("UploadPart", "a/t/b") && !strikes("PutObject", "a/b"));
        let five: Vec<_> = (0..5).map(|_| strikes("PutObject", "a/t/b")).collect();
        assert_eq!(five, [false, true, true, false, false]);
    }
}
