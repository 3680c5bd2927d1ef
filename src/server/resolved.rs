//! The files and the database that the settings name. `serve` and `check-config` resolve them with
//! the same function, so both accept the same settings.

use crate::access::TokenFile;
use crate::http::tls::TlsIdentity;
use crate::settings::Settings;
use crate::storage::postgres::ConnectTarget;

/// The named files, read and validated.
#[derive(Debug)]
pub struct ResolvedSettings {
    pub(super) tokens: Option<TokenFile>,
    pub(super) identity: Option<TlsIdentity>,
    /// None: the private cluster.
    pub(super) target: Option<ConnectTarget>,
}

/// The errors in the named files and in `DATABASE_URL`.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ResolveSettingsError(Vec<String>);

impl ResolvedSettings {
    /// Reads the files and parses `DATABASE_URL`; reports all errors together. Changes nothing and
    /// does not connect.
    pub fn load(settings: &Settings) -> Result<Self, ResolveSettingsError> {
        let mut errors = Vec::new();
        let tokens = settings.auth_tokens_file.as_deref().map(TokenFile::open);
        let tokens = tokens.transpose().unwrap_or_else(|error| {
            errors.push(error.to_string());
            None
        });
        let identity = settings.edge.tls.as_ref().map(|tls| TlsIdentity::read(&tls.certificate, &tls.key));
        let identity = identity.transpose().unwrap_or_else(|error| {
            errors.push(error.to_string());
            None
        });
        let target = settings.database_url.as_deref().map(ConnectTarget::parse);
        let target = target.transpose().unwrap_or_else(|error| {
            errors.push(error.to_string());
            None
        });
        if errors.is_empty() {
            Ok(Self { tokens, identity, target })
        } else {
            Err(ResolveSettingsError(errors))
        }
    }

    /// What the settings ask for and has no effect.
    pub fn warnings(&self) -> impl Iterator<Item = String> {
        let warnings = self.target.as_ref().map(ConnectTarget::warnings).unwrap_or_default();
        warnings.iter().map(|warning| format!("DATABASE_URL: {warning}"))
    }
}
