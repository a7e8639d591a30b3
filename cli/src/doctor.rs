//! `coffer doctor`: can a closed box run on this machine, and what is missing.
//!
//! It reads `/proc`, `/sys` and `/dev` and starts no VM. First facts are gathered, then judged; the
//! judgement is pure, so every finding is tested without the machine that shows it. What it prints helps
//! people; a verifier believes none of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Serialize;

use crate::args::DoctorArgs;
use crate::error::{Error, io_reason, one_line};
use crate::output;

/// A guest of 128 MiB with its VMM and vTPM; less free memory than this starts nothing.
const MEMORY_NEEDED_MIB: u64 = 160;
/// Room for a guest or two beside the page cache their images need.
const MEMORY_COMFORTABLE_MIB: u64 = 1024;

/// `coffer doctor`.
pub fn run(args: DoctorArgs) -> Result<(), Error> {
    let report = judge(&Facts::gather());
    if args.json {
        output::json(&report)?
    } else {
        report.print()?
    }
    report.verdict()
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// As it should be.
    Ok,
    /// A closed box runs, but a policy may refuse it, or something beside it is missing.
    Warn,
    /// A closed box cannot run.
    Missing,
}

#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    level: Level,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<&'static str>,
}

#[derive(Debug, Serialize)]
struct Report {
    closed_box: bool,
    checks: Vec<Check>,
}

impl Report {
    fn print(&self) -> Result<(), Error> {
        for check in &self.checks {
            let level = match check.level {
                Level::Ok => "ok",
                Level::Warn => "warn",
                Level::Missing => "missing",
            };
            output::line(format_args!("{level:8} {:14} {}", check.name, one_line(&check.found)))?;
            if let Some(remedy) = check.remedy {
                output::line(format_args!("{:8} {:14} -> {remedy}", "", ""))?;
            }
        }
        Ok(())
    }

    fn verdict(&self) -> Result<(), Error> {
        if self.closed_box {
            return Ok(());
        }
        let missing = self.checks.iter().filter(|c| c.level == Level::Missing).map(|c| c.name);
        Err(Error::NotReady { missing: missing.collect::<Vec<_>>().join(", ") })
    }
}

fn judge(facts: &Facts) -> Report {
    let checks = vec![
        kvm(facts),
        nested_paging(facts),
        tpm(facts),
        tool(&facts.swtpm, "swtpm", Level::Missing, "install swtpm: every VM's vTPM is one"),
        tool(&facts.passt, "passt", Level::Warn, "install passt: images with a network need it"),
        tool(
            &facts.mkfs_erofs,
            "mkfs.erofs",
            Level::Warn,
            "install erofs-utils: building images needs it",
        ),
        jail(facts),
        groups(facts),
        lockdown(facts),
        iommu(facts),
        ksm(facts),
        smt(facts),
        memory(facts),
    ];
    let closed_box = checks.iter().all(|c| c.level != Level::Missing);
    Report { closed_box, checks }
}

fn ok(name: &'static str, found: impl Into<String>) -> Check {
    Check { name, level: Level::Ok, found: found.into(), remedy: None }
}

fn not_ok(
    name: &'static str,
    level: Level,
    found: impl Into<String>,
    remedy: &'static str,
) -> Check {
    Check { name, level, found: found.into(), remedy: Some(remedy) }
}

/// Usable KVM is a device that opens and a CPU that shows VMX or SVM. A device without the flag is a
/// paravirtual KVM: it creates VMs in which stock kernels hang.
fn kvm(facts: &Facts) -> Check {
    let missing = |found: String, remedy| not_ok("kvm", Level::Missing, found, remedy);
    match (&facts.kvm, facts.cpu_extension) {
        (Ok(()), Some(extension)) => ok("kvm", format!("/dev/kvm opens, the CPU shows {extension}")),
        (Ok(()), None) => missing(
            "/dev/kvm opens, but the CPU shows neither vmx nor svm: a paravirtual KVM, in which stock kernels hang".into(),
            "use a machine with VT-x or AMD-V, or turn on nested virtualisation in the hypervisor above",
        ),
        (Err(io::ErrorKind::PermissionDenied), _) => missing(
            "/dev/kvm may not be opened by this user".into(),
            "add the user to the group `kvm`, or run as root",
        ),
        (Err(io::ErrorKind::NotFound), Some(extension)) => missing(
            format!("no /dev/kvm, though the CPU shows {extension}"),
            "load the module `kvm_amd` or `kvm_intel`",
        ),
        (Err(io::ErrorKind::NotFound), None) => missing(
            "no /dev/kvm, and the CPU shows neither vmx nor svm".into(),
            "turn on virtualisation in the firmware, or in the hypervisor above",
        ),
        (Err(kind), _) => missing(
            format!("/dev/kvm does not open: {}", io_reason(&(*kind).into())),
            "`dmesg` may say why KVM does not work",
        ),
    }
}

