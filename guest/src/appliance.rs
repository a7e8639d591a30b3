//! Reading `/coffer/appliance.json`: strict, and once. The file is measured with the initrd, so it is the
//! author's word. The rules of the format are `coffer_image`'s; here the pins become keys and addresses.

use std::net::IpAddr;
use std::path::Path;

use coffer_image::appliance::{Appliance, Network, SecretRequest, VerifierPin};
use p256::ecdsa::VerifyingKey;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

use crate::Failure;

/// Most resources of one attestation (SPEC 4.2).
const RESOURCES_MAX: usize = 32;
/// Port of an `https` URL without one (RFC 9110, 4.2.2).
const HTTPS_PORT: u16 = 443;

/// A checked appliance.
pub struct CheckedAppliance {
    /// As read.
    pub appliance: Appliance,
    /// What to fetch, if anything.
    pub secrets: Option<SecretPlan>,
}

/// What to fetch and from whom. Exists only if the image asks for secrets.
#[derive(Clone)]
pub struct SecretPlan {
    /// From whom.
    pub verifier: PinnedVerifier,
    /// What.
    pub wanted: Vec<WantedSecret>,
}

impl SecretPlan {
    /// The ids to ask for: one secret may go into several files.
    pub fn resources(&self) -> Vec<String> {
        let mut ids: Vec<String> = Vec::new();
        for wanted in &self.wanted {
            if !ids.contains(&wanted.id) {
                ids.push(wanted.id.clone());
            }
        }
        ids
    }
}

/// A secret request whose mode has been parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedSecret {
    /// Resource id.
    pub id: String,
    /// Plain file name.
    pub file: String,
    /// Permission bits.
    pub mode: u32,
}

/// A verifier whose pins have been parsed.
#[derive(Clone)]
pub struct PinnedVerifier {
    /// URL as written: the audience of the evidence.
    pub audience: String,
    /// Host and port as written, for the `Host` header and for messages.
    pub authority: String,
    /// Address to connect to.
    pub address: IpAddr,
    /// Port to connect to.
    pub port: u16,
    /// The only trust anchors.
    pub ca: Vec<CertificateDer<'static>>,
    /// Key that signs releases.
    pub release_key: VerifyingKey,
}

/// Reads and checks the file.
pub fn read(path: &Path) -> Result<CheckedAppliance, Failure> {
    let bytes = std::fs::read(path);
    parse(&bytes.map_err(|error| Failure::Appliance(format!("appliance.json: {error}")))?)
}

/// Parses and checks; what breaks a rule of the format or has unusable pins is refused.
pub fn parse(bytes: &[u8]) -> Result<CheckedAppliance, Failure> {
    let appliance =
        Appliance::parse(bytes).map_err(|error| Failure::Appliance(error.to_string()))?;
    let secrets = match &appliance.verifier {
        Some(verifier) if !appliance.secrets.is_empty() => Some(plan(&appliance, verifier)?),
        _ => None,
    };
    Ok(CheckedAppliance { appliance, secrets })
}

fn plan(appliance: &Appliance, verifier: &VerifierPin) -> Result<SecretPlan, Failure> {
    if appliance.network == Network::None {
        return refuse("`secrets` are asked for without a network to ask over");
    }
    let wanted = appliance.secrets.iter().map(wanted).collect::<Result<_, _>>()?;
    let plan = SecretPlan { verifier: pinned(verifier)?, wanted };
    if plan.resources().len() > RESOURCES_MAX {
        return refuse("`secrets` names more than 32 ids");
    }
    Ok(plan)
}

fn wanted(request: &SecretRequest) -> Result<WantedSecret, Failure> {
    match u32::from_str_radix(&request.mode, 8) {
        Ok(mode) => Ok(WantedSecret { id: request.id.clone(), file: request.file.clone(), mode }),
        Err(_) => refuse("`secrets` has a mode that is not octal"),
    }
}

fn pinned(pin: &VerifierPin) -> Result<PinnedVerifier, Failure> {
    let authority = pin.url.strip_prefix("https://").unwrap_or(&pin.url);
    let (address, port) = parse_authority(authority)?;
    let ca: Vec<_> = CertificateDer::pem_slice_iter(pin.ca.as_bytes())
        .collect::<Result<_, _>>()
        .or_else(|_| refuse("`verifier.ca` is not PEM"))?;
    if ca.is_empty() {
        return refuse("`verifier.ca` holds no certificate");
    }
    let point = hex::decode(&pin.release_key).unwrap_or_default();
    let Ok(release_key) = VerifyingKey::from_sec1_bytes(&point) else {
        return refuse("`verifier.release_key` is not a point of P-256");
    };
    let (audience, authority) = (pin.url.clone(), authority.into());
    Ok(PinnedVerifier { audience, authority, address, port, ca, release_key })
}

