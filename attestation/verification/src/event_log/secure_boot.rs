//! The Secure Boot state, from digest-backed events of PCR 7 alone (PFP 1.06, 3.3.4.8).
//!
//! Trusts the quote that covers PCR 7 and nothing of what the log claims: variables are read by what was
//! measured, whatever type the log gives the event; the state stands before the separator, which is told by
//! its digest; authorities stand after it. A variable that is not there is absent, never assumed.

use super::body::{Guid, SignatureList, Variable, signature_lists};
use super::{Backed, Content, Event, EventLog, EventType, Log};
use crate::Reject;
use crate::quote::{QuotedPcrs, QuotedRegisters};
use crate::tpm::hash::Ha;

/// A UEFI variable and the event of PCR 7 that it was measured by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeasuredVariable<'a> {
    /// Number of the event.
    pub event: u32,
    /// The variable.
    pub variable: Variable<'a>,
    /// The bytes the digest is of.
    pub backed: Backed<'a>,
}

impl<'a> MeasuredVariable<'a> {
    /// Its value as signature lists.
    pub fn lists(&self) -> Result<Vec<SignatureList<'a>>, Reject> {
        signature_lists(self.variable.data)
    }
}

/// What PCR 7 tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SecureBoot<'a> {
    state: Option<MeasuredVariable<'a>>,
    /// Platform key.
    pub pk: Option<MeasuredVariable<'a>>,
    /// Key exchange keys.
    pub kek: Option<MeasuredVariable<'a>>,
    /// What may run.
    pub db: Option<MeasuredVariable<'a>>,
    /// What may not.
    pub dbx: Option<MeasuredVariable<'a>>,
    /// What verified the images, shim's too, in order: db entries, and variables of shim.
    pub authorities: Vec<MeasuredVariable<'a>>,
}

impl<'a> SecureBoot<'a> {
    /// Reads the state from a log under a quote. Refuses a quote that does not cover PCR 7
    /// ([`Reject::PcrNotQuoted`]) and a log whose PCR 7 is not the quoted one ([`Reject::ReplayMismatch`]).
    pub fn extract(log: &EventLog<'a>, quoted: &QuotedPcrs) -> Result<Self, Reject> {
        Self::under(log, (*quoted.get(SECURE_BOOT_PCR)?).into())
    }

    /// The same under a quote of whatever banks, in the log's.
    pub fn extract_in(log: &EventLog<'a>, quoted: &QuotedRegisters) -> Result<Self, Reject> {
        Self::under(log, *quoted.get(log.bank(), SECURE_BOOT_PCR)?)
    }

    fn under(log: &EventLog<'a>, value: Ha) -> Result<Self, Reject> {
        let registers = log.registers(log.bank()).ok_or(Reject::BankNotAllowed)?;
        registers.check([(SECURE_BOOT_PCR, value)]).map_err(|(_, reject)| reject)?;
        Self::unauthenticated(log)
    }

    /// Reads the state of a log that nobody vouches for, to be shown.
    pub(super) fn unauthenticated(log: &Log<'a>) -> Result<Self, Reject> {
        let (before, after) = log.around_separator(SECURE_BOOT_PCR);
        let mut found = Self::default();
        for event in before {
            found.state_event(log, event)?;
        }
        for event in after {
            found.authorities.extend(variable(log, event)?);
        }
        Ok(found)
    }

    /// True if Secure Boot verified what ran; false if it did not, none if the log does not say.
    pub fn enabled(&self) -> Option<bool> {
        self.state.as_ref().map(|state| state.variable.data == [1])
    }

    /// The event that says so.
    pub fn state(&self) -> Option<&MeasuredVariable<'a>> {
        self.state.as_ref()
    }

    fn state_event(&mut self, log: &Log<'a>, event: &Event<'a>) -> Result<(), Reject> {
        let Some(found) = variable(log, event)? else { return Ok(()) };
        let slot = match (found.variable.guid, found.variable.name.as_str()) {
            (Guid::GLOBAL, "SecureBoot") => {
                // Absent on firmware that has no such thing, which measures it empty.
                if !matches!(found.variable.data, [] | [0] | [1]) {
                    return Err(Reject::Malformed);
                }
                &mut self.state
            }
            (Guid::GLOBAL, "PK") => &mut self.pk,
            (Guid::GLOBAL, "KEK") => &mut self.kek,
            // dbx holds revocations; an authority has the same names and one signature, without a list.
            (Guid::IMAGE_SECURITY, "db") if is_config(event) => &mut self.db,
            (Guid::IMAGE_SECURITY, "dbx") if is_config(event) => &mut self.dbx,
            (Guid::IMAGE_SECURITY, _) if !is_config(event) => {
                self.authorities.push(found);
                return Ok(());
            }
            _ => return Ok(()),
        };
        if slot.is_some() {
            // Of two answers the log must not be the one to choose.
            return Err(Reject::Malformed);
        }
        if slot_has_lists(&found) {
            found.lists()?;
        }
        *slot = Some(found);
        Ok(())
    }
}