fn nested_paging(facts: &Facts) -> Check {
    match facts.nested_paging {
        Some(kind) => ok("nested paging", kind),
        None => not_ok(
            "nested paging",
            Level::Warn,
            "neither EPT nor NPT is in use",
            "load the KVM module with `ept=1` or `npt=1`; without it VMs are slow and policies may refuse the host",
        ),
    }
}

fn tpm(facts: &Facts) -> Check {
    let remedy = "turn on the TPM (fTPM, PTT) in the firmware; a developer host may use a swtpm, which only policies that name it accept";
    match &facts.tpm {
        Tpm::Absent => not_ok("tpm", Level::Missing, "no TPM device", remedy),
        Tpm::Old => not_ok("tpm", Level::Missing, "a TPM 1.2; a TPM 2.0 is needed", remedy),
        Tpm::Closed(kind) => not_ok(
            "tpm",
            Level::Missing,
            format!("/dev/tpmrm0 does not open: {}", io_reason(&(*kind).into())),
            "run as root, or add the user to the group `tss`",
        ),
        Tpm::Ready => ok("tpm", "TPM 2.0 at /dev/tpmrm0"),
    }
}

fn tool(found: &Option<String>, name: &'static str, level: Level, remedy: &'static str) -> Check {
    match found {
        Some(version) => ok(name, version.as_str()),
        None => not_ok(name, level, "not found in PATH", remedy),
    }
}

/// The walls around every VM process (SPEC 6.3.1); without one of them no VM starts.
fn jail(facts: &Facts) -> Check {
    if facts.jail_lacks.is_empty() {
        return ok("jail", "namespaces, Landlock and seccomp");
    }
    let found = format!("this kernel has no {}", facts.jail_lacks.join(", no "));
    let remedy = "use Linux 5.19 or later with SECCOMP_FILTER, namespaces, and `landlock` among the security modules (`lsm=`)";
    not_ok("jail", Level::Missing, found, remedy)
}

/// The control groups every VM is put into (SPEC 6.3.2); without them no VM starts.
fn groups(facts: &Facts) -> Check {
    let found = format!("no cgroup v2 controller for {}", facts.groups_lack.join(", none for "));
    match facts.groups_lack[..] {
        [] => ok("groups", "cgroup v2 with memory, pids, cpu and io"),
        ["io"] => {
            let remedy = "use a kernel with BLK_CGROUP and BLK_DEV_THROTTLING: where images lie on a disk no VM starts without";
            not_ok("groups", Level::Warn, found, remedy)
        }
        _ => {
            let remedy =
                "mount cgroup v2 alone at /sys/fs/cgroup (`systemd.unified_cgroup_hierarchy=1`)";
            not_ok("groups", Level::Missing, found, remedy)
        }
    }
}

fn lockdown(facts: &Facts) -> Check {
    let remedy = "boot with `lockdown=confidentiality`: a policy may ask that root cannot read kernel memory";
    match facts.lockdown.as_deref() {
        Some(mode @ ("integrity" | "confidentiality")) => ok("lockdown", mode),
        Some(mode) => not_ok("lockdown", Level::Warn, mode, remedy),
        None => not_ok("lockdown", Level::Warn, "the kernel does not say", remedy),
    }
}

fn iommu(facts: &Facts) -> Check {
    if facts.iommu {
        return ok("iommu", "on");
    }
    let remedy = "turn on VT-d or AMD-Vi in the firmware: without it devices can read guest memory";
    not_ok("iommu", Level::Warn, "none in use", remedy)
}

