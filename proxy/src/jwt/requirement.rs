//! What tokens a request needs, and whether it has them.

use std::sync::Arc;

use smallvec::SmallVec;

use super::cache::TokenCache;
use super::place::Place;
use super::provider::{Audiences, Provider};
use super::token::Token;
use super::{Accepted, Refusal};
use crate::http::head::RequestHead;

/// What must hold; checks by their numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Requirement {
    /// A token, and all that the provider finds are valid.
    Valid(usize),
    /// One of these.
    AnyOf(Box<[Requirement]>),
    /// One of these, or that none of them finds a token.
    AnyOfOrMissing(Box<[Requirement]>),
    /// All of these.
    AllOf(Box<[Requirement]>),
}

/// A provider, and audiences instead of its own. Each pair is asked once for a request, however often it is required.
#[derive(Debug)]
pub struct Check {
    /// The provider's number.
    pub provider: usize,
    /// For whom tokens must be, where that differs.
    pub audiences: Option<Audiences>,
}

/// The tokens at a provider's places, all valid, in the order in which they were verified; empty without any.
type Valid = SmallVec<[(Place, Arc<Token>); 1]>;

/// The tokens that satisfied a requirement, with the places that they were at.
pub(super) type Satisfied<'a> = SmallVec<[(Accepted<'a>, Place); 1]>;

/// What is asked.
pub(super) struct Evaluation<'a, 'r> {
    pub providers: &'a [Provider],
    pub checks: &'a [Check],
    pub head: &'r RequestHead,
    pub cache: &'r TokenCache,
    /// Seconds since 1970.
    pub now: u64,
    /// By the numbers of checks, what came of those that were asked.
    pub asked: SmallVec<[Option<Result<Valid, Refusal>>; 2]>,
}

impl<'a> Evaluation<'a, '_> {
    /// Adds the tokens that satisfy it, or says why it isn't satisfied.
    pub fn require(
        &mut self,
        requirement: &Requirement,
        satisfied: &mut Satisfied<'a>,
    ) -> Result<(), Refusal> {
        match requirement {
            Requirement::Valid(check) => match self.valid(*check)? {
                valid if valid.is_empty() => Err(Refusal::Missing),
                valid => {
                    let provider = &self.providers[self.checks[*check].provider];
                    let accepted = |(place, token)| (Accepted { provider, token }, place);
                    satisfied.extend(valid.into_iter().map(accepted));
                    Ok(())
                }
            },
            Requirement::AnyOf(any) => self.any(any, satisfied),
            Requirement::AnyOfOrMissing(any) => match self.any(any, satisfied) {
                Err(Refusal::Missing) => Ok(()),
                decided => decided,
            },
            Requirement::AllOf(all) => {
                all.iter().try_for_each(|requirement| self.require(requirement, satisfied))
            }
        }
    }

    /// Of several reasons, the last that says more than that a token is missing, or is somebody else's.
    fn any(&mut self, any: &[Requirement], satisfied: &mut Satisfied<'a>) -> Result<(), Refusal> {
        let (before, mut refusal) = (satisfied.len(), Refusal::Missing);
        for requirement in any {
            match self.require(requirement, satisfied) {
                Ok(()) => return Ok(()),
                Err(Refusal::Missing | Refusal::Issuer) if refusal != Refusal::Missing => {}
                Err(error) => refusal = error,
            }
            satisfied.truncate(before);
        }
        Err(refusal)
    }

    fn valid(&mut self, check: usize) -> Result<Valid, Refusal> {
        if let Some(known) = &self.asked[check] {
            return known.clone();
        }
        let Check { provider, audiences } = &self.checks[check];
        let provider = &self.providers[*provider];
        // Like Envoy from the last place to the first, whose token then counts.
        let verified = provider.places.find(self.head).into_iter().rev().map(|found| {
            let token = provider.check(&found.token, audiences.as_ref(), self.cache, self.now)?;
            Ok((found.place, token))
        });
        let valid: Result<Valid, Refusal> = verified.collect();
        self.asked[check] = Some(valid.clone());
        valid
    }
}
