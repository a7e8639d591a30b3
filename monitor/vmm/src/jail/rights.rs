//! A uid of its own, no way to more privileges, and Landlock without a single path, or with the few that a program
//! cannot do without.

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, PathBeneath, PathFd,
    Ruleset, RulesetAttr as _, RulesetCreatedAttr as _, RulesetStatus, Scope,
};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use rustix::process::DumpableBehavior;

use super::{JailError, UIDS, system};

/// Gives up root for a uid that is this VM's alone.
pub fn take_uid(uid: u32) -> Result<(), JailError> {
    if !UIDS.contains(&uid) {
        return Err(JailError::Uid(uid));
    }
    let (user, group) = (Uid::from_raw(uid), Gid::from_raw(uid));
    setgroups(&[]).map_err(system("leave the supervisor's groups"))?;
    setresgid(group, group, group).map_err(system("take the VM's own gid"))?;
    // Capabilities go with the last uid of root.
    setresuid(user, user, user).map_err(system("take the VM's own uid"))?;
    rustix::thread::set_no_new_privs(true).map_err(system("renounce new privileges"))?;
    // Changing the uid made the process as dumpable as the system likes.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(system("become undumpable"))
}

/// Handles every access there is and allows, of files, to read and to start what is below `readable`, and all that is
/// below `writable`. What Linux 5.19 knows has to be there; what came later
/// (addresses with 6.7, sockets and signals out of the jail with 6.12) is taken where the kernel has it, and stands
/// behind the namespaces and the list of system calls.
pub fn reach_only(readable: &[&str], writable: &[&str]) -> Result<(), JailError> {
    match restrict(readable, writable).map_err(|error| JailError::Landlock(error.to_string()))? {
        RulesetStatus::NotEnforced => Err(JailError::Landlock("no rule was taken".into())),
        RulesetStatus::PartiallyEnforced | RulesetStatus::FullyEnforced => Ok(()),
    }
}

fn restrict(readable: &[&str], writable: &[&str]) -> anyhow::Result<RulesetStatus> {
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V2))?
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V5))?
        .handle_access(AccessNet::from_all(ABI::V4))?
        .scope(Scope::from_all(ABI::V6))?
        .create()?;
    let read = readable.iter().map(|path| (path, AccessFs::from_read(ABI::V2)));
    let all = writable.iter().map(|path| (path, AccessFs::from_all(ABI::V2)));
    let rules = read
        .chain(all)
        .map(|(path, access)| Ok::<_, anyhow::Error>(PathBeneath::new(PathFd::new(path)?, access)));
    Ok(ruleset.add_rules(rules)?.restrict_self()?.ruleset)
}
