//! What this process uses of the machine, from `/proc/self`.
//! <https://man7.org/linux/man-pages/man5/proc.5.html>

use std::fs;

/// What the process uses.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Time on a processor, user and system, in seconds.
    pub cpu_seconds: f64,
    /// Memory that is really there, in bytes.
    pub resident_bytes: u64,
}

impl Usage {
    /// As it is now; zeros where `/proc` is hidden.
    pub fn read() -> Self {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        Self {
            cpu_seconds: cpu_seconds(&stat).unwrap_or_default(),
            resident_bytes: resident_bytes(&status).unwrap_or_default(),
        }
    }
}

/// Fields 14 and 15, in ticks. Field 2 is a name in parentheses, which may hold anything.
fn cpu_seconds(stat: &str) -> Option<f64> {
    let (_, after) = stat.rsplit_once(')')?;
    let mut fields = after.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((user + system) as f64 / TICKS_PER_S)
}

fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib * 1024)
}

/// `USER_HZ`, which Linux keeps at 100 for programs whatever the kernel's own tick is.
const TICKS_PER_S: f64 = 100.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(cpu_seconds("7 (x) S"), None);
    }

    #[test]
    fn this_test_uses_memory() {
        assert!(Usage::read().resident_bytes > 1 << 20);
    }
}
