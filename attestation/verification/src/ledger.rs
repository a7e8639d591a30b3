//! The ledger's judgement: does this VM hold its identity alone? (SPEC 7.8.)
//!
//! Snapshots, clones, restored vTPM state and moves are one problem: two holders of one identity. Evidence
//! cannot show it, since both holders' quotes verify; what a verifier remembers can. The service keeps the
//! entries and asks in one transaction; this module says what they mean, and [`Current`] is the proof that
//! it was asked.

use std::cmp::Ordering;

use crate::appraisal::{Appraisal, Facts, Refusal, Report};
use crate::tpm::attest::ClockInfo;
use crate::{InstanceId, ObjectName, Reject};

/// What a verifier remembers of one VM: the live holder of its identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The launch.
    pub instance_id: InstanceId,
    /// Key of the host it runs on.
    pub hak_name: ObjectName,
    /// Its vTPM's attestation key.
    pub vak_name: ObjectName,
    /// The live incarnation.
    pub incarnation: u64,
}

impl Entry {
    /// The entry that evidence makes if nothing is known of its VM.
    pub fn of(facts: &Facts) -> Self {
        Self {
            instance_id: facts.vm_claims.instance_id,
            hak_name: facts.host_claims.hak_name,
            vak_name: facts.vm_claims.vak_name,
            incarnation: facts.vm_claims.incarnation,
        }
    }

    /// Judges a claimant against this entry, the live holder of an instance id or a vTPM key. `may_last`: launches that
    /// follow one another on one host may have one vTPM.
    fn admits(&self, claimant: &Self, may_last: bool) -> Result<(), Reject> {
        let same_host = claimant.hak_name == self.hak_name;
        let order = claimant.incarnation.cmp(&self.incarnation);
        if claimant.instance_id != self.instance_id {
            let same_vtpm = may_last && same_host && claimant.vak_name == self.vak_name;
            return match order {
                Ordering::Greater if same_vtpm => Ok(()),
                Ordering::Less if same_vtpm => Err(Reject::IncarnationRollback),
                // Another VM with this vTPM key: a copied state.
                _ => Err(Reject::DuplicateVmIdentity),
            };
        }
        match order {
            // The host it moved away from still speaks for it, or its own host brought an old state back.
            Ordering::Less if !same_host => Err(Reject::VmMoved),
            Ordering::Less => Err(Reject::IncarnationRollback),
            // Only a move recorded here makes a new incarnation of one launch.
            Ordering::Greater => Err(Reject::LaunchMismatch),
            Ordering::Equal if same_host && claimant.vak_name == self.vak_name => Ok(()),
            Ordering::Equal => Err(Reject::DuplicateVmIdentity),
        }
    }
}

/// Accepted evidence of a VM that holds its identity alone. Only [`judge`] makes one.
#[derive(Debug)]
pub struct Current {
    appraisal: Appraisal,
}

impl Current {
    /// What is established.
    pub fn facts(&self) -> &Facts {
        self.appraisal.facts()
    }

    /// What was measured and expected.
    pub fn report(&self) -> &Report {
        self.appraisal.report()
    }

    /// The host TPM's clock, to be stored as the host's last.
    pub fn host_clock(&self) -> ClockInfo {
        self.appraisal.host_clock()
    }
}

/// Judges accepted evidence against every entry with its instance id or its vTPM key. In the transaction that it read
/// `known` in the caller stores [`Entry::of`], in the place of the entry there is. A first incarnation is 1, unless the
/// vTPM may have had launches that this verifier was not asked about.
pub fn judge(appraisal: Appraisal, known: &[Entry]) -> Result<Current, Refusal> {
    let claimant = Entry::of(appraisal.facts());
    let may_last = appraisal.facts().vtpm_may_last;
    let verdict = match (known, claimant.incarnation) {
        ([], 0) => Err(Reject::LaunchMismatch),
        ([], FIRST_INCARNATION) => Ok(()),
        ([], _) if !may_last => Err(Reject::LaunchMismatch),
        (known, _) => known.iter().try_for_each(|entry| entry.admits(&claimant, may_last)),
    };
    match verdict {
        Ok(()) => Ok(Current { appraisal }),
        Err(reject) => Err(refusal(reject, &appraisal, &claimant, known)),
    }
}