/// An appliance has no name service, so the host must be an address; the certificate is checked against it.
fn parse_authority(authority: &str) -> Result<(IpAddr, u16), Failure> {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().ok()),
        None => (authority, Some(HTTPS_PORT)),
    };
    match (host.parse(), port) {
        (Ok(address), Some(port)) => Ok((address, port)),
        (Err(_), _) => refuse(
            "`verifier.url` names a host, and an appliance has no name service: give an address",
        ),
        (_, None) => refuse("`verifier.url` has no valid port"),
    }
}

fn refuse<T>(reason: &str) -> Result<T, Failure> {
    Err(Failure::Appliance(format!("appliance.json: {reason}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A valid file; `{}` is where tests put their defects.
    fn json(url: &str, network: &str, file: &str) -> String {
        let key = "04".to_owned() + GENERATOR;
        format!(
            r#"{{"version":1,"modules":[],"root_fs":"erofs","network":{network},
            "verifier":{{"url":"{url}","ca":"{CA}","release_key":"{key}"}},
            "secrets":[{{"id":"nginx/key","file":"{file}","mode":"0400"}}],
            "workload":{{"argv":["/bin/true"]}}}}"#
        )
    }

    const NAT: &str =
        r#"{"mode":"nat","address":"192.168.76.2","prefix":24,"gateway":"192.168.76.1"}"#;
    const CA: &str = r"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    /// The base point of P-256 (SP 800-186, 3.2.1.3).
    const GENERATOR: &str = "6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296\
                             4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5";

    #[track_caller]
    fn refused(text: &str, expected: &str) {
        match parse(text.as_bytes()) {
            Ok(_) => panic!("taken: {text}"),
            Err(failure) => {
                assert_eq!(failure.code(), "bad-appliance");
                assert!(failure.to_string().contains(expected), "{failure}");
            }
        }
    }

    #[test]
    fn a_valid_file_gives_a_plan() {
        let checked = parse(json("https://192.168.76.1:8443", NAT, "tls.key").as_bytes()).unwrap();
        let plan = checked.secrets.unwrap();
        assert_eq!(plan.verifier.authority, "192.168.76.1:8443");
        assert_eq!(
            (plan.verifier.address.to_string(), plan.verifier.port),
            ("192.168.76.1".into(), 8443)
        );
        assert_eq!(plan.verifier.audience, "https://192.168.76.1:8443");
        assert_eq!(plan.resources(), ["nginx/key"]);
        assert_eq!(plan.wanted.first().map(|wanted| wanted.mode), Some(0o400));
    }

    #[test]
    fn defects_are_refused_by_name() {
        let good = json("https://192.168.76.1", NAT, "tls.key");
        refused(&good.replace("\"version\":1", "\"version\":2"), "`version` must be 1");
        refused(
            &good.replace("\"modules\"", "\"debug\":true,\"modules\""),
            "unknown field `debug`",
        );
        refused(&good.replace("erofs", "ext4"), "`root_fs` must be `erofs`");
        refused(&good.replace("/bin/true", "bin/true"), "absolute path");
        refused(&good.replace("tls.key", "../tls.key"), "`secrets[0].file`");
        refused(&good.replace("0400", "4755"), "`secrets[0].mode`");
        refused(&good.replace("AAAA", "%%%%"), "`verifier.ca` is not PEM");
        refused(&good.replace(GENERATOR, &"0".repeat(128)), "not a point of P-256");
        refused(&json("http://192.168.76.1", NAT, "k"), "`verifier.url`");
        refused(&json("https://verifier.example.org", NAT, "k"), "resolve no names");
        refused(&json("https://192.168.76.1", r#"{"mode":"none"}"#, "k"), "without a network");
        refused("", "EOF");
        refused("{}", "missing field");
    }

    #[test]
    fn one_secret_may_fill_several_files() {
        let twice = json("https://192.168.76.1", NAT, "a").replace(
            r#""mode":"0400"}]"#,
            r#""mode":"0400"},{"id":"nginx/key","file":"b","mode":"0444"}]"#,
        );
        let plan = parse(twice.as_bytes()).unwrap().secrets.unwrap();
        assert_eq!((plan.wanted.len(), plan.resources().len()), (2, 1));
    }
}
