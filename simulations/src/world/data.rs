//! What a feeder feeds: the tokens and labels of its n-th micro-batch, and where its records begin.

use bytes::Bytes;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use skein_protocol::{Manifest, hash, wire::Starts};

use super::payload::Payload;

#[derive(Clone, Debug)]
pub enum Corpus {
    /// Lengths only.
    Modelled,
    /// A cycle of symbols with seeded slips: its entropy is far below a uniform guess, so that learning shows quickly.
    Cycle { period: u32 },
    /// The same, as records of `record` tokens that are packed into the sequences.
    Packed { period: u32, record: u32 },
}

impl Corpus {
    /// Tokens and labels of the `index`-th micro-batch, u32 little endian.
    pub fn records(&self, manifest: &Manifest, index: u64) -> (Payload, Payload) {
        let (rows, columns) = (manifest.train.micro_batch, manifest.train.sequence);
        let len = 4 * u64::from(rows) * u64::from(columns);
        match self {
            Corpus::Modelled => (Payload::plain(len), Payload::plain(len)),
            Corpus::Cycle { period } | Corpus::Packed { period, .. } => {
                let mut tokens = Vec::with_capacity(len as usize);
                let mut labels = Vec::with_capacity(len as usize);
                for row in 0..rows {
                    let line = sequence(manifest, index, row, *period);
                    for at in 0..columns as usize {
                        tokens.extend_from_slice(&line[at].to_le_bytes());
                        labels.extend_from_slice(&line[at + 1].to_le_bytes());
                    }
                }
                (Payload::Real(Bytes::from(tokens)), Payload::Real(Bytes::from(labels)))
            }
        }
    }

    /// Where the records of any micro-batch begin.
    pub fn starts(&self, manifest: &Manifest) -> Starts {
        let Corpus::Packed { record, .. } = self else { return Starts::default() };
        let sequence = manifest.train.sequence;
        let of_one: Vec<u32> = (0..sequence).step_by(*record as usize).collect();
        Starts::of_sequences((0..manifest.train.micro_batch).map(|_| &of_one[..]), sequence as usize)
    }
}

/// One sequence and the token after it.
fn sequence(manifest: &Manifest, index: u64, row: u32, period: u32) -> Vec<u32> {
    let parts = [&manifest.train.seed.to_le_bytes()[..], &index.to_le_bytes(), &row.to_le_bytes()];
    let mut rng = ChaCha8Rng::from_seed(hash::keyed("skein simulation data 1", &parts).0);
    let vocab = manifest.model.config.vocab;
    let mut token = rng.random_range(0..period.min(vocab));
    (0..=manifest.train.sequence)
        .map(|_| {
            let now = token;
            let slip = rng.random_range(0u32..20) == 0;
            token = if slip { rng.random_range(0..period.min(vocab)) } else { (token + 1) % period.min(vocab) };
            now
        })
        .collect()
}
