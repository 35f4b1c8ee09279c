//! Whose a chain is: the key that signed its last entry, and the keys that signed before. Pure.
//!
//! **Invariant:** a key that another one took over from never signs again. The box that takes a chain over has made a
//! key for itself, so that what comes back is a box that was lost, or who has it now.

use super::{Entry, EntryKind, PublicKey};

/// The keys that signed a chain, in the order in which they came.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Owners(Vec<PublicKey>);

impl Owners {
    /// Whose it is; `None` before the first entry.
    pub fn owner(&self) -> Option<PublicKey> {
        self.0.last().copied()
    }

    /// Whether the chain was this key's, and is another's.
    pub fn has_replaced(&self, key: PublicKey) -> bool {
        self.owner() != Some(key) && self.0.contains(&key)
    }

    /// Why `signer` may not sign this entry, behind the one with the hash `head`.
    pub fn refuse(&self, entry: &Entry, signer: PublicKey, head: &str) -> Option<String> {
        if entry.kind != EntryKind::Fence {
            let owner = self.owner().filter(|owner| *owner != signer)?;
            return Some(format!("is signed by {signer}, but the chain is {owner}'s"));
        }
        let heir = entry.adopts.as_ref().map(|adoption| adoption.public_key.as_str());
        let continues = entry.adopts.as_ref().is_some_and(|adoption| adoption.head == head);
        if heir != Some(signer.to_string().as_str()) || !continues {
            let heir = heir.unwrap_or("nobody");
            return Some(format!("is a fence for {heir}, signed by {signer}"));
        }
        let replaced = || format!("hands the chain back to {signer}, which was replaced before");
        self.has_replaced(signer).then(replaced)
    }

    /// Takes note of who signed the next entry. `true`: somebody else than the one before.
    pub fn take(&mut self, signer: PublicKey) -> bool {
        let is_new = self.owner() != Some(signer);
        if is_new {
            self.0.push(signer);
        }
        is_new
    }
}

impl FromIterator<PublicKey> for Owners {
    fn from_iter<I: IntoIterator<Item = PublicKey>>(signers: I) -> Self {
        Self(signers.into_iter().collect())
    }
}