/// The variable an event measured; none if it is backed and no variable, such as an action.
fn variable<'a>(log: &Log<'a>, event: &Event<'a>) -> Result<Option<MeasuredVariable<'a>>, Reject> {
    let claims = is_config(event) || event.kind == EventType::EFI_VARIABLE_AUTHORITY;
    match event.content(log.bank()) {
        Content::Whole(backed) => match read(event, backed.bytes()) {
            Ok(variable) => Ok(Some(MeasuredVariable { event: event.number, variable, backed })),
            Err(reject) if claims => Err(reject),
            Err(_) => Ok(None),
        },
        _ if is_config(event) => Err(Reject::EventDataMismatch),
        // Of an authority the value alone may be measured: that it is this variable's is a claim.
        _ => Ok(None),
    }
}

fn read<'a>(event: &Event<'_>, bytes: &'a [u8]) -> Result<Variable<'a>, Reject> {
    match event.kind {
        EventType::EFI_VARIABLE_AUTHORITY => Variable::read_authority(bytes),
        _ => Variable::read(bytes),
    }
}

fn is_config(event: &Event<'_>) -> bool {
    event.kind == EventType::EFI_VARIABLE_DRIVER_CONFIG
}

fn slot_has_lists(found: &MeasuredVariable<'_>) -> bool {
    found.variable.name != "SecureBoot"
}

/// Secure Boot's register.
pub(super) const SECURE_BOOT_PCR: u8 = 7;

#[cfg(test)]
pub(super) mod tests {
    use super::super::{LogBuilder, SEPARATOR, parse};
    use super::*;
    use crate::Digest;
    use crate::quote::{QuoteKey, ReceivedQuote};
    use crate::tpm::testing::{AttestDraft, SoftAk};

    pub(in super::super) fn quoted(values: &[(u8, Digest)]) -> QuotedPcrs {
        let (ak, extra) = (SoftAk::new(1), Digest::ZERO);
        let draft = AttestDraft::new(ak.public.endorsement_qualified_name(), &extra, values);
        let part = ak.quote(&draft, values);
        let pcrs: Vec<u8> = values.iter().map(|(pcr, _)| *pcr).collect();
        ReceivedQuote::of(&part)
            .authenticate(&QuoteKey::endorsement_primary(&ak.public))
            .and_then(|quote| quote.bind(extra.as_bytes(), Reject::NonceMismatch))
            .and_then(|quote| quote.pcrs(&pcrs, &part.pcrs))
            .unwrap()
    }

    #[test]
    fn asks_for_a_quote_of_pcr_7() {
        let bytes = log_of(&boot(&[1]));
        let log = parse(&bytes).unwrap();
        let value = log.replay(7).sha256().unwrap();
        let extract = |values: &[(u8, Digest)]| {
            SecureBoot::extract(&log, &quoted(values)).map(|found| found.enabled())
        };
        assert_eq!(extract(&[(7, value)]), Ok(Some(true)));
        assert_eq!(extract(&[(4, value)]), Err(Reject::PcrNotQuoted), "(F26)");
        assert_eq!(extract(&[(7, Digest([1; 32]))]), Err(Reject::ReplayMismatch));
    }

    type Ev = (EventType, Vec<u8>);

    const CONFIG: EventType = EventType::EFI_VARIABLE_DRIVER_CONFIG;

    fn var(guid: Guid, name: &str, value: &[u8]) -> Vec<u8> {
        let mut bytes = super::super::body::tests::variable(name, value);
        bytes[..16].copy_from_slice(&guid.0);
        bytes
    }

    fn esl(count: usize) -> Vec<u8> {
        let size = 28 + 48 * count as u32;
        let sizes = [size, 0, 48].map(u32::to_le_bytes).concat();
        [&SignatureList::SHA256.0[..], &sizes, &vec![7; 48 * count]].concat()
    }

    fn boot(enabled: &[u8]) -> Vec<Ev> {
        vec![
            (CONFIG, var(Guid::GLOBAL, "SecureBoot", enabled)),
            (CONFIG, var(Guid::GLOBAL, "PK", &esl(1))),
            (CONFIG, var(Guid::GLOBAL, "KEK", &esl(2))),
            (CONFIG, var(Guid::IMAGE_SECURITY, "db", &esl(3))),
            (CONFIG, var(Guid::IMAGE_SECURITY, "dbx", &esl(0))),
            (EventType::SEPARATOR, SEPARATOR.to_vec()),
            (EventType::EFI_VARIABLE_AUTHORITY, var(Guid::IMAGE_SECURITY, "db", &[7; 48])),
        ]
    }

    fn log_of(events: &[Ev]) -> Vec<u8> {
        let add =
            |log: LogBuilder, (kind, data): &Ev| log.event(7, *kind, Digest::of(&[data]), data);
        events.iter().fold(LogBuilder::new(), add).finish()
    }

