//! The stages of a vTPM's making (SPEC 3.6, 6.5). Each method takes its stage by value and gives the next.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use coffer_formats::event_log::VmEvent;
use coffer_formats::tpm::command::{self, Hierarchy};
use coffer_formats::tpm::made::MadeKey;
use coffer_formats::tpm::response::{self, TpmError};
use coffer_formats::tpm::{pcr, template};

use crate::control::{Control, PATIENCE};
use crate::process::{Process, Swtpm};
use crate::{EK_CERTIFICATE_INDEX, VtpmError};

/// PCR of the DRTM hash sequence.
const LAUNCH_PCR: u8 = 17;
/// TPMA_NV of the EK certificate (EK Credential Profile 2.6, 2.2.1.4): PPWRITE, PPREAD, OWNERREAD, AUTHREAD,
/// NO_DA, PLATFORMCREATE. With the platform hierarchy closed nobody can write or remove it.
const EK_CERTIFICATE_ATTRIBUTES: u32 = 1 | 1 << 16 | 1 << 17 | 1 << 18 | 1 << 25 | 1 << 30;
/// Bytes written at once: TPM_PT_NV_BUFFER_MAX of libtpms.
const NV_CHUNK: usize = 1024;
/// Most bytes of an EK certificate: MAX_NV_INDEX_SIZE of libtpms is 2048.
const EK_CERTIFICATE_MAX: usize = 2048;
/// Most bytes of an answer: libtpms' buffer.
const ANSWER_MAX: usize = 4096;

/// What every stage holds.
struct Engine {
    // Fields drop in this order: the channels close before the process is killed and its state removed.
    data: UnixStream,
    control: Control,
    process: Process,
}

/// Started, with no banks but those that are measured into.
pub struct Initialised(Engine);

/// vEK and vAK are known.
pub struct Keyed {
    engine: Engine,
    /// Public halves.
    pub keys: Keys,
}

/// The EK certificate is in NV.
pub struct Certified {
    engine: Engine,
    /// Public halves.
    pub keys: Keys,
}

/// The launch is in the PCRs.
pub struct Measured {
    engine: Engine,
    keys: Keys,
}

/// The public halves of a vTPM's keys.
#[derive(Debug, Clone)]
pub struct Keys {
    /// Endorsement key.
    pub ek: MadeKey,
    /// Attestation key.
    pub ak: MadeKey,
}

/// A vTPM a guest may use. The supervisor keeps this; the guest's VM process gets the data channel.
pub struct Vtpm {
    process: Process,
    /// Public halves.
    pub keys: Keys,
    /// Held, never used again: whoever holds it can export the TPM's state.
    _control: Control,
}

impl Swtpm {
    /// Checks the program, connects the data channel, leaves no bank that is not measured into, and starts the TPM.
    pub fn initialise(self) -> Result<Initialised, VtpmError> {
        let Self { mut process, mut control } = self;
        let data = connect(&mut control).map_err(|e| process.explain(e))?;
        let mut engine = Engine { data, control, process };
        engine.explained(Engine::only_measured_banks)?;
        Ok(Initialised(engine))
    }
}

impl Initialised {
    /// Derives vEK and vAK and forgets them again: the guest derives the same from the same seed.
    pub fn make_keys(self) -> Result<Keyed, VtpmError> {
        let mut engine = self.0;
        let keys = engine.explained(|engine| {
            let ek = engine.primary("vEK", &template::ek_p256())?;
            let ak = engine.primary("vAK", &template::vm_ak())?;
            Ok(Keys { ek, ak })
        })?;
        Ok(Keyed { engine, keys })
    }
}

impl Keyed {
    /// Writes the EK certificate (DER) to NV.
    pub fn certify(self, certificate: &[u8]) -> Result<Certified, VtpmError> {
        let Self { mut engine, keys } = self;
        let size = u16::try_from(certificate.len())
            .ok()
            .filter(|_| certificate.len() <= EK_CERTIFICATE_MAX)
            .ok_or(VtpmError::CertificateTooLarge)?;
        let define = command::nv_define(EK_CERTIFICATE_INDEX, size, EK_CERTIFICATE_ATTRIBUTES);
        let undefine = command::nv_undefine(Hierarchy::Platform, EK_CERTIFICATE_INDEX);
        engine.explained(|engine| {
            if engine.process.restored {
                engine.run("NV_UndefineSpace", &undefine)?;
            }
            engine.run("NV_DefineSpace", &define)?;
            for (n, chunk) in certificate.chunks(NV_CHUNK).enumerate() {
                let offset =
                    u16::try_from(n * NV_CHUNK).map_err(|_| VtpmError::CertificateTooLarge)?;
                engine.run("NV_Write", &command::nv_write(EK_CERTIFICATE_INDEX, offset, chunk))?;
            }
            Ok(())
        })?;
        Ok(Certified { engine, keys })
    }
}

impl Certified {
    /// Process id of swtpm.
    pub fn pid(&self) -> u32 {
        self.engine.process.pid()
    }

    /// True once swtpm has ended.
    pub fn has_ended(&mut self) -> bool {
        self.engine.process.has_ended()
    }

