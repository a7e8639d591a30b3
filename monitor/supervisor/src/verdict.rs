//! How a VM ended, judged from both sides: the guest's last word and the VM process's account. What the guest says of
//! itself is said to be its own word, and nothing that only the monitor can find out.

use coffer_formats::Reject;
use coffer_monitor_wire::EndReason;
use coffer_monitor_wire::api::{Reporter, VmInfo, VmState};

use crate::process::printable;

/// How a VM ended.
pub struct Verdict {
    /// Stopped or failed.
    pub state: VmState,
    /// Why, if it failed.
    pub failure: Option<Failure>,
}

/// Why a VM failed, and whose word that is.
#[derive(Clone)]
pub struct Failure {
    /// Whose word.
    pub reporter: Reporter,
    /// A reject code, or a code of the monitor's own.
    pub code: String,
    /// One clause.
    pub detail: String,
}

impl Verdict {
    const STOPPED: Self = Self { state: VmState::Stopped, failure: None };

    /// Failed, on that word.
    pub fn failed(reporter: Reporter, code: &str, detail: &str) -> Self {
        let failure = Failure { reporter, code: code.to_owned(), detail: printable(detail) };
        Self { state: VmState::Failed, failure: Some(failure) }
    }

    /// A broken promise outranks what the guest says of itself.
    pub fn new(reason: &EndReason, guest_failure: Option<&str>, asked: bool) -> Self {
        let seen = |code: &str, detail: &str| Self::failed(Reporter::Monitor, code, detail);
        match (reason, guest_failure) {
            (EndReason::Refused { reject, detail }, _) => seen(reject.code(), detail),
            (EndReason::Failed { detail }, _) if !asked => seen("vmm-failed", detail),
            (_, Some(said)) => Self::said(said),
            (EndReason::Reset, None) if !asked => seen("guest-failed", "the guest reset itself"),
            _ => Self::STOPPED,
        }
    }

    /// Tells it of a VM.
    pub fn tell(self, of: &mut VmInfo) {
        let failure = self.failure;
        of.state = self.state;
        of.reason = failure.as_ref().map(|failure| failure.code.clone());
        of.reported_by = failure.as_ref().map(|failure| failure.reporter);
        of.detail = failure.map(|failure| failure.detail);
    }

    /// What the guest says of itself: a code if it is one a guest can know.
    fn said(line: &str) -> Self {
        match Reject::from_code(line).filter(|reject| !is_the_monitors(*reject)) {
            Some(reject) => Self::failed(Reporter::Guest, reject.code(), reject.message()),
            None => Self::failed(Reporter::Guest, "guest-failed", line),
        }
    }
}

/// True for what only the monitor can find out: a guest that says so makes it up.
fn is_the_monitors(reject: Reject) -> bool {
    matches!(
        reject,
        Reject::BadDescriptor
            | Reject::BlobMissing
            | Reject::KernelDigest
            | Reject::InitrdDigest
            | Reject::CmdlineDigest
            | Reject::DiskIntegrity
            | Reject::ShapeNotAllowed
            | Reject::VtpmFailed
            | Reject::HostTpmFailed
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(
        reason: &EndReason,
        guest: Option<&str>,
        asked: bool,
        expected: (VmState, Option<&str>),
    ) {
        let Verdict { state, failure } = Verdict::new(reason, guest, asked);
        assert_eq!((state, failure.as_ref().map(|f| f.code.as_str())), expected);
    }

    #[test]
    fn names_the_reason_of_an_end() {
        use VmState::{Failed, Stopped};
        let refused =
            EndReason::Refused { reject: Reject::DiskIntegrity, detail: "block 3".into() };
        let crashed = EndReason::Failed { detail: "x".into() };
        check(&EndReason::PowerOff, None, false, (Stopped, None));
        check(&EndReason::PowerOff, Some("policy-denied"), false, (Failed, Some("policy-denied")));
        check(
            &EndReason::PowerOff,
            Some("workload ended with status 1"),
            false,
            (Failed, Some("guest-failed")),
        );
        check(&refused, Some("policy-denied"), true, (Failed, Some("disk-integrity")));
        check(&crashed, None, false, (Failed, Some("vmm-failed")));
        check(&crashed, None, true, (Stopped, None));
        check(&EndReason::Killed, None, true, (Stopped, None));
        check(&EndReason::Reset, None, false, (Failed, Some("guest-failed")));
    }

    #[test]
    fn a_guest_cannot_speak_for_the_monitor() {
        let said = |line| Verdict::new(&EndReason::PowerOff, Some(line), false).failure.unwrap();
        let monitors = [
            "bad-descriptor",
            "blob-missing",
            "kernel-digest",
            "initrd-digest",
            "cmdline-digest",
            "disk-integrity",
            "shape-not-allowed",
            "vtpm-failed",
            "host-tpm-failed",
        ];
        for code in monitors {
            assert!(Reject::from_code(code).is_some(), "{code}");
            let failure = said(code);
            assert_eq!((failure.code.as_str(), failure.detail.as_str()), ("guest-failed", code));
            assert_eq!(failure.reporter, Reporter::Guest);
        }
        let failure = said("policy-denied");
        assert_eq!((failure.code.as_str(), failure.reporter), ("policy-denied", Reporter::Guest));
        let refused = EndReason::Refused { reject: Reject::DiskIntegrity, detail: "x".into() };
        let failure = Verdict::new(&refused, Some("policy-denied"), false).failure.unwrap();
        assert_eq!(failure.reporter, Reporter::Monitor);
    }
}
