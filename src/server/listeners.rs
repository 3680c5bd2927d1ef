//! Opens the listening sockets: those that the service manager passes, otherwise own ones, which it
//! stores for the next process of the service.
//!
//! Sockets of the service manager stay open over a restart. Connections wait in their backlogs until the
//! next process accepts them, so a restart refuses none.

use std::net::{SocketAddr, TcpListener};

use super::error::RunServerError;
use crate::http::listener;
use crate::service_manager::{ServiceManager, take_listeners};
use crate::settings::{HttpEngine, Settings};

/// The name under which the service manager stores own sockets.
const STORED_NAME: &str = "aurore-events-listener";

/// The sockets that the service manager has passed.
#[derive(Debug)]
pub(super) struct PassedListeners {
    /// Those of socket units.
    activated: Vec<TcpListener>,
    /// Those that an earlier process of the service has stored.
    stored: Vec<TcpListener>,
}

impl PassedListeners {
    /// Takes the passed sockets; called once.
    pub(super) fn take(settings: &Settings) -> Result<Self, RunServerError> {
        let taken = take_listeners(&settings.systemd.passed_sockets)?;
        let (stored, activated): (Vec<_>, Vec<_>) =
            taken.into_iter().partition(|(name, _)| name == STORED_NAME);
        let sockets =
            |taken: Vec<(String, TcpListener)>| taken.into_iter().map(|(_, socket)| socket).collect();
        let passed = Self { activated: sockets(activated), stored: sockets(stored) };
        if settings.http_engine == HttpEngine::Minihttp && !passed.activated.is_empty() {
            return Err(RunServerError::MinihttpSocket);
        }
        Ok(passed)
    }

    /// The settings with the address of the activated sockets as `HOST` and `PORT`, if there are any: of
    /// several, one that is not loopback, since access without tokens depends on that.
    pub(super) fn settings(&self, settings: &Settings) -> std::io::Result<Settings> {
        let addresses: Vec<SocketAddr> =
            self.activated.iter().map(TcpListener::local_addr).collect::<Result<_, _>>()?;
        let exposed = addresses.iter().find(|address| !address.ip().to_canonical().is_loopback());
        Ok(match exposed.or(addresses.first()) {
            Some(address) => Settings { host: address.ip(), port: address.port(), ..settings.clone() },
            None => settings.clone(),
        })
    }

    /// Returns the activated sockets, else the stored ones if they have the address of the settings,
    /// else binds new ones and stores them.
    pub(super) fn open(
        self,
        settings: &Settings,
        manager: &ServiceManager,
    ) -> Result<Vec<TcpListener>, RunServerError> {
        let address = settings.address();
        let failed = |error| RunServerError::Listen { address, error };
        let is_guarded = settings.http_engine == HttpEngine::Guarded;
        if self.activated.is_empty() && is_guarded && !self.stored.is_empty() {
            let local: Vec<_> =
                self.stored.iter().map(TcpListener::local_addr).collect::<Result<_, _>>().map_err(failed)?;
            let is_wanted = |local: &SocketAddr| {
                local.ip() == address.ip() && (address.port() == 0 || local.port() == address.port())
            };
            if local.iter().all(is_wanted) {
                log::info!(sockets = local.len(); "using the listening sockets of the process before");
                return Ok(self.stored);
            }
        }
        if !self.stored.is_empty() {
            manager.remove_stored(STORED_NAME);
            drop(self.stored);
        }
        if !self.activated.is_empty() {
            log::info!(sockets = self.activated.len(); "using the listening sockets of the service manager");
            return Ok(self.activated);
        }
        let bound = listener::bind(address, settings.acceptors).map_err(failed)?;
        if is_guarded {
            manager.store(STORED_NAME, &bound);
        }
        Ok(bound)
    }
}
