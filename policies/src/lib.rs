//! Which workload may have which secret: typed facts in, a permit or an explained denial out (SPEC 7.3, step 15).
//!
//! The facts come from an appraisal that has already passed; a policy can only restrict what follows from
//! it. Decisions are Cedar's: default deny, `forbid` wins. This crate trusts the policies its operator
//! names and nothing else. It refuses, when they are loaded, policies that do not fit the schema in
//! strict mode, that have no `@id`, or whose ids collide; a misspelt attribute is an error at load, never
//! a condition that silently holds. It performs no I/O and reads no clock.
#![forbid(unsafe_code)]

mod decision;
mod explain;
mod facts;
mod policies;
mod resource;

pub use decision::{Denial, Permit};
pub use explain::Condition;
pub use facts::{Facts, HostFacts, ResourceFacts, VmFacts};
pub use policies::{LoadError, Policies, Source};
pub use resource::ResourceId;
