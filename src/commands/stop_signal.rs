//! SIGINT and SIGTERM of commands that run for long: the first one asks the command to end, with what
//! it has to say; the second one ends the process at once.

use std::io;

use crossbeam::channel::{Receiver, bounded};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

/// Handles both signals from now on. The receiver and its clones are disconnected by the first one.
pub fn stop_signal() -> io::Result<Receiver<()>> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let (sender, stopped) = bounded(0);
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let mut sender = Some(sender);
        for signal in signals.forever() {
            if sender.take().is_none()
                && let Err(error) = emulate_default_handler(signal)
            {
                log::error!("cannot end by signal {signal}: {error}");
            }
        }
    })?;
    Ok(stopped)
}
