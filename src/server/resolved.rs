//! The files and the databases that the settings name. `serve` and `check-config` resolve them with
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
    /// The standby that serves queries.
    pub(super) read_target: Option<ConnectTarget>,
}

/// The errors in the named files, in `DATABASE_URL` and in `DATABASE_READ_URL`.
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
        let read_target = settings.database_read_url.as_deref().map(ConnectTarget::parse_for_reads);
        let read_target = read_target.transpose().unwrap_or_else(|error| {
            errors.push(error.to_string());
            None
        });
        if settings.database_read_url.is_some() && settings.database_url.is_none() {
            errors.push("DATABASE_READ_URL is set without DATABASE_URL, whose standby it must be".to_owned());
        }
        if errors.is_empty() {
            Ok(Self { tokens, identity, target, read_target })
        } else {
            Err(ResolveSettingsError(errors))
        }
    }

    /// What the settings ask for and has no effect.
    pub fn warnings(&self) -> impl Iterator<Item = String> {
        let named = [("DATABASE_URL", &self.target), ("DATABASE_READ_URL", &self.read_target)];
        named.into_iter().flat_map(|(name, target)| {
            let warnings = target.as_ref().map(ConnectTarget::warnings).unwrap_or_default();
            warnings.iter().map(move |warning| format!("{name}: {warning}"))
        })
    }
}