fn refusal(reject: Reject, appraisal: &Appraisal, claimant: &Entry, known: &[Entry]) -> Refusal {
    let may_last = appraisal.facts().vtpm_may_last;
    let holder = known.iter().find(|entry| entry.admits(claimant, may_last).is_err());
    let expected = holder.map_or_else(
        || format!("incarnation {FIRST_INCARNATION} of a VM not seen before"),
        describe,
    );
    let explanation = format!("VM identity: found {}, expected {expected}", describe(claimant));
    Refusal { reject, explanation, report: appraisal.report().clone() }
}

fn describe(entry: &Entry) -> String {
    let Entry { instance_id, hak_name, vak_name, incarnation } = entry;
    format!(
        "incarnation {incarnation} of {instance_id} with vTPM key {vak_name} on host key {hak_name}"
    )
}

/// Incarnation of a VM that was never moved or restored.
const FIRST_INCARNATION: u64 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    const HOLDER: Entry = Entry {
        instance_id: InstanceId([1; 16]),
        hak_name: ObjectName([2; 34]),
        vak_name: ObjectName([3; 34]),
        incarnation: 5,
    };

    #[test]
    fn admits_the_holder_and_no_near_miss() {
        assert_eq!(HOLDER.admits(&HOLDER, false), Ok(()));
        let other_host = ObjectName([9; 34]);
        let cases = [
            (
                "a copy on another host",
                Entry { hak_name: other_host, ..HOLDER },
                Reject::DuplicateVmIdentity,
            ),
            (
                "another vTPM",
                Entry { vak_name: ObjectName([9; 34]), ..HOLDER },
                Reject::DuplicateVmIdentity,
            ),
            (
                "another VM with this vTPM",
                Entry { instance_id: InstanceId([9; 16]), ..HOLDER },
                Reject::DuplicateVmIdentity,
            ),
            ("an old state", Entry { incarnation: 4, ..HOLDER }, Reject::IncarnationRollback),
            (
                "the host it left",
                Entry { incarnation: 4, hak_name: other_host, ..HOLDER },
                Reject::VmMoved,
            ),
            (
                "an incarnation nobody gave out",
                Entry { incarnation: 6, ..HOLDER },
                Reject::LaunchMismatch,
            ),
        ];
        for (name, claimant, reject) in cases {
            for may_last in [false, true] {
                assert_eq!(HOLDER.admits(&claimant, may_last), Err(reject), "{name}");
            }
        }
    }

    #[test]
    fn a_vtpm_that_lasts_has_one_launch_after_another_on_one_host() {
        let next = Entry { instance_id: InstanceId([9; 16]), incarnation: 6, ..HOLDER };
        assert_eq!(HOLDER.admits(&next, true), Ok(()));
        // From then on the launch before it is an old state.
        assert_eq!(next.admits(&HOLDER, true), Err(Reject::IncarnationRollback));
        let duplicate = Err(Reject::DuplicateVmIdentity);
        assert_eq!(HOLDER.admits(&next, false), duplicate, "a fresh vTPM twice");
        let other = ObjectName([9; 34]);
        for (name, claimant) in [
            ("at the same time", Entry { incarnation: 5, ..next }),
            ("on another host", Entry { hak_name: other, ..next }),
            ("an old one on another host", Entry { hak_name: other, incarnation: 4, ..next }),
            ("another vTPM", Entry { vak_name: other, ..next }),
        ] {
            assert_eq!(HOLDER.admits(&claimant, true), duplicate, "{name}");
        }
    }
}
