//! Where the TPM is. Of tpm2-tss' many notations two are taken, and read here rather than by tss-esapi,
//! which in 7.7 takes `swtpm:path=` and then connects to localhost:2321 (rust-tss-esapi issue 661).

use std::path::Path;
use std::str::FromStr;

use tss_esapi::tcti_ldr::TctiNameConf;

use crate::HostTpmError;

/// A TPM's address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tcti(String);

impl Tcti {
    /// The text it was read from.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True for a TPM emulator: never a sealed host.
    pub fn is_software(&self) -> bool {
        self.0.starts_with("swtpm:")
    }

    /// The path of a TPM that is a device.
    pub fn device(&self) -> Option<&Path> {
        self.0.strip_prefix("device:").map(Path::new)
    }

    pub(crate) fn name_conf(&self) -> Result<TctiNameConf, HostTpmError> {
        TctiNameConf::from_str(&self.0).map_err(|_| HostTpmError::BadTcti(self.0.clone()))
    }
}

impl FromStr for Tcti {
    type Err = HostTpmError;

    fn from_str(text: &str) -> Result<Self, HostTpmError> {
        let bad = || HostTpmError::BadTcti(text.to_owned());
        let (kind, rest) = text.split_once(':').ok_or_else(bad)?;
        match kind {
            "device" if rest.starts_with('/') => {}
            "swtpm" if rest.split(',').any(|part| part.starts_with("path=")) => {
                return Err(HostTpmError::UnixTcti);
            }
            "swtpm" => check_host_and_port(rest).ok_or_else(bad)?,
            _ => return Err(bad()),
        }
        Ok(Self(text.to_owned()))
    }
}

/// `host=H,port=P`, both, in this order: a part left out would mean the library's default.
fn check_host_and_port(text: &str) -> Option<()> {
    let (host, port) = text.strip_prefix("host=")?.split_once(",port=")?;
    port.parse::<u16>().ok().filter(|port| *port != 0)?;
    (!host.is_empty() && !host.contains([',', '='])).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: Result<(), HostTpmError>) {
        assert_eq!(text.parse::<Tcti>().map(drop), expected, "{text}");
    }

    #[test]
    fn takes_devices_and_tcp_emulators() {
        check("device:/dev/tpmrm0", Ok(()));
        check("swtpm:host=127.0.0.1,port=2321", Ok(()));
    }

    #[test]
    fn refuses_a_unix_socket_rather_than_connecting_elsewhere() {
        check("swtpm:path=/run/tpm.sock", Err(HostTpmError::UnixTcti));
        check("swtpm:host=127.0.0.1,path=/run/tpm.sock", Err(HostTpmError::UnixTcti));
    }

    #[test]
    fn refuses_what_would_mean_a_default() {
        for text in [
            "swtpm",
            "swtpm:",
            "swtpm:port=2321",
            "swtpm:host=,port=1",
            "swtpm:host=a,port=0",
            "device",
            "device:",
            "device:dev/tpm0",
            "mssim:host=a,port=1",
            "cmd:nc",
            "",
        ] {
            check(text, Err(HostTpmError::BadTcti(text.into())));
        }
    }
}
