//! Loading policies strictly and asking them.

use std::str::FromStr as _;

use cedar_policy::{Authorizer, Decision, PolicyId, PolicySet, Schema, ValidationMode, Validator};

use crate::facts::Question;
use crate::{Denial, Facts, Permit, explain};

const SCHEMA: &str = include_str!("../policies/coffer.cedarschema");

/// The policies that ship, by name.
const SHIPPED: [(&str, &str); 3] = [
    ("default", include_str!("../policies/default.cedar")),
    ("dangerous-software-tpm", include_str!("../policies/dangerous-software-tpm.cedar")),
    ("dangerous-developer-host", include_str!("../policies/dangerous-developer-host.cedar")),
];

/// Policy text with the name people know it by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// File name or shipped name; used in messages only.
    pub name: String,
    /// Cedar text: any number of policies, each with an `@id`.
    pub text: String,
}

impl Source {
    /// A shipped policy: `default`, `dangerous-software-tpm`, `dangerous-developer-host`.
    pub fn shipped(name: &str) -> Option<Self> {
        let (name, text) = SHIPPED.iter().find(|(known, _)| *known == name)?;
        Some(Self { name: (*name).to_owned(), text: (*text).to_owned() })
    }

    /// Names of the shipped policies.
    pub fn shipped_names() -> impl Iterator<Item = &'static str> {
        SHIPPED.iter().map(|(name, _)| *name)
    }
}

/// Why policies were not loaded. Each message names the source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// The shipped schema does not parse; a defect of this build.
    #[error("the policy schema does not parse: {0}")]
    Schema(String),
    /// Cedar cannot parse the text.
    #[error("policy `{name}` does not parse: {detail}")]
    Parse {
        /// Source.
        name: String,
        /// Cedar's words.
        detail: String,
    },
    /// A policy carries no `@id`.
    #[error("a policy in `{0}` has no `@id(\"...\")`, which decisions are logged under")]
    NoId(String),
    /// Two policies carry the same `@id`.
    #[error("policy id `{id}` in `{name}` is already taken")]
    DuplicateId {
        /// Source.
        name: String,
        /// The id.
        id: String,
    },
    /// Templates have no meaning here.
    #[error("`{0}` holds a policy template; only complete policies are spoken")]
    Template(String),
    /// The policies do not fit the schema.
    #[error("the policies do not fit the schema: {0}")]
    Invalid(String),
}

/// A validated set of policies.
pub struct Policies {
    set: PolicySet,
    schema: Schema,
    authorizer: Authorizer,
}

impl Policies {
    /// Parses and validates all sources together. No source at all is a set that denies everything.
    pub fn load(sources: &[Source]) -> Result<Self, LoadError> {
        let (schema, _warnings) =
            Schema::from_cedarschema_str(SCHEMA).map_err(|e| LoadError::Schema(e.to_string()))?;
        let mut set = PolicySet::new();
        for source in sources {
            add(&mut set, source)?;
        }
        let result = Validator::new(schema.clone()).validate(&set, ValidationMode::Strict);
        if !result.validation_passed_without_warnings() {
            let errors = result.validation_errors().map(ToString::to_string);
            let warnings = result.validation_warnings().map(ToString::to_string);
            return Err(LoadError::Invalid(errors.chain(warnings).collect::<Vec<_>>().join("; ")));
        }
        Ok(Self { set, schema, authorizer: Authorizer::new() })
    }

    /// Ids of all policies, sorted.
    pub fn ids(&self) -> Vec<String> {
        let mut ids: Vec<_> = self.set.policies().map(|p| p.id().to_string()).collect();
        ids.sort();
        ids
    }

    /// Asks whether this VM on this host may have this secret. A policy that cannot be evaluated never
    /// permits, and a `forbid` that cannot be evaluated denies.
    pub fn decide(&self, facts: &Facts) -> Result<Permit, Denial> {
        let question = Question::new(facts, &self.schema).map_err(|e| Denial {
            forbidden_by: vec![],
            errors: vec![e],
            failed: explain::failed(facts),
        })?;
        let response =
            self.authorizer.is_authorized(&question.request, &self.set, &question.entities);
        let mut reasons: Vec<_> =
            response.diagnostics().reason().map(ToString::to_string).collect();
        reasons.sort();
        let errors: Vec<_> = response.diagnostics().errors().map(ToString::to_string).collect();
        // Cedar skips policies that fail to evaluate. A skipped `forbid` would release, so any error denies.
        if response.decision() == Decision::Allow && errors.is_empty() {
            return Ok(Permit::new(facts.vm.image, facts.resource.id.clone(), reasons));
        }
        let forbidden_by = if response.decision() == Decision::Allow { vec![] } else { reasons };
        Err(Denial { forbidden_by, errors, failed: explain::failed(facts) })
    }
}

fn add(set: &mut PolicySet, source: &Source) -> Result<(), LoadError> {
    let name = || source.name.clone();
    let parsed = PolicySet::from_str(&source.text)
        .map_err(|e| LoadError::Parse { name: name(), detail: e.to_string() })?;
    if parsed.num_of_templates() != 0 {
        return Err(LoadError::Template(name()));
    }
    // `PolicySet::from_str` numbers policies and ignores `@id`; decisions must name them.
    for policy in parsed.policies() {
        let id = policy
            .annotation("id")
            .filter(|id| !id.is_empty())
            .ok_or_else(|| LoadError::NoId(name()))?;
        let renamed = policy.new_id(PolicyId::new(id));
        set.add(renamed).map_err(|_| LoadError::DuplicateId { name: name(), id: id.to_owned() })?;
    }
    Ok(())
}
