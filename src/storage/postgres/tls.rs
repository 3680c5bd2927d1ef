//! TLS of database connections: a rustls configuration for each `sslmode` of libpq.
//!
//! It does not depend on URLs or statements.

use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

/// The CA bundles of common distributions.
const SYSTEM_BUNDLES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

#[derive(Clone, Debug)]
pub(super) enum TlsMode {
    Disabled,
    Enabled {
        /// Falls back to plain text when the server has no TLS (`prefer`).
        optional: bool,
        config: Arc<ClientConfig>,
    },
}

/// The certificates that are accepted.
#[derive(Debug)]
pub(super) enum CertificateTrust {
    /// Any certificate: protects from eavesdropping, not from impersonation (`prefer`, `require`).
    Any,
    /// A certificate signed by a trusted CA, for any host (`verify-ca`).
    Chain(RootCertStore),
    /// A certificate signed by a trusted CA for this host (`verify-full`).
    ChainAndName(RootCertStore),
}

impl TlsMode {
    pub(super) fn enabled(optional: bool, trust: CertificateTrust) -> Result<Self, String> {
        let provider = Arc::new(ring::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| error.to_string())?;
        let verifier = |roots| {
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
                .build()
                .map_err(|error| error.to_string())
        };
        let mut config = match trust {
            CertificateTrust::ChainAndName(roots) => builder.with_webpki_verifier(verifier(roots)?),
            CertificateTrust::Chain(roots) => {
                let chain = Some(verifier(roots)?);
                builder
                    .dangerous()
                    .with_custom_certificate_verifier(Arc::new(PermissiveVerifier { chain, provider }))
            }
            CertificateTrust::Any => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(PermissiveVerifier { chain: None, provider })),
        }
        .with_no_client_auth();
        // PostgreSQL 17 requires this ALPN name for direct TLS; older servers ignore it.
        config.alpn_protocols = vec![b"postgresql".to_vec()];
        Ok(Self::Enabled { optional, config: Arc::new(config) })
    }
}

pub(super) fn load_root_certificates(path: &Path) -> Result<RootCertStore, String> {
    let with_path = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| with_path(&error))? {
        let certificate = certificate.map_err(|error| with_path(&error))?;
        roots.add(certificate).map_err(|error| with_path(&error))?;
    }
    if roots.is_empty() { Err(with_path(&"it contains no certificate")) } else { Ok(roots) }
}

pub(super) fn load_system_root_certificates() -> Result<RootCertStore, String> {
    let bundle = SYSTEM_BUNDLES.iter().map(Path::new).find(|path| path.exists()).ok_or_else(|| {
        "no CA certificates are installed (Debian: apt-get install ca-certificates); set sslrootcert to a file".to_owned()
    })?;
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(bundle)
        .map_err(|error| format!("{}: {error}", bundle.display()))?
        .filter_map(Result::ok);
    // A system bundle may hold old certificates that rustls cannot parse; they are skipped.
    roots.add_parsable_certificates(certificates);
    if roots.is_empty() {
        Err(format!("{}: it contains no certificate", bundle.display()))
    } else {
        Ok(roots)
    }
}

/// A verifier that skips the host name check, or also the chain check when `chain` is None. It
/// always checks that the server owns the key of its certificate.
#[derive(Debug)]
struct PermissiveVerifier {
    chain: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PermissiveVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(chain) = &self.chain else {
            return Ok(ServerCertVerified::assertion());
        };
        match chain.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now) {
            // webpki checks the name last, so the chain is valid.
            Err(Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
