//! A TPMS_ATTEST taken apart, so that any field can be made wrong and the rest stays what the TPM said.

use coffer_attestation::tpm::wire::{Reader, Writer};

#[derive(Debug, Clone)]
pub struct Attest {
    pub magic: u32,
    pub kind: u16,
    pub signer: Vec<u8>,
    pub extra: Vec<u8>,
    pub clock: u64,
    pub resets: u32,
    pub restarts: u32,
    pub safe: u8,
    pub firmware: u64,
    /// TPML_PCR_SELECTION.
    pub selection: Vec<u8>,
    pub digest: Vec<u8>,
    /// Attested part of another type, in place of selection and digest.
    pub body: Option<Vec<u8>>,
    pub tail: Vec<u8>,
}

impl Attest {
    /// A quote over one bank, as recorded.
    pub fn parse(bytes: &[u8]) -> Self {
        let mut r = Reader::new(bytes);
        let attest = Self {
            magic: r.u32().unwrap(),
            kind: r.u16().unwrap(),
            signer: r.tpm2b(66).unwrap().to_vec(),
            extra: r.tpm2b(66).unwrap().to_vec(),
            clock: r.array().map(u64::from_be_bytes).unwrap(),
            resets: r.u32().unwrap(),
            restarts: r.u32().unwrap(),
            safe: r.u8().unwrap(),
            firmware: r.array().map(u64::from_be_bytes).unwrap(),
            selection: r.bytes(10).unwrap().to_vec(),
            digest: r.tpm2b(64).unwrap().to_vec(),
            body: None,
            tail: vec![],
        };
        r.finish().unwrap();
        assert_eq!(attest.encode(), bytes);
        attest
    }

    pub fn encode(&self) -> Vec<u8> {
        let quote = || Writer::new().bytes(&self.selection).tpm2b(&self.digest).finish();
        let attested = self.body.clone().unwrap_or_else(quote);
        Writer::new()
            .u32(self.magic)
            .u16(self.kind)
            .tpm2b(&self.signer)
            .tpm2b(&self.extra)
            .bytes(&self.clock.to_be_bytes())
            .u32(self.resets)
            .u32(self.restarts)
            .u8(self.safe)
            .bytes(&self.firmware.to_be_bytes())
            .bytes(&attested)
            .bytes(&self.tail)
            .finish()
    }
}

/// TPML_PCR_SELECTION: banks with bitmaps of three bytes.
pub fn selection(banks: &[(u16, &[u8])]) -> Vec<u8> {
    let list = Writer::new().u32(u32::try_from(banks.len()).unwrap());
    let bank = |list: Writer, (bank, pcrs): &(u16, &[u8])| {
        let bits = pcrs.iter().fold(0u32, |bits, pcr| bits | 1 << pcr);
        list.u16(*bank).u8(3).bytes(&bits.to_le_bytes()[..3])
    };
    banks.iter().fold(list, bank).finish()
}
