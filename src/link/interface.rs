//! What the kernel says of a network interface.

use std::{fmt, fs, path::Path};

use crate::{
    config,
    error::{Cause, Finding},
};

/// Whether an interface can carry anything.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Interface {
    /// It can, as far as the kernel knows.
    Up,
    /// Switched off, or without a carrier.
    Down,
    /// There is none of that name.
    Absent,
}

impl Interface {
    /// Looks at the interface.
    pub(super) fn look(name: &str) -> Self {
        Self::look_in(Path::new(CLASS), name)
    }

    fn look_in(class: &Path, name: &str) -> Self {
        let read = |file: &str| fs::read_to_string(class.join(name).join(file));
        let Ok(flags) = read("flags") else { return Self::Absent };
        let flags = flags.trim().strip_prefix("0x").map(|hex| u32::from_str_radix(hex, 16));
        let on = matches!(flags, Some(Ok(flags)) if flags & IFF_UP != 0);
        // "unknown" is what drivers without a carrier say, loopback among them.
        let carries = read("operstate").is_ok_and(|state| matches!(state.trim(), "up" | "unknown"));
        if on && carries { Self::Up } else { Self::Down }
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::Down => "down, or without a carrier",
            Self::Absent => "not there",
        })
    }
}

/// The link as `lakehead check` sees it.
pub fn check(link: &config::Link) -> Finding {
    let (check, state) = (format!("link {}", link.name), Interface::look(&link.interface));
    let seen = format!("interface {} is {state}", link.interface);
    match state {
        Interface::Up => Finding::ok(check, format!("{seen}; at most {}", link.rate)),
        Interface::Down | Interface::Absent => Finding::problem(check, Cause::LinkDown, seen),
    }
}

const CLASS: &str = "/sys/class/net";
/// <https://github.com/torvalds/linux/blob/v6.1/include/uapi/linux/if.h>
const IFF_UP: u32 = 1;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::BitRate;

    #[test]
    fn an_interface_is_up_when_it_is_on_and_has_a_carrier() {
        let class = tempfile::tempdir().unwrap();
        let dir = class.path().join("eth1");
        let look = || Interface::look_in(class.path(), "eth1");
        assert_eq!(look(), Interface::Absent);
        fs::create_dir(&dir).unwrap();
        for (flags, operstate, seen) in [
            ("0x1003\n", "up\n", Interface::Up),
            ("0x9\n", "unknown\n", Interface::Up),
            ("0x1003\n", "down\n", Interface::Down),
            ("0x1003\n", "dormant\n", Interface::Down),
            ("0x1002\n", "unknown\n", Interface::Down),
            ("", "up\n", Interface::Down),
        ] {
            fs::write(dir.join("flags"), flags).unwrap();
            fs::write(dir.join("operstate"), operstate).unwrap();
            assert_eq!(look(), seen, "{flags:?} {operstate:?}");
        }
    }

    #[test]
    fn check_names_the_interface_that_is_not_there() {
        let link = |interface: &str| config::Link {
            name: "dx-1".into(),
            interface: interface.into(),
            rate: BitRate(800_000_000),
        };
        let well = check(&link("lo"));
        assert_eq!(well.seen, "interface lo is up; at most 800 Mbit/s");
        let (cause, what) = check(&link("nolink0")).problem.unwrap();
        assert_eq!((cause, what.as_str()), (Cause::LinkDown, "interface nolink0 is not there"));
    }
}