fn ksm(facts: &Facts) -> Check {
    if !facts.ksm {
        return ok("ksm", "off");
    }
    let remedy = "`echo 2 > /sys/kernel/mm/ksm/run`: shared pages tell VMs about each other";
    not_ok("ksm", Level::Warn, "on", remedy)
}

fn smt(facts: &Facts) -> Check {
    match (facts.smt, facts.core_scheduling) {
        (false, _) => ok("smt", "off"),
        (true, true) => ok("smt", "on: each VM has the cores it runs on to itself"),
        (true, false) => not_ok(
            "smt",
            Level::Missing,
            "on, and this kernel cannot keep VMs from sharing a core",
            "`echo off > /sys/devices/system/cpu/smt/control`, or a kernel with CONFIG_SCHED_CORE",
        ),
    }
}

fn memory(facts: &Facts) -> Check {
    let found = format!("{} MiB available", facts.memory_mib);
    match facts.memory_mib {
        0..MEMORY_NEEDED_MIB => {
            not_ok("memory", Level::Missing, found, "free memory: the smallest VM needs 160 MiB")
        }
        MEMORY_NEEDED_MIB..MEMORY_COMFORTABLE_MIB => {
            not_ok("memory", Level::Warn, found, "free memory: only small VMs fit")
        }
        _ => ok("memory", found),
    }
}

/// What the machine shows.
struct Facts {
    kvm: Result<(), io::ErrorKind>,
    cpu_extension: Option<&'static str>,
    nested_paging: Option<&'static str>,
    tpm: Tpm,
    swtpm: Option<String>,
    passt: Option<String>,
    mkfs_erofs: Option<String>,
    /// Walls of a VM's jail that the kernel does not have.
    jail_lacks: Vec<&'static str>,
    /// Controllers that control groups do not have.
    groups_lack: Vec<&'static str>,
    lockdown: Option<String>,
    iommu: bool,
    ksm: bool,
    smt: bool,
    core_scheduling: bool,
    memory_mib: u64,
}

/// The host TPM.
enum Tpm {
    Absent,
    Old,
    Closed(io::ErrorKind),
    Ready,
}

impl Facts {
    fn gather() -> Self {
        Self {
            kvm: open("/dev/kvm"),
            cpu_extension: cpu_extension(&text("/proc/cpuinfo")),
            nested_paging: nested_paging_in_use(),
            tpm: host_tpm(),
            swtpm: version_of("swtpm"),
            passt: version_of("passt"),
            mkfs_erofs: version_of("mkfs.erofs"),
            jail_lacks: jail_lacks(),
            groups_lack: groups_lack(&text("/sys/fs/cgroup/cgroup.controllers")),
            lockdown: lockdown_mode(&text("/sys/kernel/security/lockdown")),
            iommu: has_entries("/sys/class/iommu"),
            ksm: text("/sys/kernel/mm/ksm/run") == "1",
            smt: text("/sys/devices/system/cpu/smt/active") == "1",
            core_scheduling: has_core_scheduling(),
            memory_mib: available_mib(&text("/proc/meminfo")),
        }
    }
}

fn open(path: &str) -> Result<(), io::ErrorKind> {
    fs::OpenOptions::new().read(true).write(true).open(path).map(drop).map_err(|e| e.kind())
}

/// Trimmed content; empty if there is none.
fn text(path: &str) -> String {
    fs::read_to_string(path).map(|t| t.trim().to_owned()).unwrap_or_default()
}

fn cpu_extension(cpuinfo: &str) -> Option<&'static str> {
    let flags = cpuinfo.lines().find(|l| l.starts_with("flags"))?;
    ["vmx", "svm"].into_iter().find(|flag| flags.split_whitespace().any(|f| f == *flag))
}

fn nested_paging_in_use() -> Option<&'static str> {
    let on = |path: &str| matches!(text(path).as_str(), "Y" | "1");
    if on("/sys/module/kvm_intel/parameters/ept") {
        return Some("EPT");
    }
    on("/sys/module/kvm_amd/parameters/npt").then_some("NPT")
}

