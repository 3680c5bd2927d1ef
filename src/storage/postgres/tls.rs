//! The encryption of a connection and whom it trusts: rustls behind libpq's `sslmode`.
//!
//! Knows nothing of URLs and statements.

use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

/// Where distributions keep the certificates that they trust.
const SYSTEM_BUNDLES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

#[derive(Clone, Debug)]
pub(super) enum Tls {
    Off,
    On {
        /// Without it when the server has none (`prefer`).
        optional: bool,
        config: Arc<ClientConfig>,
    },
}

/// Whose certificate is good enough.
#[derive(Debug)]
pub(super) enum Trust {
    /// Anyone's: encryption against listeners, not against impostors (`prefer`, `require`).
    Anyone,
    /// One that an authority signed, for whatever host (`verify-ca`).
    Chain(RootCertStore),
    /// One that an authority signed for this host (`verify-full`).
    ChainAndName(RootCertStore),
}

impl Tls {
    pub(super) fn on(optional: bool, trust: Trust) -> Result<Self, String> {
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
            Trust::ChainAndName(roots) => builder.with_webpki_verifier(verifier(roots)?),
            Trust::Chain(roots) => {
                let chain = Some(verifier(roots)?);
                builder.dangerous().with_custom_certificate_verifier(Arc::new(Lenient { chain, provider }))
            }
            Trust::Anyone => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(Lenient { chain: None, provider })),
        }
        .with_no_client_auth();
        // PostgreSQL 17 asks for its name in ALPN when TLS comes first; older servers ignore it.
        config.alpn_protocols = vec![b"postgresql".to_vec()];
        Ok(Self::On { optional, config: Arc::new(config) })
    }
}

pub(super) fn authorities(path: &Path) -> Result<RootCertStore, String> {
    let in_file = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(path).map_err(|error| in_file(&error))? {
        let certificate = certificate.map_err(|error| in_file(&error))?;
        roots.add(certificate).map_err(|error| in_file(&error))?;
    }
    if roots.is_empty() { Err(in_file(&"it holds no certificate")) } else { Ok(roots) }
}

pub(super) fn system_authorities() -> Result<RootCertStore, String> {
    let bundle = SYSTEM_BUNDLES.iter().map(Path::new).find(|path| path.exists()).ok_or_else(|| {
        "no certificates are installed (Debian: apt-get install ca-certificates); name a file".to_owned()
    })?;
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(bundle)
        .map_err(|error| format!("{}: {error}", bundle.display()))?
        .filter_map(Result::ok);
    // A system's bundle may hold relics that rustls does not read; the others count.
    roots.add_parsable_certificates(certificates);
    if roots.is_empty() { Err(format!("{}: it holds no certificate", bundle.display())) } else { Ok(roots) }
}

/// Checks less than webpki does: no name, or no chain either. That the server owns the key of the certificate that it
/// shows is checked always.
#[derive(Debug)]
struct Lenient {
    chain: Option<Arc<WebPkiServerVerifier>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Lenient {
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
            // The name is looked at last, so the chain was good.
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