    /// Measures a launch: extends each event in order and in every bank, PCR 17 by the hash sequence over
    /// `launch_record`, then reads the quoted registers of every bank back and compares.
    pub fn measure(self, events: &[VmEvent], launch_record: &[u8]) -> Result<Measured, VtpmError> {
        let Self { mut engine, keys } = self;
        engine.explained(|engine| {
            for event in events {
                if event.pcr == LAUNCH_PCR {
                    engine.control.hash_sequence(launch_record)?;
                } else {
                    let command = command::pcr_extend(event.pcr, &event.digests());
                    engine.run("PCR_Extend", &command)?;
                }
            }
            engine.compare_pcrs(events)
        })?;
        Ok(Measured { engine, keys })
    }
}

impl Measured {
    /// Closes the platform hierarchy and leaves locality 0 for good. Gives the data channel apart: it goes
    /// to the VM process, and the supervisor must not keep a copy.
    pub fn seal(self) -> Result<(Vtpm, OwnedFd), VtpmError> {
        let Self { mut engine, keys } = self;
        engine.explained(|engine| {
            engine.run("HierarchyControl", &command::hierarchy_disable_platform())?;
            engine.control.set_locality(0)
        })?;
        let Engine { data, control, process } = engine;
        data.set_read_timeout(None).map_err(|e| broken("sealing", e))?;
        Ok((Vtpm { process, keys, _control: control }, data.into()))
    }
}

impl Vtpm {
    /// True once swtpm has ended.
    pub fn has_ended(&mut self) -> bool {
        self.process.has_ended()
    }
}

/// Checks the program, gives it its data channel, and resets its TPM.
fn connect(control: &mut Control) -> Result<UnixStream, VtpmError> {
    control.check()?;
    let (data, theirs) = UnixStream::pair().map_err(|e| broken("SET_DATAFD", e))?;
    data.set_read_timeout(Some(PATIENCE)).map_err(|e| broken("SET_DATAFD", e))?;
    control.set_data_channel(theirs.as_fd())?;
    drop(theirs);
    control.init()?;
    Ok(data)
}

impl Engine {
    /// Takes a step of the making; a failure tells what swtpm said about it.
    fn explained<T>(
        &mut self,
        step: impl FnOnce(&mut Self) -> Result<T, VtpmError>,
    ) -> Result<T, VtpmError> {
        step(self).map_err(|error| self.process.explain(error))
    }

    /// A new TPM may have several banks; a guest could extend the ones nobody measured into. The allocation takes
    /// effect at the next reset.
    fn only_measured_banks(&mut self) -> Result<(), VtpmError> {
        self.run("Startup", &command::startup_clear())?;
        let allocate = command::pcr_allocate(&pcr::VM_BANKS);
        if !self.ask("PCR_Allocate", &allocate, response::pcr_allocate)? {
            return Err(VtpmError::Lacks("PCR banks SHA-256 and SHA-384 and no other"));
        }
        self.control.stop()?;
        self.control.init()?;
        self.run("Startup", &command::startup_clear())?;
        // A guest's kernel asks for it and waits; what is tested is not tested again.
        self.run("SelfTest", &command::self_test())
    }

    fn primary(&mut self, key: &'static str, template: &[u8]) -> Result<MadeKey, VtpmError> {
        let create = command::create_primary(Hierarchy::Endorsement, template);
        let (handle, public) = self.ask("CreatePrimary", &create, response::create_primary)?;
        self.run("FlushContext", &command::flush_context(handle))?;
        MadeKey::new(template, public).map_err(|_| VtpmError::BadKey(key))
    }

    /// The registers a VM quote covers hold, in every bank, what our own arithmetic says.
    fn compare_pcrs(&mut self, events: &[VmEvent]) -> Result<(), VtpmError> {
        for bank in pcr::VM_BANKS {
            let read = command::pcr_read(bank, pcr::VM_SELECTION);
            let values =
                self.ask("PCR_Read", &read, |answer| response::pcr_read_in(bank, answer))?;
            for pcr in pcr::VM_SELECTION {
                let of_pcr = events.iter().filter(|event| event.pcr == *pcr);
                let digests = of_pcr.flat_map(VmEvent::digests).filter(|d| d.hash() == bank);
                let expected = digests.fold(bank.zero(), |value, d| value.extend(d.as_bytes()));
                if !values.contains(&(*pcr, expected)) {
                    return Err(VtpmError::PcrMismatch(*pcr, bank));
                }
            }
        }
        Ok(())
    }

    fn run(&mut self, what: &'static str, command: &[u8]) -> Result<(), VtpmError> {
        self.ask(what, command, response::ok)
    }

    /// One command, one answer. The command goes out in one write: swtpm takes what it reads first for all.
    fn ask<T>(
        &mut self,
        what: &'static str,
        command: &[u8],
        read: impl FnOnce(&[u8]) -> Result<T, TpmError>,
    ) -> Result<T, VtpmError> {
        self.data.write_all(command).map_err(|e| broken(what, e))?;
        let answer = read_answer(&mut self.data).map_err(|e| broken(what, e))?;
        read(&answer).map_err(|source| VtpmError::Tpm(what, source))
    }
}

fn read_answer(channel: &mut impl Read) -> io::Result<Vec<u8>> {
    const HEADER: usize = 10;
    let mut answer = vec![0; HEADER];
    channel.read_exact(&mut answer)?;
    let size =
        answer.get(2..6).and_then(|s| s.try_into().ok()).map_or(0, u32::from_be_bytes) as usize;
    if !(HEADER..=ANSWER_MAX).contains(&size) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    answer.resize(size, 0);
    channel.read_exact(answer.get_mut(HEADER..).unwrap_or_default())?;
    Ok(answer)
}

fn broken(what: &'static str, source: io::Error) -> VtpmError {
    VtpmError::Channel("data", what, source)
}
