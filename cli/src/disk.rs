//! `coffer disk`: tends encrypted volumes of a host, through its monitor, which has their keys (SPEC 11.15.4, 11.17).

use coffer_vault::{GrowVolume, VolumeInfo, VolumeKind, VolumeReport};

use crate::args::{
    DiskCheckArgs, DiskCommand, DiskCreateArgs, DiskGrowArgs, DiskRekeyArgs, DiskRepairArgs,
    DiskShowArgs,
};
use crate::error::{Error, one_line};
use crate::monitor_client::Monitor;
use crate::output::{self, Step};
use crate::vm::block_on;
use crate::volume::{make, request, show, volume_path};
use crate::{backup, size};

/// `coffer disk`.
pub fn run(command: DiskCommand) -> Result<(), Error> {
    match command {
        DiskCommand::Create(args) => create(args),
        DiskCommand::Info(args) => info(&args),
        DiskCommand::Check(args) => check(&args),
        DiskCommand::Repair(args) => repair(&args),
        DiskCommand::Rekey(args) => rekey(&args),
        DiskCommand::Grow(args) => grow(&args),
        DiskCommand::Backup(args) => backup::back_up(&args),
        DiskCommand::Restore(args) => backup::restore(&args),
    }
}

fn create(args: DiskCreateArgs) -> Result<(), Error> {
    let (monitor, bytes) = (Monitor::new(&args.monitor)?, size::parse(&args.size)?);
    let asked = request(args.name, VolumeKind::Encrypted, &args.owner, Some(bytes), None)?;
    make(&monitor, &asked, args.json)
}

fn info(args: &DiskShowArgs) -> Result<(), Error> {
    let path = volume_path(&args.name, "")?;
    let volume: VolumeInfo = block_on(Monitor::new(&args.monitor)?.get(&path))?;
    if volume.kind != VolumeKind::Encrypted {
        return Err(Error::usage(
            format!(
                "`{}` is a volume of kind {}, not an encrypted one",
                args.name,
                volume.kind.as_str()
            ),
            "`coffer volume inspect` shows any volume",
        ));
    }
    show(&volume, args.json)
}

fn check(args: &DiskCheckArgs) -> Result<(), Error> {
    let path = volume_path(&args.name, "/check")?;
    let step = Step::start(format!("reading all of `{}`", args.name));
    let report: VolumeReport = block_on(Monitor::new(&args.monitor)?.work(&path, &()))?;
    drop(step);
    match args.json {
        true => output::json(&report)?,
        false => print(&report, "damaged")?,
    }
    let volume = args.name.clone();
    match (report.damaged, report.lost) {
        (0, 0) => Ok(()),
        (0, blocks) => Err(Error::LostBlocks { volume, blocks }),
        (places, _) => Err(Error::DamagedVolume { volume, places }),
    }
}

fn repair(args: &DiskRepairArgs) -> Result<(), Error> {
    let path = volume_path(&args.name, "/repair")?;
    let step = Step::start(format!("repairing `{}`", args.name));
    let report: VolumeReport = block_on(Monitor::new(&args.monitor)?.work(&path, &()))?;
    drop(step);
    if args.json { output::json(&report) } else { print(&report, "given up now") }
}

fn print(report: &VolumeReport, damaged: &str) -> Result<(), Error> {
    output::pairs(&[
        ("blocks of data", report.data.to_string()),
        ("blocks of the tree", report.nodes.to_string()),
        ("blocks given up", report.lost.to_string()),
        (damaged, report.damaged.to_string()),
    ])?;
    report.places.iter().try_for_each(|place| output::line(one_line(place)))?;
    let told = u64::try_from(report.places.len()).unwrap_or(u64::MAX);
    match report.damaged.saturating_sub(told) {
        0 => Ok(()),
        more => output::line(format_args!("and {more} more")),
    }
}

fn rekey(args: &DiskRekeyArgs) -> Result<(), Error> {
    let path = volume_path(&args.name, "/rekey")?;
    let step = Step::start(format!("changing the key of `{}`", args.name));
    let volume: VolumeInfo = block_on(Monitor::new(&args.monitor)?.work(&path, &()))?;
    drop(step);
    if args.json { output::json(&volume) } else { output::line(volume.name) }
}

fn grow(args: &DiskGrowArgs) -> Result<(), Error> {
    let path = volume_path(&args.name, "/grow")?;
    let asked = GrowVolume { bytes: size::parse(&args.size)? };
    let step = Step::start(format!("growing `{}`", args.name));
    let volume: VolumeInfo = block_on(Monitor::new(&args.monitor)?.work(&path, &asked))?;
    drop(step);
    match args.json {
        true => output::json(&volume),
        false => output::line(format_args!("{} {}", volume.name, size::text(volume.bytes))),
    }
}