fn host_tpm() -> Tpm {
    match text("/sys/class/tpm/tpm0/tpm_version_major").as_str() {
        "1" => return Tpm::Old,
        "" if !Path::new("/dev/tpmrm0").exists() => return Tpm::Absent,
        _ => {}
    }
    match open("/dev/tpmrm0") {
        Ok(()) => Tpm::Ready,
        // The monitor holds it: it is there and works.
        Err(io::ErrorKind::ResourceBusy) => Tpm::Ready,
        Err(kind) => Tpm::Closed(kind),
    }
}

fn jail_lacks() -> Vec<&'static str> {
    let namespaces = ["mnt", "net", "ipc", "uts", "cgroup", "pid"];
    let walls = [
        ("namespaces", namespaces.iter().all(|ns| Path::new("/proc/self/ns").join(ns).exists())),
        ("Landlock", has_landlock()),
        ("seccomp", text("/proc/sys/kernel/seccomp/actions_avail").contains("kill_process")),
    ];
    walls.into_iter().filter(|(_, there)| !there).map(|(wall, _)| wall).collect()
}

fn groups_lack(there: &str) -> Vec<&'static str> {
    let is_there = |controller: &str| there.split(' ').any(|word| word == controller);
    ["memory", "pids", "cpu", "io"].into_iter().filter(|controller| !is_there(controller)).collect()
}

/// Asks for the cookie of this process, which a kernel that knows of none refuses.
fn has_core_scheduling() -> bool {
    let process = rustix::thread::CoreSchedulingScope::Thread;
    rustix::thread::core_scheduling_cookie(rustix::process::getpid(), process).is_ok()
}

/// Makes the rules a VM process is put under (those of Linux 5.19), for nobody.
fn has_landlock() -> bool {
    use landlock::RulesetAttr as _;
    use landlock::{ABI, Access as _, AccessFs, CompatLevel, Compatible as _, Ruleset};
    Ruleset::default()
        .set_compatibility(CompatLevel::HardRequirement)
        .handle_access(AccessFs::from_all(ABI::V2))
        .and_then(Ruleset::create)
        .is_ok()
}

/// First line that `PROGRAM --version` prints; the path where it prints nothing. Debian keeps some of
/// these in directories that only root's PATH names.
fn version_of(program: &str) -> Option<String> {
    let path = find_program(program)?;
    let run = Command::new(&path).arg("--version").stdin(Stdio::null()).output().ok()?;
    let said = if run.stdout.is_empty() { run.stderr } else { run.stdout };
    let first = String::from_utf8_lossy(&said).lines().next().map(one_line).unwrap_or_default();
    Some(if first.is_empty() { path.display().to_string() } else { first })
}

fn find_program(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(system).map(|dir| dir.join(program)).find(|p| p.is_file())
}

/// `none [integrity] confidentiality`: the one in brackets.
fn lockdown_mode(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    rest.split_once(']').map(|(mode, _)| mode.to_owned())
}

fn has_entries(path: &str) -> bool {
    fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some())
}

