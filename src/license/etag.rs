//! The etag of a preview: stands for exactly one scope, its services and the customers that it included then.
//!
//! Made by a preview, carried by the request for the change, and made again just before the change is sent: only
//! if both are the same is anything sent. Pure.

use std::fmt;

use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};

use super::{CustomerId, Scope, ServiceName, Services};

/// What every etag of this version begins with. Whatever goes into the hash cannot change without a new one.
const VERSION: &str = "v1:";
/// The hexadecimal digits of a SHA-256.
const ETAG_DIGITS: usize = 64;

/// The etag of a preview. Equal etags: the same scope, the same services, the same customers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Etag(String);

/// A text that no preview has given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is no etag: pass on exactly what a preview gave (v1: and 64 lower-case hexadecimal digits)")]
pub struct NoEtag;

impl Etag {
    /// For this scope and these services, when these customers were in scope. Order does not matter.
    pub fn of<'a>(scope: &Scope, resolved: impl Iterator<Item = &'a CustomerId>, services: &Services) -> Self {
        let (kind, named) = match scope {
            Scope::Include(customers) => ("include", customers.ids()),
            Scope::Exclude(customers) => ("exclude", customers.ids()),
            Scope::All(_) => ("all", &[][..]),
        };
        let mut hash = Sha256::new();
        put(&mut hash, kind);
        put_set(&mut hash, named.iter().map(CustomerId::as_str).collect());
        put_set(&mut hash, resolved.map(CustomerId::as_str).collect());
        put_set(&mut hash, services.names().iter().map(ServiceName::as_str).collect());
        Self(VERSION.to_owned() + &HEXLOWER.encode(&hash.finalize()))
    }

    /// What somebody passes on: as it was given, not a character else.
    pub fn parse(text: String) -> Result<Self, NoEtag> {
        let digits = text.strip_prefix(VERSION).ok_or(NoEtag)?;
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        if digits.len() == ETAG_DIGITS && digits.bytes().all(is_digit) { Ok(Self(text)) } else { Err(NoEtag) }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Etag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Lengths stand before what they are the length of: `a`, `bc` is not `ab`, `c`, and no list runs into the next.
fn put(hash: &mut Sha256, text: &str) {
    hash.update((text.len() as u64).to_be_bytes());
    hash.update(text);
}

fn put_set(hash: &mut Sha256, mut texts: Vec<&str>) {
    texts.sort_unstable();
    texts.dedup();
    hash.update((texts.len() as u64).to_be_bytes());
    for text in texts {
        put(hash, text);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // a test that cannot go on fails
mod tests {
    use std::collections::BTreeSet;

    use proptest::{collection::btree_set, prelude::*};

    use super::*;
    use crate::license::Customers;

    /// What an etag is made from, as sets: two of these are equal exactly if they mean the same.
    #[derive(Debug, Clone, PartialEq, Eq)]
    struct Ingredients {
        kind: u8,
        named: BTreeSet<String>,
        resolved: BTreeSet<String>,
        services: BTreeSet<String>,
    }

    impl Ingredients {
        fn etag(&self) -> Etag {
            self.etag_in(&|set| set.iter().cloned().collect())
        }

        fn etag_in(&self, order: &dyn Fn(&BTreeSet<String>) -> Vec<String>) -> Etag {
            let ids = |set| order(set).into_iter().map(|id| CustomerId::new(id).unwrap()).collect::<Vec<_>>();
            let named = || Customers::new(ids(&self.named)).unwrap();
            let scope = match self.kind {
                0 => Scope::Include(named()),
                1 => Scope::Exclude(named()),
                _ => Scope::everyone(),
            };
            let services = order(&self.services).into_iter().map(|name| ServiceName::new(name).unwrap());
            Etag::of(&scope, ids(&self.resolved).iter(), &Services::new(services.collect()).unwrap())
        }
    }

    fn ingredients() -> impl Strategy<Value = Ingredients> {
        // Few letters and short names: different sets are often written alike.
        let name = "[ab]{1,3}";
        let (named, resolved) = (btree_set(name, 1..4), btree_set(name, 0..4));
        (0..3_u8, named, resolved, btree_set(name, 1..3)).prop_map(|(kind, named, resolved, services)| {
            let named = if kind == 2 { BTreeSet::new() } else { named };
            Ingredients { kind, named, resolved, services }
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 50_000, ..ProptestConfig::default() })]

        #[test]
        fn etags_are_equal_exactly_where_everything_is(one in ingredients(), other in ingredients()) {
            prop_assert_eq!(one.etag() == other.etag(), one == other);
        }

        #[test]
        fn order_does_not_matter_and_the_text_is_read_back(one in ingredients(), seed in any::<u64>()) {
            let shuffled = |set: &BTreeSet<String>| {
                let mut list: Vec<_> = set.iter().cloned().collect();
                let by = usize::try_from(seed % 7).unwrap() % list.len().max(1);
                list.rotate_left(by);
                if seed % 2 == 0 { list.reverse(); }
                list
            };
            let etag = one.etag();
            prop_assert_eq!(&one.etag_in(&shuffled), &etag);
            prop_assert_eq!(Etag::parse(etag.to_string()), Ok(etag));
        }
    }

    #[test]
    fn an_etag_of_this_version_never_changes() {
        let ids = ["b", "a"].map(|id| CustomerId::new(id.to_owned()).unwrap());
        let services = Services::new(vec![ServiceName::new("s".to_owned()).unwrap()]).unwrap();
        // Computed apart from this code: SHA-256 over big-endian lengths of eight bytes and texts.
        let expected = "v1:221a21a7dd28ab0f1c91bfb8b1a7abbe5010ee42c4128a0985d954ccb7b58211";
        assert_eq!(Etag::of(&Scope::everyone(), ids.iter(), &services).as_str(), expected);
    }

    #[test]
    fn only_the_text_itself_is_an_etag() {
        let good = format!("v1:{}", "0123456789abcdef".repeat(4));
        assert!(Etag::parse(good.clone()).is_ok());
        let bad = [
            String::new(),
            " ".to_owned(),
            format!(" {good}"),
            format!("{good} "),
            format!("{good}\n"),
            good.to_uppercase(),
            good.replace('a', "A"),
            good.replace('f', "g"),
            good[..good.len() - 1].to_owned(),
            format!("{good}0"),
            good[3..].to_owned(),
            good.replace("v1", "v2"),
            good.replace(':', "-"),
            format!("\"{good}\""),
            format!("W/{good}"),
            "*".to_owned(),
        ];
        for text in bad {
            assert_eq!(Etag::parse(text.clone()), Err(NoEtag), "{text:?}");
        }
    }
}
