//! The signed manifest as it travels and lies on the disk. In: bytes from a peer or a file, and the run's hash from an invite. Out:
//! the manifest, or why these bytes are not it. Nothing is allocated before its length is checked.

use skein_protocol::{
    Manifest, PeerId, RunId,
    hash::keyed,
    key::{Key, Signed},
    run::{
        PROTOCOL,
        check::{self, Severity},
    },
    wire::{exact, limits::MANIFEST_MAX},
};

/// Domain of the hash that names a run, and of its owner's signature.
const DOMAIN: &str = "skein manifest 1";
/// A signed manifest is its body, a key, a signature and a few bytes of framing.
const SIGNED_MAX: usize = MANIFEST_MAX + 128;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("it is no signed manifest: {0}")]
    NotSigned(String),
    #[error("its hash is {got}, not {expected}")]
    OtherRun { expected: RunId, got: RunId },
    #[error("it is not signed by the run's owner")]
    NotByOwner,
    #[error("the run speaks protocol {run}, this build {mine}")]
    Protocol { run: u16, mine: u16 },
    #[error("this build cannot read it: {0}")]
    Unreadable(String),
    #[error("it is not valid: {0}")]
    Invalid(String),
}

/// The run's identity, and its manifest signed by the owner.
pub fn sign(manifest: &Manifest, owner: &Key) -> (RunId, Vec<u8>) {
    let body = minicbor::to_vec(manifest).expect("writing to a Vec cannot fail");
    let run = keyed(DOMAIN, &[&body]);
    let signed = owner.sign(DOMAIN, body);
    (run, minicbor::to_vec(signed).expect("writing to a Vec cannot fail"))
}

/// The run that a manifest is, whoever signs it.
pub fn id(manifest: &Manifest) -> RunId {
    keyed(DOMAIN, &[&minicbor::to_vec(manifest).expect("writing to a Vec cannot fail")])
}

/// Whether `signature` is `by`'s for exactly this manifest: for a signed text file.
pub fn holds(manifest: &Manifest, by: PeerId, signature: [u8; 64]) -> bool {
    let body = minicbor::to_vec(manifest).expect("writing to a Vec cannot fail");
    Signed { body: body.into(), by, signature }.verify(DOMAIN)
}

/// The run that these bytes say they are, unchecked: for a person's own file.
pub fn run_of(signed: &[u8]) -> Result<RunId, Refused> {
    Ok(keyed(DOMAIN, &[&envelope(signed)?.body]))
}

/// Opens a signed manifest that must be that of `run`.
pub fn open(signed: &[u8], run: RunId) -> Result<Manifest, Refused> {
    let signed = envelope(signed)?;
    let got = keyed(DOMAIN, &[&signed.body]);
    if got != run {
        return Err(Refused::OtherRun { expected: run, got });
    }
    // From here on these are the owner's bytes: what cannot be read was made by another version.
    let manifest: Manifest =
        exact(&signed.body, MANIFEST_MAX).map_err(|error| Refused::Unreadable(error.to_string()))?;
    if manifest.run.protocol != PROTOCOL {
        return Err(Refused::Protocol { run: manifest.run.protocol, mine: PROTOCOL });
    }
    if signed.by != manifest.run.owner || !signed.verify(DOMAIN) {
        return Err(Refused::NotByOwner);
    }
    // What its owner could not have started nobody joins either: sizes that come from it are believed from here on.
    let problems = check::check(&manifest).into_iter().filter(|problem| problem.severity == Severity::Error);
    match problems.map(|problem| format!("{} {}", problem.key, problem.what)).next() {
        None => Ok(manifest),
        Some(problem) => Err(Refused::Invalid(problem)),
    }
}

fn envelope(signed: &[u8]) -> Result<Signed, Refused> {
    exact(signed, SIGNED_MAX).map_err(|error| Refused::NotSigned(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> Key {
        Key::from_secret([n; 32])
    }

    fn manifest() -> Manifest {
        super::super::sample_manifest(2)
    }

    #[test]
    fn a_manifest_is_its_hash_and_its_owners() {
        let (run, bytes) = sign(&manifest(), &key(1));
        assert_eq!(open(&bytes, run), Ok(manifest()));
        assert_eq!((run_of(&bytes), id(&manifest())), (Ok(run), run));
        let signed = envelope(&bytes).unwrap();
        assert!(holds(&manifest(), signed.by, signed.signature));
        assert!(!holds(&manifest(), key(2).peer(), signed.signature));
        let (_, forged) = sign(&manifest(), &key(2));
        assert_eq!(open(&forged, run), Err(Refused::NotByOwner));
        let mut other = manifest();
        other.run.name = "other".into();
        let (got, bytes) = sign(&other, &key(1));
        assert_eq!(open(&bytes, run), Err(Refused::OtherRun { expected: run, got }));
    }

    #[test]
    fn a_run_that_is_not_valid_is_refused_whoever_signed_it() {
        let mut wild = manifest();
        wild.train.micro_batch = u32::MAX;
        let (run, bytes) = sign(&wild, &key(1));
        assert!(matches!(open(&bytes, run), Err(Refused::Invalid(why)) if why.starts_with("train.micro_batch")));
    }

    #[test]
    fn another_protocol_is_told_apart_from_noise() {
        let mut later = manifest();
        later.run.protocol = 9;
        let (run, bytes) = sign(&later, &key(1));
        assert_eq!(open(&bytes, run), Err(Refused::Protocol { run: 9, mine: 1 }));
        assert!(matches!(open(b"noise", run), Err(Refused::NotSigned(_))));
        assert!(matches!(open(&vec![0; 1 << 20], run), Err(Refused::NotSigned(_))));
    }
}
