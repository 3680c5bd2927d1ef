//! The TLS certificate and private key of the server: loads them from two PEM files and reloads
//! them at run time. Must not depend on connections.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection};

/// Why a certificate and its key could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadIdentityError {
    #[error("TLS_CERT {path}: {reason}")]
    Certificate { path: PathBuf, reason: String },
    #[error("TLS_KEY {path}: {reason}")]
    Key { path: PathBuf, reason: String },
    #[error("TLS_CERT {certificate} and TLS_KEY {key}: {reason}")]
    Pair { certificate: PathBuf, key: PathBuf, reason: String },
}

/// The certificate and key of the server. A reload affects new connections only.
///
/// Invariant: the lock is held only to clone or to replace the pointer, never while a file is read,
/// because acceptors take it.
pub struct TlsIdentity {
    certificate: PathBuf,
    key: PathBuf,
    config: Mutex<Arc<ServerConfig>>,
}

impl fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

impl TlsIdentity {
    /// Loads two PEM files: the certificate chain, with the server's certificate first, and the
    /// private key.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, LoadIdentityError> {
        let config = Mutex::new(read(certificate, key)?);
        Ok(Self { certificate: certificate.to_owned(), key: key.to_owned(), config })
    }

    /// Reloads both files for new connections. On an error the current certificate stays in use.
    pub fn reload(&self) -> Result<(), LoadIdentityError> {
        let config = read(&self.certificate, &self.key)?;
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    pub(super) fn connection(&self) -> Result<ServerConnection, rustls::Error> {
        let config = Arc::clone(&self.config.lock().unwrap_or_else(PoisonError::into_inner));
        ServerConnection::new(config)
    }
}

fn read(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, LoadIdentityError> {
    let bad_certificate =
        |reason: String| LoadIdentityError::Certificate { path: certificate.to_owned(), reason };
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| bad_certificate(error.to_string()))?;
    if chain.is_empty() {
        return Err(bad_certificate("the file holds no certificate".into()));
    }
    let secret = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| LoadIdentityError::Key { path: key.to_owned(), reason: error.to_string() })?;
    let bad_pair = |error: rustls::Error| LoadIdentityError::Pair {
        certificate: certificate.to_owned(),
        key: key.to_owned(),
        reason: error.to_string(),
    };
    let mut config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(bad_pair)?
        .with_no_client_auth()
        .with_single_cert(chain, secret)
        .map_err(bad_pair)?;
    // HTTP/1.0 clients, curl among them, offer http/1.0 in ALPN and must not be refused.
    config.alpn_protocols = vec![b"http/1.1".to_vec(), b"http/1.0".to_vec()];
    Ok(Arc::new(config))
}
