//! Tests of loading the settings.

use super::*;
use crate::access::Rate;

fn load(args: &[&str]) -> Result<(CliCommand, Settings), LoadSettingsError> {
    Settings::load(["aurore-events"].iter().chain(args).map(OsString::from))
}

#[test]
fn defaults_match_the_specification() {
    let (command, settings) = load(&[]).unwrap();
    assert_eq!(command, CliCommand::Serve);
    assert_eq!(settings.host, IpAddr::from([127, 0, 0, 1]));
    assert_eq!((settings.port, settings.buffer_rows_max, settings.batch_rows_max), (3000, 50_000, 5000));
    assert_eq!((settings.buffer_bytes_max, settings.body_bytes_max), (256 << 20, 8 << 20));
    assert_eq!((settings.drain_interval, settings.retention_days), (Duration::from_secs(1), 30));
    assert_eq!((settings.breaker_failures, settings.breaker_successes), (5, 2));
    assert_eq!(settings.http_engine, HttpEngine::Guarded);
    let rates = [settings.rates.global, settings.rates.query, settings.rates.health];
    assert_eq!(rates.map(|rate| rate.map(Rate::count)), [None, Some(100), Some(50)]);
    assert!(settings.auth_tokens_file.is_none() && settings.trusted_proxies.is_empty());
    assert!(settings.cors_origins.is_none());
}

#[test]
fn load_reports_all_errors_with_setting_and_bounds() {
    let Err(LoadSettingsError::Invalid(errors)) =
        load(&["--port", "65536", "--batch-size=0", "check-config", "--http-engine", "fast", "--host", "x"])
    else {
        panic!("wrong settings were accepted");
    };
    assert_eq!(
        errors,
        [
            "HOST=\"x\" is not an IP address",
            "PORT=\"65536\" is not a whole number from 0 to 65535",
            "HTTP_ENGINE=\"fast\" is not one of guarded, minihttp",
            "BATCH_SIZE=\"0\" is not a whole number from 1 to 100000",
        ]
    );
}

#[test]
fn env_file_is_overridden_by_flags_and_rejects_unknown_names() {
    let file = std::env::temp_dir().join(format!("aurore-env-{}", std::process::id()));
    std::fs::write(&file, "# comment\nPORT=4000\nexport BATCH_SIZE=\"7\"\n").unwrap();
    let flag = format!("--env-file={}", file.display());
    let (_, settings) = load(&[&flag, "--port=5000"]).unwrap();
    assert_eq!((settings.port, settings.batch_rows_max), (5000, 7));
    std::fs::write(&file, "PROT=4000\nPORT\n").unwrap();
    let Err(LoadSettingsError::Invalid(errors)) = load(&[&flag]) else { panic!("a wrong file was accepted") };
    std::fs::remove_file(&file).unwrap();
    assert_eq!(errors.len(), 2, "{errors:?}");
    assert!(errors[0].ends_with(":1: there is no setting PROT"), "{errors:?}");
}

#[test]
fn load_parses_the_retention_schedule_and_command() {
    let (command, settings) =
        load(&["retention", "run", "--dry-run", "--retention-cron-schedule", "1 2 3 * * *"]).unwrap();
    assert_eq!(command, CliCommand::RetentionRun { dry_run: true, json: false });
    assert_eq!(settings.retention_schedule, "1 2 3 * * *".parse().unwrap());
    assert_eq!(
        load(&["retention", "run"]).unwrap().0,
        CliCommand::RetentionRun { dry_run: false, json: false }
    );
    assert!(matches!(load(&["retention"]), Err(LoadSettingsError::Usage(_))));
    assert!(matches!(load(&["--retention-cron-schedule", "never"]), Err(LoadSettingsError::Invalid(_))));
}

#[test]
fn setting_bounds_are_inclusive() {
    #[track_caller]
    fn check(flag: &str, good: bool) {
        assert_eq!(load(&[flag]).is_ok(), good, "{flag}");
    }
    check("--buffer-max-size=1", true);
    check("--buffer-max-size=0", false);
    check("--buffer-max-size=100000000", true);
    check("--buffer-max-size=100000001", false);
    check("--port=0", true);
    check("--port=-1", false);
    check("--nonsense=1", false);
    check("--max-header-bytes=1024", true);
    check("--max-header-bytes=1023", false);
    check("--max-headers=256", true);
    check("--max-headers=257", false);
    check("--tls-cert=a", false);
    check("--tls-key=a", false);
    assert!(load(&["--tls-cert=a", "--tls-key=b"]).is_ok());
    assert!(load(&["--tls-cert=a", "--tls-key=b", "--http-engine=minihttp"]).is_err());
}

#[test]
fn numbers_have_a_default_within_bounds_and_help_that_ends_with_the_bounds() {
    let mut reader = SettingsReader::default();
    Settings::read(&mut reader);
    assert_eq!(reader.errors, [""; 0]);
    let mut numbers = 0;
    for setting in &reader.declared {
        let Some(bounds) = &setting.bounds else { continue };
        assert!(setting.help().ends_with(&format!(" [{bounds}]")), "{}", setting.name);
        let (min, max) = bounds.split_once(" to ").unwrap();
        // The bounds of the other settings, such as PUSHED_TTL, have a unit.
        let (Ok(min), Ok(max)) = (min.parse::<u64>(), max.parse::<u64>()) else { continue };
        let default = setting.default.as_deref().unwrap().parse().unwrap();
        assert!((min..=max).contains(&default), "{}: {default}", setting.name);
        numbers += 1;
    }
    assert!(numbers > 40, "{numbers}");
}
