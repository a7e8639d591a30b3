//! Policies: facts to a permit or a denial (SPEC 7.3, steps 14 and 15).

use coffer_attestation::Reject;
use coffer_policies::{Facts, Policies, ResourceId, Source};
use serde::Deserialize;

use super::{Judged, Refused, context, file};
use crate::case::Files;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Context {
    /// Shipped policies loaded, by name.
    policies: Vec<String>,
    /// Files of policies loaded beside them.
    files: Vec<String>,
    /// The secret asked for, as the guest wrote it.
    resource: String,
    /// Ids the image declares.
    declared: Vec<String>,
}

pub(super) fn judge(files: &Files) -> Judged {
    let context: Context = context(files)?;
    let id = ResourceId::try_from(context.resource.as_str()).map_err(|_| Reject::BadResource)?;
    if !context.declared.iter().any(|declared| declared == id.as_str()) {
        return Err(Reject::SecretNotDeclared.into());
    }
    let facts: Facts = serde_json::from_slice(file(files, "facts.json"))
        .map_err(|error| Refused::BadCase(format!("`facts.json`: {error}")))?;
    let mut sources = Vec::new();
    for name in &context.policies {
        let source = Source::shipped(name)
            .ok_or_else(|| Refused::BadCase(format!("no policy is called `{name}`")))?;
        sources.push(source);
    }
    for name in &context.files {
        let text = String::from_utf8_lossy(file(files, name)).into_owned();
        sources.push(Source { name: name.clone(), text });
    }
    // A verifier does not start on policies that do not load: nothing is released.
    let policies = Policies::load(&sources).map_err(|_| Reject::PolicyDenied)?;
    let _permit = policies.decide(&facts).map_err(|_| Reject::PolicyDenied)?;
    Ok(())
}
