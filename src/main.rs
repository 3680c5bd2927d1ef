//! The program: loads the settings, starts logging, runs the requested command, and maps errors to
//! exit codes.

use std::collections::BTreeMap;
use std::process::ExitCode;

use aurore_events::clock::Clock;
use aurore_events::settings::{CliCommand, LoadSettingsError, Settings};
use aurore_events::{allocator, logging, server};

/// Exit code for invalid settings; nothing was started.
const EXIT_INVALID_SETTINGS: u8 = 2;

#[expect(clippy::print_stdout, reason = "the output of the command")]
fn print(text: &str) {
    print!("{text}");
}

/// `aurore-events check-config`.
fn check_config(settings: &Settings, json: bool) -> ExitCode {
    let lines: String = settings.effective.iter().flat_map(|line| [line, "\n"]).collect();
    if !json {
        print(&lines);
    }
    match server::ResolvedSettings::load(settings) {
        Ok(resolved) => {
            if json {
                let effective: BTreeMap<_, _> =
                    settings.effective.iter().filter_map(|line| line.split_once('=')).collect();
                let warnings: Vec<_> = resolved.warnings().collect();
                print(&format!("{}\n", sonic_rs::json!({"settings": effective, "warnings": warnings})));
                return ExitCode::SUCCESS;
            }
            resolved.warnings().for_each(|warning| eprintln!("warning: {warning}"));
            print("ok\n");
            ExitCode::SUCCESS
        }
        Err(errors) => {
            eprintln!("{errors}");
            ExitCode::from(EXIT_INVALID_SETTINGS)
        }
    }
}

fn main() -> ExitCode {
    allocator::configure();
    let (command, settings) = match Settings::load(std::env::args_os()) {
        Ok(loaded) => loaded,
        // clap chooses the stream and the exit code.
        Err(LoadSettingsError::Usage(usage)) => usage.exit(),
        Err(errors @ LoadSettingsError::Invalid(_)) => {
            eprintln!("{errors}");
            return ExitCode::from(EXIT_INVALID_SETTINGS);
        }
    };
    if let CliCommand::CheckConfig { json } = command {
        return check_config(&settings, json);
    }
    let clock = Clock::system();
    if let CliCommand::CreateToken { token, json } = &command {
        let (token, line) = token.generate(&mut clock.rng());
        print(&if *json {
            format!("{}\n", sonic_rs::json!({"token": token, "line": line}))
        } else {
            format!("{token}\n{line}\n")
        });
        return ExitCode::SUCCESS;
    }
    let to_journal = logging::is_journal(settings.systemd.journal_stream.as_deref());
    logging::init(settings.log_level, settings.log_format, to_journal, &clock);
    let result = match command {
        CliCommand::Migrate => server::commands::migrate(&settings, &clock),
        CliCommand::RetentionRun { dry_run, json } => {
            server::commands::retention(&settings, &clock, dry_run, json)
        }
        CliCommand::History { json } => server::commands::history(&settings, json).map(|table| print(&table)),
        CliCommand::Journal(command) => server::commands::journal(&settings, &clock, command),
        CliCommand::Counts(command) => server::commands::counts(&settings, &clock, command),
        CliCommand::Dead(command) => server::commands::dead(&settings, &clock, &command),
        CliCommand::GatewayCompare(command) => server::commands::compare(&command),
        CliCommand::Healthcheck(command) => server::commands::healthcheck(&settings, command),
        CliCommand::Documentation(command) => server::commands::documentation(&command),
        CliCommand::Send(command) => server::commands::send(&command, &clock),
        CliCommand::Tail(command) => server::commands::tail(&command, &clock),
        CliCommand::Top(command) => server::commands::top(&command, &clock),
        CliCommand::Serve | CliCommand::CheckConfig { .. } | CliCommand::CreateToken { .. } => {
            server::run(&settings, &clock)
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error.to_string().lines().for_each(|line| log::error!("{line}"));
            error.exit_code()
        }
    }
}
