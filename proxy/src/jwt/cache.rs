//! Tokens whose signatures were verified, by worker: a client sends the same one again and again, and a signature costs a hundred
//! times as much as a look-up.
//!
//! An entry is found by the digest of the whole token and of what it was verified with ([`Scope`]). So what is found was
//! verified with just these keys: where keys change, nothing old is found again, and nothing has to be thrown away. What changes
//! with time or by provider (expiry, issuer, audience) is no part of an entry; whoever finds one checks that.
//!
//! Bounds: two generations of at most `MAX_BYTES` of tokens each. When the young one is full, it becomes the old one, and what
//! isn't asked for again goes with the next change.

use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use hashbrown::HashMap;
use parking_lot::Mutex;

use super::token::Token;

/// Bytes of tokens in a generation; what is kept of them is about three times as much.
const MAX_BYTES: usize = 1024 * 1024;
/// Longer tokens are verified each time.
const MAX_TOKEN: usize = 8 * 1024;
/// Counted for each entry beside its token.
const OVERHEAD: usize = 256;

/// What a verification depends on beside the token: keys, and how claims are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope([u8; 32]);

impl Scope {
    /// Of a key set and the claims that are lists of words.
    pub fn new(keys: &[u8; 32], words: &[Box<str>]) -> Self {
        let mut context = Context::new(&SHA256);
        context.update(keys);
        for word in words {
            context.update(&(word.len() as u64).to_be_bytes());
            context.update(word.as_bytes());
        }
        Self(finish(context))
    }

    /// Of a token in this scope.
    pub fn id(&self, token: &[u8]) -> Id {
        let mut context = Context::new(&SHA256);
        context.update(&self.0);
        context.update(token);
        Id(finish(context))
    }
}

fn finish(context: Context) -> [u8; 32] {
    let mut digest = [0; 32];
    digest.copy_from_slice(context.finish().as_ref());
    digest
}

/// A token together with what it was verified with. Nobody finds two that are alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Id([u8; 32]);

type Entries = HashMap<Id, Arc<Token>, foldhash::fast::RandomState>;

#[derive(Debug, Default)]
struct Generations {
    young: Entries,
    old: Entries,
    /// Of the young one.
    bytes: usize,
}

/// Verified tokens of a worker.
#[derive(Debug, Default)]
pub struct TokenCache(Mutex<Generations>);

impl TokenCache {
    /// What a token says, if it was verified before.
    pub fn get(&self, id: &Id) -> Option<Arc<Token>> {
        let mut kept = self.0.lock();
        if let Some(token) = kept.young.get(id) {
            return Some(token.clone());
        }
        let token = kept.old.remove(id)?;
        kept.insert(*id, token.clone(), token.payload.len() * 2);
        Some(token)
    }

    /// Keeps a token that was verified; `length` is that of its text.
    pub fn put(&self, id: Id, token: &Arc<Token>, length: usize) {
        if length <= MAX_TOKEN {
            self.0.lock().insert(id, token.clone(), length);
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        let kept = self.0.lock();
        kept.young.len() + kept.old.len()
    }
}

impl Generations {
    fn insert(&mut self, id: Id, token: Arc<Token>, length: usize) {
        let size = length + OVERHEAD;
        if self.bytes + size > MAX_BYTES {
            self.old = std::mem::take(&mut self.young);
            self.bytes = 0;
        }
        if self.young.insert(id, token).is_none() {
            self.bytes += size;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jwt::keys::Keys;
    use crate::jwt::token::Parsed;

    fn token(number: usize) -> (Vec<u8>, Arc<Token>) {
        use base64::Engine as _;
        let part = |text: &str| crate::jwt::token::BASE64.encode(text);
        let payload = part(&format!("{{\"sub\": \"{number}\"}}"));
        let text = format!("{}.{payload}.{}", part("{\"alg\": \"HS256\"}"), part("signature")).into_bytes();
        let token = Parsed::read(&text, &[]).expect("a token").token;
        (text, Arc::new(token))
    }

    fn scope(keys: &str, words: &[Box<str>]) -> Scope {
        Scope::new(Keys::parse(keys).expect("a key set").fingerprint(), words)
    }

    #[test]
    fn a_token_is_found_with_the_keys_that_verified_it_only() {
        let cache = TokenCache::default();
        let (text, kept) = token(1);
        let before = scope("{\"keys\": []}", &[]);
        cache.put(before.id(&text), &kept, text.len());
        assert!(cache.get(&before.id(&text)).is_some());
        for other in [scope("{\"keys\": [ ]}", &[]), scope("{\"keys\": []}", &["scope".into()])] {
            assert!(cache.get(&other.id(&text)).is_none());
        }
        let mut changed = text.clone();
        *changed.last_mut().unwrap() ^= 1;
        assert!(cache.get(&before.id(&changed)).is_none());
        assert!(cache.get(&before.id(&text[..text.len() - 1])).is_none());
        let words = |words: &[&str]| words.iter().map(|word| Box::from(*word)).collect::<Vec<_>>();
        assert_ne!(
            scope("{\"keys\": []}", &words(&["ab", "c"])),
            scope("{\"keys\": []}", &words(&["a", "bc"]))
        );
    }

    #[test]
    fn it_is_bounded_and_keeps_what_is_asked_for() {
        let (cache, scope) = (TokenCache::default(), scope("{\"keys\": []}", &[]));
        let (asked, kept) = token(0);
        cache.put(scope.id(&asked), &kept, asked.len());
        let mut most = 0;
        for number in 1..20_000 {
            let (text, kept) = token(number);
            cache.put(scope.id(&text), &kept, text.len());
            assert!(cache.get(&scope.id(&asked)).is_some(), "after {number}");
            most = most.max(cache.len());
        }
        assert!(most <= 2 * MAX_BYTES / OVERHEAD, "{most}");
        let (first, _) = token(1);
        assert!(cache.get(&scope.id(&first)).is_none());
        let (text, kept) = token(30_000);
        cache.put(scope.id(&text), &kept, MAX_TOKEN + 1);
        assert!(cache.get(&scope.id(&text)).is_none());
    }
}
