//! The process that holds the host's TPM: answers on a stream until its peer is gone.

use std::os::unix::net::UnixStream;

use crate::tpm::{OpenTpm, Result};
use crate::wire::{self, Answer, Request};
use crate::{HostTpmError, Tcti};

/// Serves until the supervisor closes the stream. The TPM is opened at the first request and again after a
/// failure, so a TPM that comes late or hangs once is not lost for good.
pub fn serve(stream: &UnixStream, tcti: &Tcti) -> std::result::Result<(), HostTpmError> {
    let mut tpm: Option<OpenTpm> = None;
    while let Some(request) = wire::read(stream).map_err(HostTpmError::keeper)? {
        let answer = match open(&mut tpm, tcti).and_then(|tpm| answer(tpm, request)) {
            Ok(answer) => answer,
            Err(refusal) => {
                tpm = None;
                refusal
            }
        };
        wire::write(stream, &answer).map_err(HostTpmError::keeper)?;
    }
    Ok(())
}

fn open<'a>(tpm: &'a mut Option<OpenTpm>, tcti: &Tcti) -> Result<&'a mut OpenTpm> {
    match tpm {
        Some(open) => Ok(open),
        None => Ok(tpm.insert(OpenTpm::open(tcti)?)),
    }
}

fn answer(tpm: &mut OpenTpm, request: Request) -> Result<Answer> {
    Ok(match request {
        Request::AkPublic => Answer::AkPublic(tpm.ak_public.clone()),
        Request::Identity => Answer::Identity(tpm.identity()?),
        Request::Quote(qualifying) => Answer::Quoted(tpm.quote(&qualifying)?),
        Request::Activate(blob, secret) => Answer::Activated(tpm.activate(blob, secret)?),
    })
}
