//! For root of an open box: does what an appliance's agent does to get its secrets, with the box's own vTPM and its
//! own way to the monitor, for the appliance whose `appliance.json` is named. Prints `ASK` and what came of it.
#![forbid(unsafe_code)]

use std::path::Path;

use anyhow::{Context as _, Result};
use coffer_init::appliance;
use coffer_init::attest::{Patience, fetch_secrets};
use coffer_init::channel::{Channel, Vsock};
use coffer_init::tpm::{Device, EVENT_LOG_PATH, VirtualTpm};

fn main() -> Result<()> {
    let path = std::env::args().nth(1).context("name an appliance.json")?;
    let checked = appliance::read(Path::new(&path))?;
    let plan = checked.secrets.context("that appliance asks for nothing")?;
    let mut tpm = VirtualTpm::new(Device::open()?, EVENT_LOG_PATH);
    match fetch_secrets(&plan, &Channel::new(Vsock), &mut tpm, Patience::APPLIANCE) {
        Ok(_) => println!("ASK released"),
        Err(failure) => println!("ASK {}: {failure}", failure.code()),
    }
    Ok(())
}
