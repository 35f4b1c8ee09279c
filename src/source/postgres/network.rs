//! `inet` and `cidr` values as PostgreSQL prints them. Pure.
//!
//! Binary: `u8 family (2: IPv4, 3: IPv6) | u8 bits | u8 is cidr | u8 length | address`.
//! <https://github.com/postgres/postgres/blob/REL_15_STABLE/src/port/inet_net_ntop.c>

use std::fmt::Write;

/// Appends the text; `None` if the bytes are no address.
pub(super) fn print(bytes: &[u8], into: &mut String) -> Option<()> {
    let [family, bits, cidr, length, address @ ..] = bytes else { return None };
    if usize::from(*length) != address.len() {
        return None;
    }
    let whole = match (family, address.len()) {
        (2, 4) => {
            write!(into, "{}.{}.{}.{}", address[0], address[1], address[2], address[3]).ok()?;
            32
        }
        (3, 16) => {
            print_v6(address, into)?;
            128
        }
        _ => return None,
    };
    if *bits > whole {
        return None;
    }
    if *cidr != 0 || *bits != whole {
        write!(into, "/{bits}").ok()?;
    }
    Some(())
}

/// The longest run of zeros, of two at least, is `::`; an embedded IPv4 address is printed as one.
fn print_v6(address: &[u8], into: &mut String) -> Option<()> {
    let (words, _) = address.as_chunks::<2>();
    let words: [u16; 8] =
        std::array::from_fn(|index| words.get(index).map_or(0, |word| u16::from_be_bytes(*word)));
    let (base, length) = longest_zeros(&words);
    let embedded = base == 0
        && (length == 6 || length == 7 && words[7] != 1 || length == 5 && words[5] == 0xFFFF);
    let mut index = 0;
    while index < 8 {
        if length >= 2 && index == base {
            into.push_str(if base + length == 8 { "::" } else { ":" });
            index += length;
            continue;
        }
        if index > 0 {
            into.push(':');
        }
        if index == 6 && embedded {
            write!(into, "{}.{}.{}.{}", address[12], address[13], address[14], address[15]).ok()?;
            break;
        }
        write!(into, "{:x}", words[index]).ok()?;
        index += 1;
    }
    Some(())
}

/// Where the first of the longest runs of zeros begins, and how long it is.
fn longest_zeros(words: &[u16; 8]) -> (usize, usize) {
    let mut best = (0, 0);
    let mut run = 0;
    for (index, word) in words.iter().enumerate() {
        run = if *word == 0 { run + 1 } else { 0 };
        if run > best.1 {
            best = (index + 1 - run, run);
        }
    }
    best
}