fn available_mib(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|l| l.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Facts {
        Facts {
            kvm: Ok(()),
            cpu_extension: Some("svm"),
            nested_paging: Some("NPT"),
            tpm: Tpm::Ready,
            swtpm: Some("TPM emulator version 0.7.1".into()),
            passt: Some("passt".into()),
            mkfs_erofs: Some("mkfs.erofs 1.5".into()),
            jail_lacks: vec![],
            groups_lack: vec![],
            lockdown: Some("confidentiality".into()),
            iommu: true,
            ksm: false,
            smt: false,
            core_scheduling: true,
            memory_mib: 4096,
        }
    }

    /// Changes one fact of a good machine and checks the one finding that follows.
    #[track_caller]
    fn check(change: impl FnOnce(&mut Facts), name: &str, level: Level, words: &str) {
        let mut facts = good();
        change(&mut facts);
        let report = judge(&facts);
        let odd: Vec<_> = report.checks.iter().filter(|c| c.level != Level::Ok).collect();
        let [found] = odd.as_slice() else { panic!("{odd:?}") };
        assert_eq!((found.name, found.level), (name, level));
        assert!(found.found.contains(words), "{found:?}");
        assert!(found.remedy.is_some());
        assert_eq!(report.verdict().is_err(), level == Level::Missing);
    }

    #[test]
    fn a_good_machine_has_no_finding() {
        let report = judge(&good());
        assert!(report.checks.iter().all(|c| c.level == Level::Ok && c.remedy.is_none()));
        assert!(report.verdict().is_ok());
    }

    #[test]
    fn kvm_needs_the_device_and_the_flag() {
        use io::ErrorKind as K;
        check(|f| f.cpu_extension = None, "kvm", Level::Missing, "paravirtual");
        check(|f| f.kvm = Err(K::NotFound), "kvm", Level::Missing, "no /dev/kvm");
        check(
            |f| (f.kvm, f.cpu_extension) = (Err(K::NotFound), None),
            "kvm",
            Level::Missing,
            "neither",
        );
        check(|f| f.kvm = Err(K::PermissionDenied), "kvm", Level::Missing, "may not be opened");
        check(|f| f.kvm = Err(K::ResourceBusy), "kvm", Level::Missing, "does not open");
    }

    #[test]
    fn a_tpm_is_of_version_2_and_opens() {
        check(|f| f.tpm = Tpm::Absent, "tpm", Level::Missing, "no TPM");
        check(|f| f.tpm = Tpm::Old, "tpm", Level::Missing, "1.2");
        check(
            |f| f.tpm = Tpm::Closed(io::ErrorKind::PermissionDenied),
            "tpm",
            Level::Missing,
            "permission",
        );
    }

    #[test]
    fn every_wall_of_the_jail_is_needed() {
        check(|f| f.jail_lacks = vec!["Landlock"], "jail", Level::Missing, "no Landlock");
        check(
            |f| f.jail_lacks = vec!["namespaces", "seccomp"],
            "jail",
            Level::Missing,
            "no seccomp",
        );
    }

    #[test]
    fn every_controller_is_needed() {
        check(
            |f| f.groups_lack = vec!["memory", "pids"],
            "groups",
            Level::Missing,
            "none for pids",
        );
        assert_eq!(groups_lack("cpuset cpu io memory hugetlb pids"), [""; 0]);
        assert_eq!(groups_lack("cpuset memory"), ["pids", "cpu", "io"]);
        // In memory there is no disk to protect.
        check(|f| f.groups_lack = vec!["io"], "groups", Level::Warn, "for io");
    }

    #[test]
    fn cores_with_threads_need_a_kernel_that_keeps_vms_apart() {
        check(|f| (f.smt, f.core_scheduling) = (true, false), "smt", Level::Missing, "sharing");
        let report = judge(&Facts { smt: true, ..good() });
        assert!(report.checks.iter().all(|c| c.level == Level::Ok));
        let report = judge(&Facts { core_scheduling: false, ..good() });
        assert!(report.checks.iter().all(|c| c.level == Level::Ok));
    }

    #[test]
    fn tools_are_needed_as_far_as_closed_boxes_need_them() {
        check(|f| f.swtpm = None, "swtpm", Level::Missing, "not found");
        check(|f| f.passt = None, "passt", Level::Warn, "not found");
        check(|f| f.mkfs_erofs = None, "mkfs.erofs", Level::Warn, "not found");
    }

    #[test]
    fn weaker_isolation_is_a_warning() {
        check(|f| f.nested_paging = None, "nested paging", Level::Warn, "neither");
        check(|f| f.lockdown = Some("none".into()), "lockdown", Level::Warn, "none");
        check(|f| f.lockdown = None, "lockdown", Level::Warn, "does not say");
        check(|f| f.iommu = false, "iommu", Level::Warn, "none");
        check(|f| f.ksm = true, "ksm", Level::Warn, "on");
        check(|f| f.memory_mib = 500, "memory", Level::Warn, "500");
        check(|f| f.memory_mib = 100, "memory", Level::Missing, "100");
    }

    #[test]
    fn reads_what_the_kernel_writes() {
        assert_eq!(cpu_extension("model : x\nflags\t: fpu svm lm\n"), Some("svm"));
        assert_eq!(cpu_extension("flags\t: fpu svm_lock vmxx\n"), None);
        assert_eq!(lockdown_mode("none [integrity] confidentiality").as_deref(), Some("integrity"));
        assert_eq!(lockdown_mode(""), None);
        assert_eq!(available_mib("MemTotal: 9 kB\nMemAvailable:    2048 kB\n"), 2);
    }
}
