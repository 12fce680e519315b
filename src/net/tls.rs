//! TLS for QUIC with libp2p's certificates: who the other side is, and which cipher is tried first.
//! In: our key. Out: client and server configurations, and the peer id that a finished handshake proves.
//! Wire-compatible with stock libp2p (ALPN `libp2p`, the same certificate extension). Knows no connection's use.

use std::sync::Arc;

use libp2p::{PeerId, identity::Keypair};
use libp2p_tls::certificate;
use rustls::{
    DigitallySignedStruct, DistinguishedName, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
    sign::{CertifiedKey, SingleCertAndKey},
};

/// The name under which libp2p runs over QUIC.
const ALPN: &[u8] = b"libp2p";

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("making a libp2p certificate: {0}")]
    Certificate(#[from] certificate::GenError),
    #[error(transparent)]
    Rustls(#[from] rustls::Error),
    #[error("no cipher for QUIC's first packets: {0}")]
    Initial(#[from] quinn::crypto::rustls::NoInitialCipherSuite),
}

/// Configurations for both sides of a connection, with a fresh certificate that `key` signed.
///
/// Sessions are never resumed: connections live long, and the peer id is then proved by every handshake.
/// No key log, whatever the environment says.
pub fn configs(
    key: &Keypair,
) -> Result<(quinn::crypto::rustls::QuicClientConfig, quinn::crypto::rustls::QuicServerConfig), TlsError> {
    let provider = Arc::new(provider());
    let (certificate, secret) = certificate::generate(key)?;
    // `with_client_auth_cert` and `with_single_cert` refuse the critical libp2p extension, so the pair is handed over as it is.
    let pair = CertifiedKey::new(vec![certificate], provider.key_provider.load_private_key(secret)?);
    let pair = Arc::new(SingleCertAndKey::from(pair));
    let mut client = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyPeer))
        .with_client_cert_resolver(pair.clone());
    client.alpn_protocols = vec![ALPN.to_vec()];
    client.resumption = Resumption::disabled();
    let mut server = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(AnyPeer))
        .with_cert_resolver(pair);
    server.alpn_protocols = vec![ALPN.to_vec()];
    server.send_tls13_tickets = 0;
    Ok((client.try_into()?, server.try_into()?))
}

/// Whose certificate the other side of `connection` showed; its signature was verified in the handshake.
pub fn peer_of(connection: &quinn::Connection) -> Option<PeerId> {
    let shown = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    certificate::parse(shown.first()?).ok().map(|parsed| parsed.peer_id())
}

/// AES-128-GCM first: with hardware AES it costs two thirds of ChaCha20's CPU time. QUIC's first packets need it in any case.
fn provider() -> CryptoProvider {
    use aws_lc_rs::cipher_suite::{TLS13_AES_128_GCM_SHA256 as AES, TLS13_CHACHA20_POLY1305_SHA256 as CHACHA};
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = if hardware_aes() { vec![AES, CHACHA] } else { vec![CHACHA, AES] };
    provider
}

#[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
fn hardware_aes() -> bool {
    std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq")
}

#[cfg(target_arch = "aarch64")]
fn hardware_aes() -> bool {
    std::arch::is_aarch64_feature_detected!("aes")
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "x86", target_arch = "aarch64")))]
fn hardware_aes() -> bool {
    false
}

/// Accepts every peer that proves the key in its certificate: who may talk to us is decided by its peer id, later.
#[derive(Debug)]
struct AnyPeer;

const SCHEMES: [SignatureScheme; 2] = [SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::ED25519];

fn check(certificate: &CertificateDer<'_>, rest: &[CertificateDer<'_>]) -> Result<(), rustls::Error> {
    if !rest.is_empty() {
        return Err(rustls::Error::General("libp2p peers show exactly one certificate".into()));
    }
    certificate::parse(certificate)?;
    Ok(())
}

fn signature(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, rustls::Error> {
    certificate::parse(certificate)?.verify_signature(signed.scheme, message, signed.signature())?;
    Ok(HandshakeSignatureValid::assertion())
}

fn not_tls_13() -> Result<HandshakeSignatureValid, rustls::Error> {
    Err(rustls::Error::General("QUIC speaks TLS 1.3 only".into()))
}

impl ServerCertVerifier for AnyPeer {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        check(certificate, rest).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        not_tls_13()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SCHEMES.to_vec()
    }
}

impl ClientCertVerifier for AnyPeer {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        check(certificate, rest).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        not_tls_13()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SCHEMES.to_vec()
    }
}
