//! The server's certificate: read from two files, and read again while it runs. Knows no connection.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection};

/// Why a certificate and its key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("TLS_CERT {path}: {reason}")]
    Certificate { path: PathBuf, reason: String },
    #[error("TLS_KEY {path}: {reason}")]
    Key { path: PathBuf, reason: String },
    #[error("TLS_CERT {certificate} and TLS_KEY {key}: {reason}")]
    Pair { certificate: PathBuf, key: PathBuf, reason: String },
}

/// What the server proves itself with. Connections keep the certificate they began with.
///
/// Invariant: the lock is held for a copy of the pointer or its exchange, never while a file is read: acceptors take it.
pub struct Identity {
    certificate: PathBuf,
    key: PathBuf,
    config: Mutex<Arc<ServerConfig>>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

impl Identity {
    /// Both files are PEM: the chain, the server's own certificate first, and its key.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, IdentityError> {
        let config = Mutex::new(read(certificate, key)?);
        Ok(Self { certificate: certificate.to_owned(), key: key.to_owned(), config })
    }

    /// Reads the files again, for the connections to come. What cannot be used leaves all as it was.
    pub fn reload(&self) -> Result<(), IdentityError> {
        let config = read(&self.certificate, &self.key)?;
        *self.config.lock().unwrap_or_else(PoisonError::into_inner) = config;
        Ok(())
    }

    pub(super) fn connection(&self) -> Result<ServerConnection, rustls::Error> {
        let config = Arc::clone(&self.config.lock().unwrap_or_else(PoisonError::into_inner));
        ServerConnection::new(config)
    }
}

fn read(certificate: &Path, key: &Path) -> Result<Arc<ServerConfig>, IdentityError> {
    let bad_certificate =
        |reason: String| IdentityError::Certificate { path: certificate.to_owned(), reason };
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| bad_certificate(error.to_string()))?;
    if chain.is_empty() {
        return Err(bad_certificate("it holds no certificate".into()));
    }
    let secret = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| IdentityError::Key { path: key.to_owned(), reason: error.to_string() })?;
    let bad_pair = |error: rustls::Error| IdentityError::Pair {
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
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