    /// What a change of a good boot leads to: the state, or the refusal.
    #[track_caller]
    fn check(what: &str, expected: Result<Option<bool>, Reject>, change: impl Fn(&mut Vec<Ev>)) {
        let mut events = boot(&[1]);
        change(&mut events);
        let bytes = log_of(&events);
        let log = parse(&bytes).unwrap();
        let found = SecureBoot::unauthenticated(&log).map(|found| found.enabled());
        assert_eq!(found, expected, "{what}");
    }

    #[test]
    fn reads_state_keys_and_authorities() {
        let bytes = log_of(&boot(&[1]));
        let log = parse(&bytes).unwrap();
        let found = SecureBoot::unauthenticated(&log).unwrap();
        assert_eq!(found.enabled(), Some(true));
        assert_eq!(found.db.as_ref().unwrap().lists().unwrap()[0].signatures.len(), 3);
        assert_eq!(found.state().map(|state| state.event), Some(0));
        assert_eq!(found.kek.as_ref().unwrap().lists().unwrap()[0].signatures.len(), 2);
        assert_eq!((found.pk.unwrap().event, found.dbx.unwrap().event), (1, 4));
        assert_eq!(found.authorities.len(), 1);
        check("off", Ok(Some(false)), |e| e[0].1 = boot(&[0])[0].1.clone());
        check("no such variable", Ok(Some(false)), |e| e[0].1 = boot(&[])[0].1.clone());
        check("not measured", Ok(None), |e| drop(e.remove(0)));
    }

    #[test]
    fn does_not_let_the_log_choose() {
        check("the type is a claim", Ok(Some(false)), |e| {
            e[0] = (EventType::EFI_ACTION, boot(&[0])[0].1.clone());
        });
        check("measured after the separator", Ok(Some(false)), |e| {
            e[0] = boot(&[0])[0].clone();
            e.push(boot(&[1])[0].clone());
        });
        check("two answers", Err(Reject::Malformed), |e| e.insert(1, boot(&[0])[0].clone()));
        for kind in [EventType::EFI_ACTION, CONFIG] {
            check("the separator under another type", Ok(Some(false)), |e| {
                e[0] = boot(&[0])[0].clone();
                e[5].0 = kind;
                e.push(boot(&[1])[0].clone());
                e.push((EventType::SEPARATOR, SEPARATOR.to_vec()));
            });
        }
        check("a value of 2", Err(Reject::Malformed), |e| e[0].1 = boot(&[2])[0].1.clone());
        check("a list that is none", Err(Reject::Malformed), |e| {
            e[4].1 = var(Guid::IMAGE_SECURITY, "dbx", &[1]);
        });
        check("a variable that is none", Err(Reject::Malformed), |e| e[1].1 = vec![0; 3]);
        check("an action is none", Ok(Some(true)), |e| {
            e.insert(0, (EventType::EFI_ACTION, b"DMA Protection Disabled".to_vec()));
        });
    }

    #[test]
    fn an_authority_is_no_database() {
        let authority =
            |name| (EventType::EFI_VARIABLE_AUTHORITY, var(Guid::IMAGE_SECURITY, name, &[7; 48]));
        let mut events = boot(&[1]);
        // Drivers that were verified before the separator, and a database nothing here reads.
        let more = [authority("db"), authority("dbx")];
        events.splice(5..5, more);
        events.insert(5, (CONFIG, var(Guid::IMAGE_SECURITY, "dbt", &esl(1))));
        let bytes = log_of(&events);
        let log = parse(&bytes).unwrap();
        let found = SecureBoot::unauthenticated(&log).unwrap();
        let authorities: Vec<u32> = found.authorities.iter().map(|a| a.event).collect();
        assert_eq!(authorities, [6, 7, 9]);
        assert_eq!((found.db.unwrap().event, found.dbx.unwrap().event), (3, 4));
    }

    #[test]
    fn stray_bytes_follow_an_authority_and_nothing_else() {
        let stray = |events: &mut Vec<Ev>, at: usize| events[at].1.extend([0xaf; 6]);
        check("of an old shim", Ok(Some(true)), |e| stray(e, 6));
        check("a database", Err(Reject::Malformed), |e| stray(e, 3));
        check("state", Err(Reject::Malformed), |e| stray(e, 0));
    }

    #[test]
    fn refuses_data_that_was_not_measured() {
        let bytes = log_of(&boot(&[0]));
        let value = bytes.windows(20).position(|w| w == boot(&[0])[0].1[32..52].to_vec()).unwrap();
        let mut forged = bytes.clone();
        forged[value + 20] = 1;
        let log = parse(&forged).unwrap();
        assert_eq!(log.replay(7), parse(&bytes).unwrap().replay(7), "nothing measured differs");
        assert_eq!(SecureBoot::unauthenticated(&log), Err(Reject::EventDataMismatch), "(F5)");
        let other = (EventType::EFI_ACTION, Digest([1; 32]));
        let noted = LogBuilder::new().event(7, other.0, other.1, b"beside another digest").finish();
        let log = parse(&noted).unwrap();
        assert_eq!(SecureBoot::unauthenticated(&log), Ok(SecureBoot::default()), "no variable");
    }
}
