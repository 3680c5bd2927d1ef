//! The program: reads the settings, starts the log, does what was asked, and maps an error to an exit code.

use std::process::ExitCode;

use aurore_events::clock::Clock;
use aurore_events::settings::{Refused, Settings, Task};
use aurore_events::{logging, server};

/// The settings are wrong; nothing was started.
const WRONG_SETTINGS: u8 = 2;

#[expect(clippy::print_stdout, reason = "the command's answer")]
fn print(text: &str) {
    print!("{text}");
}

fn main() -> ExitCode {
    let (task, settings) = match Settings::load(std::env::args_os()) {
        Ok(loaded) => loaded,
        // clap says itself what goes to which stream, and with which code.
        Err(Refused::Usage(usage)) => usage.exit(),
        Err(mistakes @ Refused::Mistakes(_)) => {
            eprintln!("{mistakes}");
            return ExitCode::from(WRONG_SETTINGS);
        }
    };
    if task == Task::CheckConfig {
        #[expect(clippy::print_stdout, reason = "the command's answer")]
        for line in &settings.shown {
            println!("{line}");
        }
        return ExitCode::SUCCESS;
    }
    let clock = Clock::system();
    if let Task::CreateToken(new) = &task {
        let (token, line) = new.make(&mut clock.rng());
        #[expect(clippy::print_stdout, reason = "the command's answer")]
        {
            println!("{token}\n{line}");
        }
        return ExitCode::SUCCESS;
    }
    logging::start(settings.log_level, settings.log_format, &clock);
    let done = match task {
        Task::Migrate => server::migrate(&settings, &clock),
        Task::RetentionRun { dry_run } => server::retention(&settings, &clock, dry_run),
        Task::History => server::history(&settings).map(|table| print(&table)),
        Task::JournalInspect => server::inspect_journal(&settings),
        Task::Counts(task) => server::counts(&settings, &clock, task),
        Task::Dead(task) => server::dead(&settings, &clock, &task),
        Task::GatewayCompare(task) => server::compare(&task),
        Task::Serve | Task::CheckConfig | Task::CreateToken(_) => server::run(&settings, &clock),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error}");
            error.exit_code()
        }
    }
}
